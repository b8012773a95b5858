"""What a Postgres server, its settings, a pooler before it, or few connections mean for workers and for `check`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores import postgres_connection, postgres_install
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.states import PublicState
from tests.support.cli import cli
from tests.support.executions import claim_one, created, creation, refused, request
from tests.support.postgres import PostgresServer
from tests.support.servers import running, wait_until
from tests.support.threads import together


@pytest.fixture
def url(postgres: PostgresServer, schema: str) -> str:
    return f"{postgres.url}&schema={schema}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url, retry_for=0)
    engine.prepare()
    yield engine
    engine.close()


@contextlib.contextmanager
def at_work(worker: Worker, **settings: Any) -> Iterator[Runtime]:
    runtime = Runtime(worker, WorkerSettings(**{"threads": 2, **settings}))
    runtime.start()
    try:
        yield runtime
    finally:
        runtime.stop(timedelta())
        worker.close()


def rows(postgres: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    with postgres.session() as session:
        return session.execute(query).fetchall()  # type: ignore[arg-type]


# Connections ---------------------------------------------------------------------------------------------------------


def test_a_worker_process_has_at_most_four_connections(url: str, postgres: PostgresServer) -> None:
    worker = Worker("shop", url)

    @worker.task
    def work(number: int) -> int:
        current().emit(number)
        return int(current().step("double", lambda: 2 * number))

    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flowfabric_worker'"
    before = rows(postgres, ours)[0][0]
    most = 0
    with at_work(worker, threads=8):
        runs = work.submit_many([(number,) for number in range(100)])
        while any(worker.engine.read_execution_state(run.id) is not PublicState.COMPLETED for run in runs[::33]):
            most = max(most, rows(postgres, ours)[0][0])
        assert [run.result(30) for run in runs] == [2 * number for number in range(100)]
        most = max(most, rows(postgres, ours)[0][0])
    assert 0 < most - before <= 4


def test_threads_that_subscribe_at_once_share_one_connection(postgres: PostgresServer, url: str, schema: str) -> None:
    listening = f"SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN \"{schema}:%'"
    for _ in range(5):
        with contextlib.closing(open_engine(url)) as engine:
            together(8, lambda number, store=engine.store: store.subscribe(f"t{number}"))  # type: ignore[misc]
            assert rows(postgres, listening) == [(1,)]
        wait_until(lambda: rows(postgres, listening) == [(0,)], "the connection is closed")


def test_a_close_while_a_thread_begins_to_listen_leaves_no_connection(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(url)
    store = engine.store
    assert isinstance(store, PostgresStore)
    connect, opened, closed = PostgresConnection.connect, threading.Event(), threading.Event()
    pids: list[int] = []

    def slowly(connection: PostgresConnection) -> None:
        connect(connection)
        pids.append(connection.pgconn.backend_pid)
        opened.set()
        assert closed.wait(20)

    monkeypatch.setattr(PostgresConnection, "connect", slowly)
    listener = threading.Thread(target=lambda: _suppressed(lambda: store.subscribe("topic")))
    listener.start()
    assert opened.wait(20)

    engine.close()
    closed.set()
    listener.join(20)

    left = f"SELECT FROM pg_stat_activity WHERE pid = {pids[0]}"
    wait_until(lambda: not rows(postgres, left), "the connection is closed")


def test_a_process_forked_while_a_thread_subscribes_subscribes_itself(engine: Engine) -> None:
    store = engine.store
    assert isinstance(store, PostgresStore)
    with store.subscribing:
        child = os.fork()
        if child == 0:
            code = 1
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            try:
                subscription = store.subscribe("topic")
                store.wake("topic", b"a")
                code = int(subscription.wait(10) != [b"a"])
            finally:
                os._exit(code)
    assert os.waitpid(child, 0) == (child, 0)


def test_a_call_without_a_free_connection_says_so_in_time(postgres: PostgresServer, url: str, engine: Engine) -> None:
    small = open_engine(f"{url}&pool_size=3&timeout=0.5", retry_for=0)
    execution_id = created(small)
    with postgres.session() as session, session.transaction():
        session.execute(f"SELECT FROM {_schema(engine)}.executions FOR UPDATE")  # type: ignore[arg-type]
        cancel = CancelExecutionArgs(execution_id=execution_id)
        blocked = threading.Thread(target=lambda: _suppressed(lambda: small.cancel_execution(cancel)))
        blocked.start()
        wait_until(
            lambda: rows(postgres, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"), "the call waits"
        )
        with refused("store_timeout") as caught:
            small.ping()
        assert "raise pool_size" in str(caught.value)
    blocked.join(20)
    small.ping()
    small.close()


def _schema(engine: Engine) -> str:
    assert isinstance(engine.store, PostgresStore)
    return engine.store.schema


def _suppressed(call: Any) -> None:
    with contextlib.suppress(EngineError):
        call()


@pytest.mark.parametrize(
    ("limits", "code"),
    [("-c lock_timeout=500ms", "store_busy"), ("-c statement_timeout=500ms", "store_timeout")],
    ids=["lock", "statement"],
)
def test_the_server_ends_a_call_that_waits_too_long(
    url: str, engine: Engine, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, limits: str, code: str
) -> None:
    monkeypatch.setattr(postgres_connection, "_LIMITS", limits)
    execution_id = created(engine)
    other = open_engine(url, retry_for=0)
    with postgres.session() as session, session.transaction():
        session.execute(f"SELECT FROM {_schema(engine)}.executions FOR UPDATE")  # type: ignore[arg-type]
        with refused(code) as caught:
            other.cancel_execution(CancelExecutionArgs(execution_id=execution_id))
        assert caught.value.retryable
    other.cancel_execution(CancelExecutionArgs(execution_id=execution_id))
    other.close()


def test_no_session_stays_in_a_transaction(url: str, engine: Engine, postgres: PostgresServer) -> None:
    worker = Worker("shop", url)
    release = threading.Event()

    @worker.task
    def slow() -> None:
        current().step("s", int)
        release.wait(20)

    with at_work(worker):
        run = slow.submit()
        wait_until(lambda: worker.engine.read_execution_state(run.id) is PublicState.ACTIVE, "it runs")
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert not rows(
                postgres,
                "SELECT query FROM pg_stat_activity WHERE application_name = 'flowfabric_worker' AND "
                "state LIKE 'idle in transaction%' AND state_change < clock_timestamp() - interval '0.3 s'",
            )
            time.sleep(0.05)
        release.set()
        run.result(20)


# Replicas and read-only servers --------------------------------------------------------------------------------------


@pytest.fixture
def standby() -> Iterator[PostgresServer]:
    """Provide a standby that accepts reading."""
    with running(PostgresServer()) as server:
        with contextlib.closing(open_engine(server.url)) as engine:
            engine.prepare()
        server.stop()
        signal_file = server.folder / "data" / "standby.signal"
        signal_file.touch()
        shutil.chown(signal_file, *_owner(server.folder / "data"))
        server.start()
        yield server


def _owner(path: Path) -> tuple[int, int]:
    facts = os.stat(path)
    return facts.st_uid, facts.st_gid


def test_a_replica_is_refused_and_a_promoted_one_works(standby: PostgresServer) -> None:
    with contextlib.closing(open_engine(standby.url, retry_for=0)) as engine:
        with refused("store_not_supported") as caught:
            engine.prepare()
        assert "is a replica, which cannot be written to; name the primary" in str(caught.value)
        with standby.session() as session:
            session.execute("SELECT pg_promote()")
        engine.prepare()
        created(engine)


def test_a_server_that_turns_read_only_is_left_and_found_again(url: str, postgres: PostgresServer) -> None:
    worker = Worker("shop", url)

    @worker.task
    def work(number: int) -> int:
        return number

    with at_work(worker), contextlib.closing(open_engine(url, retry_for=0)) as other:
        assert work.submit(1).result(20) == 1
        other.prepare()
        postgres.configure("default_transaction_read_only", "on")
        try:
            with refused("store_busy") as caught:
                created(other)
            assert caught.value.retryable
            with contextlib.closing(open_engine(url, retry_for=0)) as late:
                with refused("store_not_supported") as said:
                    late.prepare()
                assert "default_transaction_read_only" in str(said.value)
        finally:
            postgres.configure("default_transaction_read_only", None)
        begun = time.monotonic()
        assert work.submit(2).result(20) == 2
        assert time.monotonic() - begun < 10


# What `check` tells --------------------------------------------------------------------------------------------------


def test_check_names_what_keeps_dead_rows(
    url: str, engine: Engine, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_install, "_FACTS", postgres_install._FACTS.replace(">= 60", ">= 0"))
    slot = f"s{uuid4().hex[:8]}"
    with (
        postgres.session() as session,
        psycopg.connect(
            host=str(postgres.folder), user="postgres", dbname="postgres", application_name="report"
        ) as reader,
    ):
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        session.execute("SELECT pg_create_physical_replication_slot(%s, true)", (slot,))
        session.execute(f"ALTER TABLE {_schema(engine)}.depths SET (autovacuum_enabled = false)")  # type: ignore[arg-type]
        try:
            told = cli("check", "--url", url)
        finally:
            session.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
    assert told.code == 0
    for part in ("open for", "application report", f"no replica uses: {slot}", "no autovacuum for depths"):
        assert part in " ".join(told.out.split()), part


def test_check_needs_no_right_to_create_a_schema(url: str, engine: Engine, postgres: PostgresServer) -> None:
    role = f"r{uuid4().hex[:12]}"
    assert isinstance(engine.store, PostgresStore)
    functions = engine.store.library.schema_of(engine.store.schema)
    with postgres.session() as session:
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f'GRANT USAGE ON SCHEMA "{functions}" TO {role}',
        ):
            session.execute(statement)  # type: ignore[arg-type]
    told = cli("check", "--url", url.replace("postgres@", f"{role}@"))
    assert told.code == 0, told.err
    assert "all granted" in told.out
    assert not engine.list_executions().executions
    assert [lane.lane for lane in engine.list_lanes().lanes] == []
    assert rows(postgres, f"SELECT FROM {engine.store.schema}.executions") == []


# Batches -------------------------------------------------------------------------------------------------------------


def test_completions_count_beside_a_stale_and_a_damaged_one(engine: Engine, postgres: PostgresServer) -> None:
    engine.create_executions([creation() for _ in range(200)])
    claimed = [each for _ in range(4) for each in engine.claim_many(request(limit=50))]
    assert len(claimed) == 200
    stale, damaged = claimed[3].handle, claimed[120].handle
    engine.release(stale)
    claim_one(engine)
    with postgres.session() as session:
        session.execute(
            f"UPDATE {_schema(engine)}.executions SET fence = 'x' WHERE uuid = %s",  # type: ignore[arg-type]
            (damaged.execution_id.uuid,),
        )
    answers = engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in claimed])
    refusals = {index: answer.code for index, answer in enumerate(answers) if isinstance(answer, EngineError)}
    assert refusals == {3: "stale_lease", 120: "corruption"}
