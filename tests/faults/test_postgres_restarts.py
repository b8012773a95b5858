"""Work, migrations and submissions on Postgres servers whose sessions are ended, that restart, or that are older."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.postgres_topics import PostgresSubscription
from flowfabric_worker.engine.stores.sql_library import SqlLibrary, sql_library
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.states import PublicState
from tests.support.cli import cli
from tests.support.executions import claim_one, created, creation, refused, request
from tests.support.pages import DOCS, ROOT
from tests.support.postgres import PostgresServer
from tests.support.servers import running, wait_until

_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flowfabric_worker'"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return f"{postgres.url}&schema=t{uuid4().hex[:12]}"


@contextlib.contextmanager
def at_work(worker: Worker) -> Iterator[None]:
    runtime = Runtime(worker, WorkerSettings(threads=4))
    runtime.start()
    try:
        yield
    finally:
        runtime.stop(timedelta())
        worker.close()


@pytest.mark.parametrize("restarts", [False, True], ids=["sessions end", "server restarts"])
def test_no_outcome_is_lost_or_doubled_when_connections_are(restarts: bool) -> None:
    with running(PostgresServer("synchronous_commit=on")) as server, server.session() as session:
        session.execute("CREATE TABLE effects (number int)")
        worker = Worker("shop", server.url)
        done = Counter[int]()

        @worker.task(lease=timedelta(seconds=5))
        def work(number: int) -> int:
            if number % 3 == 0:
                current().transaction().execute("INSERT INTO effects VALUES (%s)", [number])
            elif number % 3 == 1:
                current().step("s", int)
            done[number] += 1
            return number

        with at_work(worker):
            runs = work.submit_many([(number,) for number in range(150)])
            draw = random.Random(7)
            for _ in range(8):
                time.sleep(draw.random() / 4)
                if restarts:
                    server.kill() if draw.random() < 0.5 else server.stop()
                    server.start()
                    break
                with contextlib.suppress(psycopg.Error):
                    session.execute(_TERMINATE)
            assert [run.result(30) for run in runs] == list(range(150))
        with server.session() as again:
            effects = [row[0] for row in again.execute("SELECT number FROM effects ORDER BY 1").fetchall()]
        assert effects == list(range(0, 150, 3))
        assert set(done) == set(range(150))


def test_migrations_of_processes_that_run_at_once_agree(url: str) -> None:
    command = [sys.executable, "-m", "flowfabric_worker", "migrate", "--json", "--url", url]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert sum('"loaded": true' in output for output, _ in outputs) == 1
    assert '"loaded": false' in cli("migrate", "--json", "--url", url).out


def test_a_migration_that_was_killed_is_finished_by_the_next(
    url: str, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions_in = SqlLibrary.functions_in
    with monkeypatch.context() as slow:
        # Killed behind the tables and all functions, before the commit.
        slow.setattr(SqlLibrary, "functions_in", lambda *each: functions_in(*each) + "; SELECT pg_sleep(30)")
        problems: list[EngineError] = []

        def migrate() -> None:
            with contextlib.closing(open_engine(url, retry_for=0)) as engine:
                try:
                    engine.prepare()
                except EngineError as error:
                    problems.append(error)

        thread = threading.Thread(target=migrate)
        thread.start()
        sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        with postgres.session() as session:
            wait_until(lambda: session.execute(sleeping).fetchone(), "it sleeps")
            session.execute(f"SELECT pg_terminate_backend(pid) FROM ({sleeping}) AS s")  # type: ignore[arg-type]
        thread.join(20)
    assert [error.retryable for error in problems] == [True]
    with contextlib.closing(open_engine(url)) as engine:
        assert engine.prepare().loaded
        created(engine)
        engine.complete(claim_one(engine).handle)


def test_a_database_of_a_newer_release_ends_commands_with_a_sentence(url: str, postgres: PostgresServer) -> None:
    schema = url.rpartition("=")[2]
    with postgres.session() as session:
        session.execute(f"CREATE SCHEMA {schema}")  # type: ignore[arg-type]
        session.execute(f"CREATE TABLE {schema}.migrations (version int PRIMARY KEY, name text)")  # type: ignore[arg-type]
        session.execute(f"INSERT INTO {schema}.migrations VALUES (9000, 'later')")  # type: ignore[arg-type]
        told = cli("migrate", "--url", url)
        tables = session.execute("SELECT count(*) FROM pg_tables WHERE schemaname = %s", (schema,)).fetchone()
    assert told.code != 0
    assert "are of version 9000" in told.err
    assert "upgrade flowfabric_worker" in told.err
    assert tables == (1,)


def test_an_async_connection_is_refused(url: str, postgres: PostgresServer) -> None:
    import asyncio

    worker = Worker("shop", url)

    @worker.task
    def work() -> None: ...

    async def submit() -> None:
        connection = await psycopg.AsyncConnection.connect(
            host=str(postgres.folder), user="postgres", dbname="postgres"
        )
        try:
            with refused("invalid_input") as caught:
                work.options(connection=connection).submit()
            assert "not AsyncConnection" in str(caught.value)
        finally:
            await connection.close()

    asyncio.run(submit())
    worker.close()


def test_the_older_server_of_the_wheel_does_the_same() -> None:
    with running(PostgresServer(version="16")) as server:
        worker = Worker("shop", server.url)

        @worker.task
        def work(number: int) -> int:
            return int(current().step("s", lambda: number))

        with at_work(worker):
            assert [run.result(20) for run in work.submit_many([(number,) for number in range(50)])] == list(range(50))
        with server.session() as session:
            row: Any = session.execute("SHOW server_version").fetchone()
        assert row[0].startswith("16.")


# Roles, locks and notifications --------------------------------------------------------------------------------------


def test_the_documented_roles_migrate_and_work(postgres: PostgresServer) -> None:
    mark = uuid4().hex[:8]
    text = (DOCS / "production.md").read_text("utf-8")
    (statements,) = (part for part in re.findall(r"```sql\n(.*?)```", text, re.DOTALL) if "ff_owner" in part)
    schema = f"t{mark}"
    functions = sql_library().schema_of(schema)
    for name, actual in (
        ("ff_owner", f"owner_{mark}"),
        ("ff_worker", f"worker_{mark}"),
        ("DATABASE shop", "DATABASE postgres"),
        ("ff_v2_0123456789ab", functions),
    ):
        assert name in statements
        statements = statements.replace(name, actual)
    as_owner = f"{postgres.url.replace('postgres@', f'owner_{mark}@')}&schema={schema}"
    as_worker = as_owner.replace("owner_", "worker_")
    with postgres.session() as session:
        *first, usage, monitor = [part for part in statements.split("\n") if part]
        for statement in first:
            session.execute(statement)  # type: ignore[arg-type]
        assert cli("migrate", "--url", as_owner).code == 0
        for statement in (usage, monitor):
            session.execute(statement)  # type: ignore[arg-type]
    assert "all granted" in cli("check", "--url", as_worker).out
    with contextlib.closing(open_engine(as_worker)) as engine:
        created(engine)
        engine.complete(claim_one(engine).handle)
        engine.run_upkeep()
    told = cli("migrate", "--url", as_worker.replace(schema, f"{schema}_b"))
    assert told.code != 0
    assert "may not create what is missing" in told.err


def test_upkeep_and_migrations_lock_no_table_during_a_drain(url: str, postgres: PostgresServer) -> None:
    worker = Worker("shop", url)
    schema = url.rpartition("=")[2]

    @worker.task(retention=timedelta(milliseconds=1))
    def work(number: int) -> int:
        return number

    held = (
        "SELECT mode, relname FROM pg_locks JOIN pg_class ON pg_class.oid = relation JOIN pg_namespace AS n "
        "ON n.oid = relnamespace JOIN pg_stat_activity USING (pid) WHERE application_name = 'flowfabric_worker' "
        f"AND locktype = 'relation' AND nspname = '{schema}' AND relkind = 'r' AND mode IN "
        "('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"
    )
    with at_work(worker), contextlib.closing(open_engine(url)) as other, postgres.session() as session:
        runs = work.submit_many([(number,) for number in range(300)])
        ended = threading.Event()

        def keep() -> None:
            while not ended.is_set():
                other.prepare()
                other.run_upkeep()
                other.prune_libraries()

        thread = threading.Thread(target=keep)
        thread.start()
        seen = []
        while worker.engine.read_execution_state(runs[-1].id) not in (PublicState.COMPLETED, None):
            seen += session.execute(held).fetchall()  # type: ignore[arg-type]
        ended.set()
        thread.join(20)
    assert seen == []


def test_no_notification_is_long(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    put = PostgresSubscription.put

    def keeping(subscription: PostgresSubscription, message: bytes | EngineError) -> None:
        if isinstance(message, bytes):
            heard.append(message)
        put(subscription, message)

    monkeypatch.setattr(PostgresSubscription, "put", keeping)
    lane, schema = "l" * 64, f"t{uuid4().hex}"[:30]
    with contextlib.closing(open_engine(f"{postgres.url}&schema={schema}", namespace="é" * 128)) as engine:
        claimed: list[Claimed] = []
        waiting = request(lane, limit=1, max_wait=timedelta(seconds=20))
        thread = threading.Thread(target=lambda: claimed.extend(engine.claim_many(waiting)))
        thread.start()
        with postgres.session() as session:
            engine.prepare()
            query = f"SELECT count(*) FROM {schema}.waiters"
            wait_until(lambda: session.execute(query).fetchone() == (1,), "it waits")  # type: ignore[arg-type]
        engine.create_executions([creation(lane=lane, payload=bytes(100_000)) for _ in range(100)])
        thread.join(20)
    assert len(claimed) == 1
    assert heard
    assert max(map(len, heard)) <= 200
