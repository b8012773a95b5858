"""What the worker says of itself: how executions ended, when it starts, and what a stop waits for."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from flowfabric_worker import Cancel, RetryPolicy, Worker
from flowfabric_worker._runtime import execution_log
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.execution_log import MOST_COMPLETIONS, MOST_OTHERS, Ended, ExecutionLog, short, spoken
from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker._runtime.log_filter import EXECUTION_LOG, ExecutionLogFormatter
from flowfabric_worker.engine.types.attempts import FailureReason
from tests.support.executions import claim_one
from tests.support.servers import wait_until
from tests.worker.conftest import Start

BOOM = FailureReason(message="ValueError: boom", detail=b"Traceback of boom\n")
SOON = RetryPolicy(max_retries=3, initial=timedelta(milliseconds=300))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Provide what this package logs from INFO on."""
    caplog.set_level(logging.INFO, "flowfabric_worker")
    return caplog


def held_in(worker: Worker) -> LeasedExecution:
    """Provide an execution of the task `add` that a worker would run."""
    task = worker.task(name="add", lane="sums")(lambda: None)
    task.submit()
    return hold(claim_one(worker.engine, "sums"), task, now())


def of_runs(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in told.records if record.name == EXECUTION_LOG]


def test_a_completed_execution_is_told_in_one_line(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    run = served.task(name="add")(lambda a: a + 1).submit(1)
    start(served)

    (line,) = wait_until(lambda: of_runs(told), "it is told")

    assert re.fullmatch(rf"add {short(str(run.id))} completed in \d+(\.\d)? [mµ]s", line)


def test_a_failed_attempt_tells_which_retry_comes_when_and_why(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    failures = iter([ValueError("boom"), ValueError("boom")])

    @served.task(retry=SOON)
    def pay() -> None:
        for failure in failures:
            raise failure

    run = pay.submit()
    start(served)
    run.result(20)

    first, second, third = wait_until(lambda: len(lines := of_runs(told)) >= 3 and lines, "all is told")

    assert re.fullmatch(rf"shop\.pay {short(str(run.id))} failed, retry 1 of 3 in \d+ ms: ValueError: boom", first)
    assert "retry 2 of 3" in second
    assert "completed in" in third


def test_what_failed_for_good_is_told_once_with_its_id_and_traceback(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    @served.task
    def pay() -> None:
        raise ValueError("boom")

    run = pay.submit()
    start(served)
    wait_until(lambda: of_runs(told), "it is told")

    (line,) = [record.getMessage() for record in told.records if "boom" in record.getMessage()]

    first, *traceback = line.split("\n")
    assert first == f"shop.pay {run.id.plain} failed for good: ValueError: boom"
    assert traceback[0].startswith("Traceback")
    assert __file__ in traceback[1], "it begins with the handler, not with what called it"
    assert traceback[-1] == "ValueError: boom"


def test_the_text_of_an_exception_steers_no_terminal_and_forges_no_line(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    @served.task(name="pay")
    def pay() -> None:
        raise ValueError("\x1b[2J boom\npay 01a2…ffff completed in 1 ms \ud800")

    pay.submit()
    start(served)

    (line,) = wait_until(lambda: of_runs(told), "it is told")

    first, *traceback = line.split("\n")
    assert first.endswith(r"failed for good: ValueError: \x1b[2J boom\npay 01a2…ffff completed in 1 ms \ud800")
    assert traceback[0].startswith("Traceback")
    assert "\x1b" not in line
    line.encode()


def test_what_a_handler_cancelled_is_told(served: Worker, start: Start, told: pytest.LogCaptureFixture) -> None:
    @served.task
    def give_up() -> None:
        raise Cancel("enough")

    give_up.submit()
    start(served)

    (line,) = wait_until(lambda: of_runs(told), "it is told")

    assert "was cancelled by its handler" in line


def test_many_completions_are_summed_up_by_task(served: Worker, start: Start, told: pytest.LogCaptureFixture) -> None:
    add = served.task(name="add")(lambda a: a + 1)
    sub = served.task(name="sub")(lambda a: a - 1)
    runs = [*add.submit_many((n,) for n in range(300)), *sub.submit_many((n,) for n in range(200))]
    start(served)
    for run in runs:
        run.result(20)

    def counted() -> int:
        sums = re.findall(r"(?:add|sub) (\d+) \(median \d+(?:\.\d)? [mµ]s\)", "\n".join(of_runs(told)))
        return sum(map(int, sums)) + sum(" completed in " in line for line in of_runs(told))

    wait_until(lambda: counted() == 500, "all are counted")

    # The first 20 of a second have a line each.
    assert len(of_runs(told)) < 100


def test_failures_are_told_singly_beside_many_completions(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    @served.task
    def work(number: int) -> int:
        return 100 // (number % 50)

    work.submit_many((n,) for n in range(500))
    start(served)

    wait_until(lambda: sum("failed for good" in line for line in of_runs(told)) == 10, "each failure is told")


def test_a_storm_of_failures_is_bounded_and_counted(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    @served.task
    def pay() -> None:
        raise ValueError("boom")

    pay.submit_many(() for _ in range(5 * MOST_OTHERS))
    start(served)

    def counted() -> int:
        text = "\n".join(of_runs(told))
        more = re.findall(r"pay: (\d+) more attempts of a second did not complete; the last was \S+: ValueError", text)
        return sum(map(int, more)) + text.count("failed for good")

    wait_until(lambda: counted() == 5 * MOST_OTHERS, "each failure is told or counted")


TELLERS: dict[str, Callable[[ExecutionLog, LeasedExecution], None]] = {
    "failed": lambda run_log, held: run_log.failed(held, BOOM),
    "retried": lambda run_log, held: run_log.retried(held, BOOM, 0),
    "cancelled": lambda run_log, held: run_log.cancelled(held),
    "lost": lambda run_log, held: run_log.lost(held, "was interrupted"),
}


@pytest.mark.parametrize("tell", TELLERS.values(), ids=TELLERS)
def test_a_storm_of_ends_keeps_no_memory_for_each(
    worker: Worker, told: pytest.LogCaptureFixture, tell: Callable[[ExecutionLog, LeasedExecution], None]
) -> None:
    held = held_in(worker)
    run_log = ExecutionLog()

    for _ in range(50 * MOST_OTHERS):
        tell(run_log, held)
    gc.collect()
    kept = sum(isinstance(each, Ended) for each in gc.get_objects())
    run_log.start()
    run_log.stop()

    assert run_log.join(10)
    assert kept <= MOST_OTHERS + 1
    *single, summary = of_runs(told)
    assert len(single) == MOST_OTHERS
    assert summary.startswith(f"add: {49 * MOST_OTHERS:,} more attempts of a second did not complete; the last was ")


def test_a_failure_among_very_many_completions_is_told_with_its_traceback(
    worker: Worker, told: pytest.LogCaptureFixture
) -> None:
    held = held_in(worker)
    run_log = ExecutionLog()

    for _ in range(10 * MOST_OTHERS):
        run_log.completed(held)
    run_log.failed(held, BOOM)
    run_log.start()
    run_log.stop()

    assert run_log.join(10)
    (line,) = [line for line in of_runs(told) if "failed for good" in line]
    assert line.endswith("ValueError: boom\nTraceback of boom")


def test_what_a_stop_interrupts_is_told(served: Worker, start: Start, told: pytest.LogCaptureFixture) -> None:
    begun = threading.Event()

    @served.task(interrupt=True)
    def endless() -> None:
        while True:
            begun.set()
            time.sleep(0.01)

    run = endless.submit()
    runtime = start(served)
    assert begun.wait(10)
    runtime.stop(timedelta())

    (line,) = wait_until(lambda: of_runs(told), "it is told")

    assert line == f"shop.endless {short(str(run.id))} was interrupted: stopping."


def test_nothing_is_kept_for_lines_that_are_not_logged(
    served: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "flowfabric_worker")
    run = served.task(name="add")(lambda a: a + 1).submit(1)
    start(served)
    run.result(10)

    assert of_runs(caplog) == []


def test_the_start_tells_what_runs_where_and_how_to_stop_it(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    served.task(name="beat", every=timedelta(minutes=5), lane="clock")(lambda: None)
    for number in range(10):
        served.task(name=f"add{number}")(lambda: None)
    start(served, threads=3, grace=timedelta(seconds=7))

    (line,) = wait_until(lambda: [text for text in told.messages if "takes work from" in text], "it is told")

    for words in (
        "flowfabric_worker 0.", served.url.partition("?")[0], "3 threads", "2 lanes: clock, default",
        "11 tasks: add0, add1,", ", 3 more", "1 schedule: beat (every 5m)", "Ctrl-C or SIGTERM stops it", "7 s",
    ):  # fmt: skip
        assert words in line


def test_a_stop_tells_what_it_waits_for(served: Worker, start: Start, told: pytest.LogCaptureFixture) -> None:
    begun, over = threading.Event(), threading.Event()

    @served.task
    def slow() -> None:
        begun.set()
        assert over.wait(20)

    run = slow.submit()
    runtime = start(served)
    assert begun.wait(10)
    stopping = threading.Thread(target=runtime.stop, args=(timedelta(seconds=20),))
    stopping.start()

    (line,) = wait_until(lambda: [text for text in told.messages if text.startswith("Stopping")], "it is told")
    over.set()
    stopping.join(20)

    assert f"waiting up to 20 s for 1 handler: shop.slow {short(str(run.id))} (" in line
    assert "A second Ctrl-C" in line


def test_an_idle_worker_stops_without_a_word_of_waiting(
    served: Worker, start: Start, told: pytest.LogCaptureFixture
) -> None:
    served.task(name="add")(lambda a: a + 1)
    start(served).stop(timedelta(seconds=20))

    assert not [text for text in told.messages if text.startswith("Stopping")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 µs"),
        (0.000_25, "250 µs"),
        (0.006, "6 ms"),
        (0.0123, "12 ms"),
        (0.3, "300 ms"),
        (1.234, "1.23 s"),
        (30.0, "30 s"),
        (59.96, "1 min 0 s"),
        (200.0, "3 min 20 s"),
        (3 * 3600 + 120.0, "3 h 2 min"),
    ],
)
def test_a_duration_is_spoken_in_few_letters(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_a_line_of_the_run_log_repeats_no_field_that_it_tells() -> None:
    record = logging.LogRecord(EXECUTION_LOG, logging.ERROR, "f", 1, "pay e1 failed for good: X\nTraceback", (), None)
    record.ff_execution_id, record.ff_task, record.ff_lane, record.ff_attempt = "e1", "pay", "mail", 0

    assert (
        ExecutionLogFormatter("%(message)s").format(record)
        == "pay e1 failed for good: X [lane=mail attempt=0]\nTraceback"
    )
    assert ExecutionLogFormatter("%(message)s", brief=True).format(record) == record.getMessage()


def test_ends_that_wait_to_be_told_are_bounded_and_the_rest_counted(
    worker: Worker, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_log, "MOST_WAITING", 100)
    held = held_in(worker)
    run_log = ExecutionLog()

    for _ in range(1000):
        run_log.completed(held)
    run_log.start()
    run_log.stop()

    assert run_log.join(10)
    lines = of_runs(told)
    assert len([line for line in lines if "completed in" in line and "a second" not in line]) == MOST_COMPLETIONS
    assert len([line for line in lines if line.startswith("completed in a second: add 80 ")]) == 1
    assert lines[-1] == "900 more executions ended; there were too many to count them by task."
