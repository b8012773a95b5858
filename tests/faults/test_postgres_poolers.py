"""Work behind a pooler: a stand-in for PgBouncer, and PgBouncer itself if $FLOWFABRIC_TEST_PGBOUNCER names it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.engine import open_engine
from tests.support import pgbouncer
from tests.support.pgbouncer import PgBouncer
from tests.support.pooler import Pooler
from tests.support.postgres import PostgresServer

Start = Callable[[Path, str], "Pooler | PgBouncer"]
POOLERS: list[Start] = [Pooler, *([PgBouncer] if pgbouncer.PROGRAM else [])]
each_pooler = pytest.mark.parametrize("start", POOLERS)


@contextmanager
def at_work(worker: Worker) -> Iterator[None]:
    runtime = Runtime(worker, WorkerSettings(threads=2))
    runtime.start()
    try:
        yield
    finally:
        runtime.stop(timedelta())
        worker.close()


def rows(postgres: PostgresServer, query: str) -> list[tuple[Any, ...]]:
    with postgres.session() as session:
        return session.execute(query).fetchall()  # type: ignore[arg-type]


@each_pooler
def test_workers_behind_a_pooler_work_and_say_that_they_hear_nothing(
    start: Start, postgres: PostgresServer, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []
    with start(postgres.folder, "transaction") as pooler:
        worker = Worker("shop", f"{pooler.url}&schema={schema}")

        @worker.task
        def work(number: int) -> int:
            attempts.append(number)
            return int(current().step("double", lambda: 2 * number))

        with at_work(worker):
            assert work.submit(1).result(20) == 2
            runs = work.submit_many([(number,) for number in range(2, 60)])
            assert [run.result(20) for run in runs] == [2 * number for number in range(2, 60)]
            begun = time.monotonic()
            work.options(delay=timedelta(seconds=1)).submit(60).result(20)
            assert time.monotonic() - begun < 5
            held = rows(
                postgres,
                "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
                f"AND state = 'idle' AND query LIKE '%{schema}%'",
            )
    assert held == []
    assert sorted(attempts) == list(range(1, 61))
    assert "is behind a pooler in transaction mode" in caplog.text


@each_pooler
def test_workers_behind_a_pooler_of_sessions_hear(
    start: Start, postgres: PostgresServer, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    with start(postgres.folder, "session") as pooler:
        worker = Worker("shop", f"{pooler.url}&schema={schema}")

        @worker.task
        def work(number: int) -> int:
            return number

        with at_work(worker):
            assert [work.submit(number).result(20) for number in range(20)] == list(range(20))
            assert worker.engine.store.info().warnings == ()
            subscription = worker.engine.store.subscribe("topic")
            worker.engine.store.wake("topic", b"message")
            assert subscription.wait(10) == [b"message"]
            subscription.close()
    assert "pooler" not in caplog.text


@each_pooler
def test_handlers_behind_a_pooler_use_transactions_one_after_the_other(
    start: Start, postgres: PostgresServer, schema: str
) -> None:
    with start(postgres.folder, "transaction") as pooler:
        worker = Worker("shop", f"{pooler.url}&schema={schema}")

        @worker.task
        def count(number: int) -> int:
            # The driver prepares a statement that it runs more than five times, unless it is told not to.
            with current().transaction() as connection:
                for _ in range(8):
                    connection.execute("SELECT %s", (number,))
                (found,) = connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
            return int(found)

        with at_work(worker):
            assert [count.submit(number).result(20) for number in range(4)] == [0, 0, 0, 0]


@each_pooler
def test_check_says_that_a_process_behind_a_pooler_hears_nothing(
    start: Start, postgres: PostgresServer, schema: str
) -> None:
    with start(postgres.folder, "transaction") as pooler:
        engine = open_engine(f"{pooler.url}&schema={schema}")
        engine.prepare()
        (warning,) = engine.store.info().warnings
        engine.close()
    assert "Name the server itself, or let the pooler pool sessions" in warning
