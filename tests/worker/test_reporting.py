"""What the worker logs: nothing that an application does with log records, or with exceptions, stops its work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from flowfabric_worker import Cancel, Delay, ExecutionFailed, RetryPolicy, Runtime, Worker, current
from flowfabric_worker.engine import log_queue as reporting
from tests.support.observation import ended
from tests.support.servers import wait_until
from tests.worker.conftest import RunAll, Start, each_way

ONCE_MORE = RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(milliseconds=1))


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End what hangs when the test ends."""
    over = threading.Event()
    yield over
    over.set()


@pytest.fixture
def filtered() -> Iterator[Callable[[Callable[[logging.LogRecord], bool]], None]]:
    """Put a filter on every line that the package logs."""
    handler = logging.NullHandler()
    handler.handle = handler.filter  # type: ignore[method-assign, assignment]  # a NullHandler asks no filter
    logger = logging.getLogger("flowfabric_worker")
    logger.addHandler(handler)
    yield handler.addFilter
    logger.removeHandler(handler)


def good_work_goes_on(worker: Worker, start: Start, **settings: Any) -> Runtime:
    """Run tasks that fail, which the worker logs, and then one that does not, on the same thread."""

    @worker.task(retry=ONCE_MORE)
    def broken() -> None:
        raise ValueError("boom")

    add = worker.task(name="add")(lambda a: a + 1)
    runtime = start(worker, threads=1, **settings)
    for run in broken.submit_many([()] * 3):
        with pytest.raises(ExecutionFailed, match="ValueError: boom"):
            run.result(10)
    assert add.submit(1).result(10) == 2
    return runtime


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, BaseException])
def test_a_log_filter_that_raises_changes_no_outcome(
    worker: Worker, start: Start, filtered: Any, capfd: pytest.CaptureFixture[str], raised: type[BaseException]
) -> None:
    def refuse(_: logging.LogRecord) -> bool:
        raise raised

    filtered(refuse)
    runtime = good_work_goes_on(worker, start)
    runtime.stop(timedelta())
    printed = capfd.readouterr().err

    assert "failed for good: ValueError: boom" in printed
    assert f"a log handler, filter or record factory of the application raised {raised.__name__}." in printed


def test_a_log_filter_that_hangs_stops_no_thread_of_the_worker(
    worker: Worker, start: Start, filtered: Any, over: threading.Event
) -> None:
    filtered(lambda _: over.wait(30))
    begun = threading.Event()

    @worker.task
    def long() -> bool:
        begun.set()
        return over.wait(2.5)

    runtime = good_work_goes_on(worker, start, lease=timedelta(seconds=1))
    run = long.submit()
    assert begun.wait(10)
    # Its lease is renewed meanwhile, although the keeper logs too.
    assert run.result(10) is False
    runtime.stop(timedelta(seconds=1))
    assert not over.is_set()


@pytest.mark.parametrize("name", ["task", "lane", "execution_id", "ff_task"])
def test_a_record_factory_that_sets_fields_of_ours_changes_no_outcome(
    worker: Worker, start: Start, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    former = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = former(*args, **kwargs)
        setattr(record, name, "mine")
        return record

    logging.setLogRecordFactory(make)
    try:
        good_work_goes_on(worker, start)
        wait_until(lambda: caplog.text.count(": ValueError: boom") == 6, "each failure is logged")
    finally:
        logging.setLogRecordFactory(former)


def test_lines_are_dropped_and_counted_while_a_log_handler_hangs(
    filtered: Any, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MAX_WAITING", 5)
    seen: list[str] = []

    def slow(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        return over.wait(30)

    filtered(slow)
    log = reporting.Log("flowfabric_worker.here")
    reporting.start()
    log.warning("first")
    wait_until(lambda: seen, "the handler hangs")
    for number in range(20):
        log.warning("line %s", number)
    over.set()
    reporting.stop(10)

    told = "15 log lines were dropped, because the application's log handlers are too slow."
    assert seen == ["first", told, *(f"line {number}" for number in range(15, 20))]


def test_a_flush_waits_for_the_lines_before_it_and_not_for_ever(filtered: Any, over: threading.Event) -> None:
    seen: list[str] = []
    filtered(lambda record: over.wait(30) and not seen.append(record.getMessage()))
    reporting.start()
    reporting.Log("flowfabric_worker.here").warning("line")
    reporting.flush(0.01)
    assert seen == []
    over.set()
    reporting.flush(10)
    assert seen == ["line"]
    reporting.stop(10)


# Exceptions that do not want to be told


class TextError(Exception):
    def __str__(self) -> str:
        raise SystemExit("the text")

    __repr__ = __str__


class TracebackError(Exception):
    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise SystemExit("the traceback")

    @__traceback__.setter
    def __traceback__(self, _: object) -> None:
        """Forgets it."""


class CauseError(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise SystemExit("the cause")


class NotesError(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit("the notes")


class DisguisedError(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit("the class")


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit("the name")


class NamedError(Exception, metaclass=Nameless):
    pass


class Odd(str):
    def __format__(self, _: str) -> str:
        raise SystemExit("the format")

    __str__ = encode = __getitem__ = __format__  # type: ignore[assignment]


class OddTextError(Exception):
    def __str__(self) -> str:
        return Odd("odd")


@each_way
@pytest.mark.parametrize(
    "kind",
    [TextError, TracebackError, CauseError, NotesError, DisguisedError, NamedError, OddTextError],
    ids=["text", "traceback", "cause", "notes", "class", "name", "odd text"],
)
def test_an_exception_that_refuses_to_be_told_is_a_failure_like_others(
    worker: Worker, start: Start, run_all: RunAll, kind: type[Exception]
) -> None:
    @worker.task(retry=ONCE_MORE)
    def broken() -> None:
        raise kind("told")

    add = worker.task(name="add")(lambda a: a + 1)
    run, good = broken.submit(), add.submit(1)
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match=type.__dict__["__name__"].__get__(kind)):
        run.result(10)
    assert good.result(10) == 2


class Unmade(timedelta):
    def __floordiv__(self, _: object) -> Any:
        raise SystemExit("the arithmetic")

    __truediv__ = __mod__ = __divmod__ = __floordiv__


class Somewhere(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        if threading.current_thread().name.endswith("committer"):
            raise SystemExit("the zone")
        return timedelta()


@each_way
@pytest.mark.parametrize("way", ["changed", "zone", "reason", "empty"])
def test_an_outcome_with_values_that_refuse_harms_its_own_execution_alone(
    worker: Worker, start: Start, run_all: RunAll, way: str
) -> None:
    @worker.task
    def leaving() -> None:
        if current().kind == "resumed":
            return
        exit_ = Delay(datetime(2000, 1, 1, tzinfo=Somewhere()))
        if way == "changed":
            exit_.until = Unmade(seconds=1)
        elif way == "reason":
            raise Cancel(OddTextError())
        elif way == "empty":
            del exit_.until
        raise exit_

    add = worker.task(name="add")(lambda a: a + 1)
    run, good = leaving.submit(), add.submit(1)
    run_all(worker, start)

    assert good.result(10) == 2
    assert ended(worker, run).public_state.is_terminal
