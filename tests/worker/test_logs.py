"""Log records: those of a run say which one it is, and none tells a secret."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import ExecutionLogFilter, RetryPolicy, Worker, current
from flowfabric_worker._runtime.log_filter import ExecutionLogFormatter
from tests.support.observation import ended
from tests.support.servers import ValkeyServer, free_ports, running, wait_until
from tests.worker.conftest import Start

FIELDS = ("ff_execution_id", "ff_task", "ff_lane", "ff_attempt")


class Kept(logging.Handler):
    """Keeps every record that it is given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def fields_of(self, message: str) -> list[tuple[Any, ...]]:
        """Return the ids of the records whose message has this part; None where a record has none."""
        return [
            tuple(getattr(record, field, None) for field in FIELDS)
            for record in self.records
            if message in record.getMessage()
        ]


@pytest.fixture
def kept() -> Iterator[Kept]:
    """Provide everything that any logger logs, through the filter that an application puts on its handlers."""
    kept = Kept()
    kept.addFilter(ExecutionLogFilter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    yield kept
    root.removeHandler(kept)
    root.setLevel(level)


def test_records_of_any_logger_inside_a_handler_carry_the_ids_of_its_run(
    served: Worker, start: Start, kept: Kept
) -> None:
    library = logging.getLogger("some.library")

    @served.task(lane="mail", retry=RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(milliseconds=1)))
    def send() -> None:
        library.info("sending")
        if current().attempt == 0:
            raise ValueError("once more")

    start(served)
    run = send.submit()
    run.result(10)

    assert kept.fields_of("sending") == [(str(run.id), "shop.send", "mail", attempt) for attempt in (0, 1)]


def test_runs_side_by_side_keep_their_own_ids(served: Worker, start: Start, kept: Kept) -> None:
    together = threading.Barrier(3)

    @served.task
    def side_by_side(number: int) -> None:
        together.wait(10)
        logging.getLogger("some.library").info("number %s", number)
        together.wait(10)

    start(served, threads=3)
    runs = side_by_side.submit_many((number,) for number in range(3))
    for run in runs:
        run.result(10)

    for number, run in enumerate(runs):
        assert kept.fields_of(f"number {number}") == [(str(run.id), "shop.side_by_side", "default", 0)]


def test_records_outside_of_runs_carry_no_ids(served: Worker, start: Start, kept: Kept) -> None:
    served.task(name="add")(lambda a: a + 1)
    start(served, threads=1)
    served.tasks["add"].submit(1).result(10)
    logging.getLogger("some.library").info("outside")
    # A plain call is no run of an execution.
    served.task(name="plain")(lambda: logging.getLogger("some.library").info("a plain call"))()

    assert kept.fields_of("outside") == [(None,) * 4]
    assert kept.fields_of("a plain call") == [(None,) * 4]
    assert kept.fields_of("takes work from") == [(None,) * 4]


def test_the_logger_of_a_run_carries_its_ids_also_without_a_filter(
    served: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = served.task(name="say")(lambda: current().log.info("hello")).submit()
    start(served)
    run.result(10)

    (record,) = [record for record in caplog.records if record.getMessage() == "hello"]
    assert [getattr(record, field) for field in FIELDS] == [str(run.id), "say", "default", 0]


def test_what_the_runtime_logs_of_a_run_carries_its_ids(
    served: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    begun, over = threading.Event(), threading.Event()

    @served.task
    def broken() -> None:
        raise ValueError("boom")

    @served.task
    def lost() -> None:
        begun.set()
        over.wait(10)

    start(served)
    runs = {"failed for good: ValueError: boom": broken.submit(), "which does not count": lost.submit()}
    ended(served, runs["failed for good: ValueError: boom"])
    assert begun.wait(10)
    runs["which does not count"].cancel()
    over.set()

    for message, run in runs.items():
        wait_until(lambda message=message: message in caplog.text, "it is logged")
        (record,) = [record for record in caplog.records if message in record.getMessage()]
        name = "shop.broken" if "boom" in message else "shop.lost"
        assert [getattr(record, field) for field in FIELDS] == [str(run.id), name, "default", 0]


def test_a_record_keeps_the_ids_that_it_has(kept: Kept) -> None:
    logging.getLogger("some.library").info("mine", extra={"ff_execution_id": "a", "ff_task": "b"})

    assert kept.fields_of("mine") == [("a", "b", None, None)]


def test_the_formatter_puts_the_ids_behind_messages_that_have_them() -> None:
    formatter = ExecutionLogFormatter("%(levelname)s %(message)s")
    record = logging.makeLogRecord({"msg": "sent %s", "args": ("it",), "levelname": "INFO"})

    assert formatter.format(record) == "INFO sent it"
    record.ff_execution_id, record.ff_task, record.ff_lane, record.ff_attempt = "e1", "send", "mail", 2
    assert formatter.format(record) == "INFO sent it [task=send lane=mail attempt=2 execution_id=e1]"


def test_no_record_tells_the_password_of_the_store(start: Start, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.outage_log.LOG_EVERY", 0.0)
    secret = "hunter2-hunter2"
    (port,) = free_ports(1)
    with running(ValkeyServer(port=port)) as server:
        server.client().execute_command("ACL", "SETUSER", "app", "on", f">{secret}", "~*", "&*", "+@all")
        worker = Worker("shop", f"valkey://app:{secret}@127.0.0.1:{port}")
        add = worker.task(name="add")(lambda a: a + 1)
        runtime = start(worker, lease=timedelta(seconds=1))
        assert add.submit(1).result(10) == 2
        server.kill()
        wait_until(lambda: kept.fields_of("Claiming fails"), "the store is missed")
        # It comes back and knows the user no more, so the password is refused.
        server.start()
        wait_until(lambda: kept.fields_of("refused the user or the password"), "the password is refused")
        runtime.stop(timedelta())
        worker.close()
    told = [logging.Formatter().format(record) for record in kept.records]

    assert len(told) > 5
    assert not [text for text in told if secret in text]
