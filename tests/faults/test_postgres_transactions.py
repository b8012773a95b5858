"""Submissions in a transaction of the caller: they are committed with the caller's rows, or not at all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from flowfabric_worker import Client, Worker
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ConflictError
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.types.submission import Created
from tests.support.dumps import dump_of
from tests.support.executions import claim_one, created, creation, depths, refused, request
from tests.support.postgres import PostgresServer
from tests.support.servers import wait_until
from tests.support.threads import together

Connect = Callable[..., psycopg.Connection[Any]]


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """Provide the URL of a schema that no other test uses."""
    return f"{postgres.url}&schema=t{uuid4().hex[:12]}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url, retry_for=0)
    engine.prepare()
    yield engine
    engine.close()


@pytest.fixture
def connect(postgres: PostgresServer) -> Iterator[Connect]:
    """Provide a function that opens connections of a caller."""
    opened: list[psycopg.Connection[Any]] = []

    def connect(**options: Any) -> psycopg.Connection[Any]:
        named = {"host": str(postgres.folder), "user": "postgres", "dbname": "postgres", **options}
        opened.append(psycopg.connect(**named))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


def shop(url: str) -> Worker:
    worker = Worker("shop", url)

    @worker.task
    def pack(order_id: int) -> str:
        return f"parcel {order_id}"

    return worker


# With rows of the caller ---------------------------------------------------------------------------------------------


def test_a_task_runs_after_the_commit_and_not_before(url: str, connect: Connect) -> None:
    worker = shop(url)
    pack = worker.tasks["shop.pack"]
    table = f"orders_{uuid4().hex[:8]}"
    with connect() as conn, conn.transaction():
        conn.execute(f"CREATE TABLE {table} (id int)")  # type: ignore[arg-type]
        conn.execute(f"INSERT INTO {table} VALUES (7)")  # type: ignore[arg-type]
        runs = [
            pack.submit(7, connection=conn),
            pack.options(connection=conn, key="k").submit(8),
            *pack.submit_many([(9,), (10,)], connection=conn),
            *pack.options(connection=conn).submit_many([(11,)]),
        ]
        worker.run_until_idle()
        assert [run.state() for run in runs] == [None] * 5
        assert all(run.created for run in runs)
    worker.run_until_idle()
    assert [run.result(5) for run in runs] == [f"parcel {number}" for number in (7, 8, 9, 10, 11)]
    worker.close()


def test_a_client_submits_in_a_transaction(url: str, connect: Connect) -> None:
    with Client(url) as client:
        with connect(row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as conn:
            run = client.submit("shop.pack", [7], force=True, connection=conn)
            many = client.submit_many("shop.pack", [[1], [2]], force=True, connection=conn)
            assert client.get(run.id) is None
        assert [each.state() for each in (run, *many)] == ["waiting"] * 3


def test_a_rolled_back_submission_leaves_no_trace(engine: Engine, connect: Connect) -> None:
    created(engine)
    before = dump_of(engine)
    conn = connect()
    engine.create_in_transaction(conn, [creation(idempotency_key="k", tags={"a": "b"}), creation()])
    conn.rollback()
    assert dump_of(engine) == before
    with conn.transaction(), conn.transaction():
        engine.create_in_transaction(conn, [creation()])
        raise psycopg.Rollback
    assert dump_of(engine) == before


def test_a_connection_with_autocommit_commits_at_once(engine: Engine, connect: Connect) -> None:
    (result,) = engine.create_in_transaction(connect(autocommit=True), [creation()])
    assert claim_one(engine).execution_id == result.execution_id  # type: ignore[union-attr]


def test_more_executions_than_one_call_takes_are_created_together(engine: Engine, connect: Connect) -> None:
    conn = connect()
    engine.create_in_transaction(conn, [creation() for _ in range(250)])
    assert depths(engine, creation().lane) == {}
    conn.commit()
    assert list(depths(engine, creation().lane).values()) == [250]


# Beside others -------------------------------------------------------------------------------------------------------


def test_open_transactions_hold_up_neither_each_other_nor_workers(engine: Engine, connect: Connect) -> None:
    first, second = connect(), connect()
    for conn in (first, second):
        conn.execute("SET lock_timeout = 2000")
    # The longest wait of a lock that the other calls may have is below their time limit.
    began = time.monotonic()
    for conn in (first, second):
        for lane in ("new", "newer"):
            engine.create_in_transaction(conn, [creation(lane=lane), creation(lane=lane, delay=timedelta(seconds=1))])
    for _ in range(5):
        created(engine, lane="new")
        engine.complete(claim_one(engine, "new").handle)
    assert engine.claim_many(request("new", "newer", max_wait=timedelta(milliseconds=50))) == []
    engine.run_upkeep()
    assert engine.pause_lane("new")
    assert engine.resume_lane("new")
    assert time.monotonic() - began < 4
    second.commit()
    first.commit()
    for lane in ("new", "newer"):
        assert len(engine.claim_many(request(lane, limit=9))) == 2


def test_a_waiting_worker_is_woken_by_the_commit(engine: Engine, url: str, connect: Connect) -> None:
    created(engine)
    engine.complete(claim_one(engine).handle)
    conn = connect()
    engine.create_in_transaction(conn, [creation()])
    found: list[float] = []
    other = open_engine(url)

    def wait() -> None:
        # It registers after the submission, so only a look at the commit sees it.
        if other.claim_many(request(worker="w2", max_wait=timedelta(seconds=9))):
            found.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    assert isinstance(engine.store, PostgresStore)
    query = f"SELECT count(*) FROM {engine.store.schema}.waiters"
    with connect(autocommit=True) as look:
        wait_until(lambda: look.execute(query).fetchone() == (1,), "it waits")  # type: ignore[arg-type]
    assert found == []
    committed = time.monotonic()
    conn.commit()
    thread.join(10)
    assert found
    # Without a wake-up it looks after two seconds, when its next entry is due.
    assert found[0] - committed < 1
    other.close()


def test_a_commit_succeeds_though_waiters_cannot_be_woken(engine: Engine, connect: Connect) -> None:
    created(engine)
    claim_one(engine)
    conn, blocker = connect(), connect()
    assert isinstance(engine.store, PostgresStore)
    conn.execute("SET lock_timeout = 100")
    engine.create_in_transaction(conn, [creation()])
    blocker.execute(
        f"SELECT pg_advisory_xact_lock('{engine.store.schema}.waiters'::regclass::oid::int, 0)"  # type: ignore[arg-type]
    )
    conn.commit()
    claim_one(engine)


def test_transactions_that_end_in_both_ways_beside_workers_lose_nothing(engine: Engine, connect: Connect) -> None:
    until = time.monotonic() + 2
    committed: list[str] = []
    taken: list[str] = []

    def submit(number: int) -> None:
        draw, conn = random.Random(number), connect()
        while time.monotonic() < until:
            ids = []
            for _ in range(3):
                asked = [creation(lane=draw.choice("abc"), idempotency_key=f"{number} {uuid4()}") for _ in range(3)]
                results = engine.create_in_transaction(conn, asked)
                ids += [str(result.execution_id) for result in results if isinstance(result, Created)]
                time.sleep(0.02 * draw.random())
            if draw.random() < 0.5:
                conn.commit()
                committed.extend(ids)
            else:
                conn.rollback()

    def work(number: int) -> int:
        claimed = engine.claim_many(request(*"abc", limit=9, worker=f"w{number}"))
        for each in claimed:
            engine.complete(each.handle)
            taken.append(str(each.execution_id))
        engine.run_upkeep()
        return len(claimed)

    def act(number: int) -> None:
        if number < 4:
            submit(number)
        while time.monotonic() < until:
            work(number)

    together(6, act)
    while work(0):
        pass
    assert len(committed) > 20
    assert sorted(taken) == sorted(committed)


def test_a_key_stands_for_the_execution_that_was_committed(url: str, connect: Connect) -> None:
    worker = shop(url)
    pack = worker.tasks["shop.pack"].options(key="k")
    first = pack.submit(7)
    with connect() as conn:
        again = pack.submit(7, connection=conn)
        assert (again.id, again.created) == (first.id, False)
        with pytest.raises(ConflictError) as caught:
            pack.submit(8, connection=conn)
        assert caught.value.code == "key_conflict"
        # The conflict is an answer and not an error of the server, so the transaction goes on.
        assert conn.execute("SELECT 1").fetchone() == (1,)
    worker.close()


def test_a_key_in_an_open_transaction_is_waited_for(engine: Engine, connect: Connect) -> None:
    first, second = connect(), connect()
    engine.create_in_transaction(first, [creation(idempotency_key="k")])
    second.execute("SET LOCAL lock_timeout = 100")
    with refused("store_busy") as caught:
        engine.create_in_transaction(second, [creation(idempotency_key="k")])
    assert "lock timeout" in str(caught.value)
    assert "\n" not in str(caught.value)
    # An error of the server makes the transaction fail.
    assert "has failed" in refused_connection(engine, second)
    second.rollback()
    first.rollback()
    (result,) = engine.create_in_transaction(second, [creation(idempotency_key="k")])
    assert isinstance(result, Created)


# Refusals ------------------------------------------------------------------------------------------------------------


def refused_connection(engine: Engine, connection: Any) -> str:
    before = dump_of(engine)
    with refused("invalid_input") as caught:
        engine.create_in_transaction(connection, [creation(lane="unknown")])
    assert dump_of(engine) == before
    return str(caught.value)


def test_a_connection_that_cannot_be_used_is_refused(engine: Engine, connect: Connect) -> None:
    closed, failed, strict, reading = connect(), connect(), connect(), connect()
    closed.close()
    with pytest.raises(psycopg.errors.DivisionByZero):
        failed.execute("SELECT 1 / 0")
    strict.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    reading.read_only = True
    assert "is closed" in refused_connection(engine, closed)
    assert "has failed" in refused_connection(engine, failed)
    assert "READ COMMITTED" in refused_connection(engine, strict)
    assert "read-only" in refused_connection(engine, reading)
    assert "driver_connection" in refused_connection(engine, object())


def test_a_connection_to_another_database_is_refused(
    postgres: PostgresServer, engine: Engine, connect: Connect
) -> None:
    name = f"d{uuid4().hex[:12]}"
    with postgres.session() as session:
        session.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
    conn = connect(dbname=name)
    assert "another database" in refused_connection(engine, conn)
    # The transaction of the caller goes on.
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_user_needs_the_right_to_call_functions_alone(
    postgres: PostgresServer, engine: Engine, connect: Connect
) -> None:
    assert isinstance(engine.store, PostgresStore)
    role, functions = f"r{uuid4().hex[:12]}", engine.store.library.schema_of(engine.store.schema)
    grant = f'GRANT USAGE ON SCHEMA "{functions}" TO "{role}"'
    with postgres.session() as session:
        session.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[arg-type]
        conn = connect(user=role)
        assert grant in refused_connection(engine, conn)
        session.execute(grant)  # type: ignore[arg-type]
    engine.create_in_transaction(conn, [creation()])
    conn.commit()
    claim_one(engine)


def test_a_store_without_such_transactions_refuses_the_connection() -> None:
    worker = shop("memory://")
    with refused("invalid_input") as caught:
        worker.tasks["shop.pack"].submit(7, connection=object())
    assert "postgresql://" in str(caught.value)
    worker.close()


def test_a_parameter_named_connection_belongs_to_the_task() -> None:
    worker = Worker("shop", "memory://")

    @worker.task
    def dial(connection: str) -> str:
        return connection

    with worker.in_memory():
        run = dial.submit(connection="home")
        worker.run_until_idle()
        assert run.result() == "home"
