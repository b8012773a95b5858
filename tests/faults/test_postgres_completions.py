"""Handlers with a transaction: what they write is committed with the completion of their execution, or not at all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from flowfabric_worker import Delay, ExecutionFailed, RetryPolicy, Run, Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.support.pages import ROOT
from tests.support.postgres import PostgresServer
from tests.support.servers import wait_until

Start = Callable[..., Runtime]
RETRYING = RetryPolicy(max_retries=3)


@pytest.fixture
def table(postgres: PostgresServer) -> str:
    """Provide the name of a table with one column, which is unique when a transaction commits."""
    name = f"t{uuid4().hex[:12]}"
    with postgres.session() as session:
        session.execute(f"CREATE TABLE {name} (entry text UNIQUE DEFERRABLE INITIALLY DEFERRED)")  # type: ignore[arg-type]
    return name


@pytest.fixture
def rows(postgres: PostgresServer, table: str) -> Callable[[], list[str]]:
    """Provide what was committed."""

    def read() -> list[str]:
        with postgres.session() as session:
            return [row[0] for row in session.execute(f"SELECT entry FROM {table} ORDER BY 1").fetchall()]  # type: ignore[arg-type]

    return read


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    postgres.empty_schema("ff")
    return postgres.url


@pytest.fixture
def worker(url: str) -> Iterator[Worker]:
    worker = Worker("shop", url)
    yield worker
    worker.close()


@pytest.fixture
def start(worker: Worker) -> Iterator[Start]:
    started: list[Runtime] = []

    def start(**settings: Any) -> Runtime:
        started.append(Runtime(worker, WorkerSettings(**{"threads": 1, **settings})))
        started[-1].start()
        return started[-1]

    yield start
    for runtime in started:
        runtime.stop(timedelta())


def insert(table: str, entry: str) -> psycopg.Connection[Any]:
    """Write an entry in the transaction of the handler."""
    connection: psycopg.Connection[Any] = current().transaction()
    connection.execute(f"INSERT INTO {table} VALUES (%s)", (entry,))  # type: ignore[arg-type]
    return connection


def sessions(postgres: PostgresServer) -> int:
    """Return how many sessions of the library are in a transaction."""
    with postgres.session() as session:
        row = session.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flowfabric_worker' AND state LIKE "
            "'idle in transaction%'"
        ).fetchone()
    assert row is not None
    return int(row[0])


# Together or not at all ----------------------------------------------------------------------------------------------


def test_what_a_handler_wrote_appears_with_its_result(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]], postgres: PostgresServer
) -> None:
    seen: list[list[str]] = []

    @worker.task
    def ship(order: str) -> str:
        insert(table, order)
        seen.append(rows())
        return f"shipped {order}"

    start()
    assert ship.submit("7").result(20) == "shipped 7"
    assert seen == [[]]
    assert rows() == ["7"]
    wait_until(lambda: not sessions(postgres), "the transaction is over")


@pytest.mark.parametrize("leaves", [ValueError("no"), Delay(timedelta(milliseconds=50)), SystemExit(1)], ids=type)
def test_a_handler_that_raises_writes_nothing(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]], leaves: BaseException
) -> None:
    leaving = [leaves]

    @worker.task(retry=RETRYING)
    def ship(order: str) -> int:
        attempt = current().attempt
        insert(table, f"{order} {len(leaving)}")
        if leaving:
            raise leaving.pop()
        return attempt

    start()
    ship.submit("7").result(20)
    assert rows() == ["7 0"]


def test_a_handler_whose_lease_was_lost_writes_nothing(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]]
) -> None:
    runs: list[Run[None]] = []
    cancelled = []

    @worker.task
    def ship() -> None:
        insert(table, "7")
        if not cancelled:
            # The worker is told of it, and the store refuses in any case.
            worker.engine.cancel_execution(CancelExecutionArgs(execution_id=runs[0].id))
            cancelled.append(True)

    runs.append(ship.submit())
    start()
    wait_until(
        lambda: cancelled and worker.engine.read_execution_state(runs[0].id) is PublicState.CANCELLED, "it is cancelled"
    )
    assert rows() == []
    ship.submit().result(20)
    assert rows() == ["7"]


def test_rows_that_the_database_refuses_at_the_commit_fail_the_attempt(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]]
) -> None:
    @worker.task
    def ship(order: str) -> None:
        insert(table, order)

    start()
    ship.submit("7").result(20)
    with pytest.raises(ExecutionFailed, match="UniqueViolation"):
        ship.submit("7").result(20)
    assert rows() == ["7"]


def test_submissions_in_the_transaction_appear_with_the_result(worker: Worker, start: Start, table: str) -> None:
    @worker.task
    def pack(order: str) -> str:
        return f"packed {order}"

    @worker.task
    def ship(fails: bool) -> None:
        pack.options(key="7", connection=insert(table, "7")).submit("7")
        if fails:
            raise ValueError

    start(threads=2)
    with pytest.raises(ExecutionFailed):
        ship.submit(True).result(20)
    assert [each.task for each in worker.engine.list_executions().executions] == ["shop.ship"]
    ship.submit(False).result(20)
    assert pack.options(key="7").submit("7").result(20) == "packed 7"


# Commit, rollback and close of the connection ------------------------------------------------------------------------


def test_a_commit_of_the_handler_counts_with_its_return(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]]
) -> None:
    seen: list[list[str]] = []

    @worker.task
    def ship(fails: bool) -> None:
        with insert(table, "a") as connection:
            connection.commit()
            connection.execute(f"INSERT INTO {table} VALUES ('b')")
            connection.rollback()
            with connection.transaction():
                connection.execute(f"INSERT INTO {table} VALUES ('c')")
        seen.append(rows())
        if fails:
            raise ValueError

    start()
    with pytest.raises(ExecutionFailed):
        ship.submit(True).result(20)
    assert rows() == []
    ship.submit(False).result(20)
    assert seen == [[], []]
    assert rows() == ["a", "c"]


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN"])
def test_a_transaction_that_a_statement_ended_fails_for_good(
    worker: Worker, start: Start, table: str, statement: str
) -> None:
    @worker.task(retry=RETRYING)
    def ship() -> None:
        insert(table, "7").execute(statement)  # type: ignore[arg-type]

    start()
    with pytest.raises(ExecutionFailed, match="leave COMMIT and ROLLBACK out"):
        ship.submit().result(20)


def test_an_error_of_the_database_that_the_handler_caught_fails_for_good(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]]
) -> None:
    @worker.task
    def ship() -> None:
        connection = insert(table, "7")
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT 1 / 0")

    start()
    with pytest.raises(ExecutionFailed, match="A statement failed in the transaction"):
        ship.submit().result(20)
    assert rows() == []


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_second_transaction_of_a_run_is_refused(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]]
) -> None:
    @worker.task
    def ship() -> None:
        insert(table, "7")
        current().transaction()

    start()
    with pytest.raises(ExecutionFailed, match="completes in one transaction"):
        ship.submit().result(20)
    assert rows() == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: current().step("s", int),
        lambda: current().sleep(timedelta(seconds=1)),
        lambda: current().wait_for("w"),
    ],
    ids=["step", "sleep", "wait_for"],
)
def test_a_durable_call_after_the_transaction_is_refused(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]], call: Callable[[], object]
) -> None:
    @worker.task
    def ship() -> None:
        insert(table, "7")
        call()

    start()
    with pytest.raises(ExecutionFailed, match="was made after transaction"):
        ship.submit().result(20)
    assert rows() == []


def test_a_transaction_inside_a_step_is_refused(worker: Worker, start: Start) -> None:
    @worker.task
    def ship() -> None:
        current().step("s", lambda: current().transaction() and None)

    start()
    with pytest.raises(ExecutionFailed, match="inside the step"):
        ship.submit().result(20)


def test_other_stores_and_plain_calls_have_no_transaction() -> None:
    worker = Worker("shop", "memory://")

    @worker.task(retry=RETRYING)
    def ship() -> None:
        current().transaction()

    run = ship.submit()
    worker.run_until_idle()
    with pytest.raises(ExecutionFailed, match="needs a postgresql:// store, and this is a memory store"):
        run.result(5)
    with pytest.raises(RuntimeError, match="durable execution"):
        ship()
    worker.close()


# Lost connections and killed processes -------------------------------------------------------------------------------

_AT = ("before the completion", "before the commit", "after the commit")


def test_a_session_that_was_terminated_before_the_end_runs_again(
    worker: Worker, start: Start, table: str, rows: Callable[[], list[str]], postgres: PostgresServer
) -> None:
    attempts: list[int] = []

    @worker.task
    def ship() -> None:
        connection = insert(table, "7")
        attempts.append(current().attempt)
        if len(attempts) == 1:
            with postgres.session() as session:
                session.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    start()
    ship.submit().result(20)
    assert rows() == ["7"]
    assert attempts == [0, 0]


@pytest.mark.parametrize("reached", [False, True], ids=["lost", "answer lost"])
def test_a_commit_whose_answer_was_lost_counts_once(
    worker: Worker,
    start: Start,
    table: str,
    rows: Callable[[], list[str]],
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    reached: bool,
) -> None:
    from flowfabric_worker.engine.stores.postgres_transactions import HandlerConnection

    commit, cut = HandlerConnection.commit, list[int]()

    def cutting(connection: HandlerConnection) -> None:
        if cut:
            commit(connection)
            return
        if reached:
            commit(connection)
        cut.append(connection.info.backend_pid)
        with postgres.session() as session:
            session.execute("SELECT pg_terminate_backend(%s)", (cut[0],))
        connection.execute("SELECT 1")

    monkeypatch.setattr(HandlerConnection, "commit", cutting)
    ran: list[int] = []

    @worker.task
    def ship() -> str:
        insert(table, "7")
        ran.append(1)
        return "done"

    start()
    assert ship.submit().result(20) == "done"
    assert rows() == ["7"]
    assert len(ran) == (1 if reached else 2)


_APP = """
import os, signal, sys
from datetime import timedelta
from flowfabric_worker import Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.stores.postgres_transactions import HandlerConnection, HandlerTransaction

url, table, moment = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
call, commit = HandlerTransaction.call, HandlerConnection.commit


def calling(*arguments):
    if moment == "before the completion":
        die()
    return call(*arguments)


def committing(connection):
    if moment == "before the commit":
        die()
    commit(connection)
    if moment == "after the commit":
        die()


HandlerTransaction.call, HandlerConnection.commit = calling, committing
worker = Worker("shop", url)


@worker.task(lease=timedelta(seconds=1))
def ship(order: str) -> str:
    current().transaction().execute(f"INSERT INTO {table} VALUES ('{order}')")
    return "done"


if moment:
    Runtime(worker, WorkerSettings(threads=1)).run()
"""


@pytest.mark.parametrize("moment", _AT)
def test_rows_are_written_once_when_the_process_is_killed(
    url: str, table: str, rows: Callable[[], list[str]], worker: Worker, start: Start, moment: str
) -> None:
    @worker.task(lease=timedelta(seconds=1))
    def ship(order: str) -> str:
        insert(table, order)
        return "done"

    run = ship.submit("7")
    app = subprocess.run(
        [sys.executable, "-c", _APP, url, table, moment],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=30,
        check=False,
    )
    assert app.returncode == -signal.SIGKILL
    assert rows() == (["7"] if moment == "after the commit" else [])
    start()
    assert run.result(20) == "done"
    assert rows() == ["7"]
