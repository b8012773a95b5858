"""Steps that are refused: inside other steps, after a cancel, or with results that cannot be kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    ExecutionCancelled,
    ExecutionFailed,
    FailureClass,
    RetryPolicy,
    Worker,
    current,
    step,
)
from tests.support.observation import ended, info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Start

MOMENT = timedelta(milliseconds=20)
TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


# D8: durable calls inside a step


@pytest.mark.parametrize("call", ["wait_for", "sleep", "step", "decorated"])
def test_a_durable_call_inside_a_step_is_refused_and_records_nothing(worker: Worker, start: Start, call: str) -> None:
    decorated = step("inner")(lambda: None)
    calls: dict[str, Callable[[], Any]] = {
        "wait_for": lambda: current().wait_for("inner"),
        "sleep": lambda: current().sleep(MOMENT),
        "step": lambda: current().step("inner", int, "1"),
        "decorated": decorated,
    }

    @worker.task(retry=TWICE)
    def pay() -> None:
        current().step("outer", calls[call])

    start(worker)
    run = pay.submit()
    info = ended(worker, run)

    assert info.error is not None
    assert "was made inside the step 'outer'" in info.error
    assert (info.step_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert worker.engine.list_pending_waitpoints(run.id).waitpoints == ()


def test_what_is_no_durable_call_works_inside_a_step(worker: Worker, start: Start) -> None:
    def work() -> list[str]:
        current().emit("value")
        current().progress(50)
        current().check()
        return [current().idempotency_key("x"), current().waitpoint("x")]

    task = worker.task(name="pay")(lambda: [current().step("outer", work), [current().idempotency_key("x")]])
    start(worker)
    (key, token), (again,) = task.submit().result(10)

    assert key == again
    assert token.startswith("ffw1_")


# D9: cancelled


def test_no_step_begins_after_a_cancel_and_the_handler_is_told(either: Worker, start: Start) -> None:
    begun: list[int] = []
    told: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            entered.set()
            leave.wait(10)

    @either.task
    def loop() -> None:
        for number in range(5):
            try:
                current().step(f"step {number}", work, number)
            except BaseException as error:
                told.append(f"{number}: {type(error).__name__}")
                raise

    start(either)
    run = loop.submit()
    entered.wait(10)
    run.cancel()
    leave.set()
    with pytest.raises(ExecutionCancelled):
        run.result(10)
    wait_until(lambda: told, "the handler is told")

    assert (begun, told) == ([0, 1], ["1: Interrupted"])
    assert info_of(either, run).step_count == 1


# D10: what cannot be encoded


class Unspeakable(Exception):  # noqa: N818  as applications name theirs
    def __init__(self) -> None:
        super().__init__(threading.Lock())

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_exception_of_a_step_that_has_no_text_fails_the_execution(worker: Worker, start: Start) -> None:
    def work() -> None:
        raise Unspeakable

    task = worker.task(name="pay")(lambda: current().step("work", work))
    start(worker)
    info = ended(worker, task.submit())

    assert info.error is not None
    assert info.error.startswith("Unspeakable")
    assert b"Traceback" in info.error_detail


@pytest.mark.parametrize(
    ("result", "match"),
    [
        (object(), "The step 'work': The result of .* cannot be encoded.*object"),
        ("x" * (1 << 20), r"payload_too_large: the result of the step 'work' takes 1048582 bytes"),
    ],
    ids=["of no type", "too large"],
)
@pytest.mark.parametrize("plain", [False, True], ids=["in an execution", "in a plain call"])
def test_a_result_that_cannot_be_kept_fails_for_good_and_names_its_step(
    worker: Worker, start: Start, result: object, match: str, plain: bool
) -> None:
    calls: list[int] = []

    def work() -> object:
        calls.append(1)
        return result

    task = worker.task(name="pay", retry=TWICE)(lambda: current().step("work", work))
    if plain:
        with pytest.raises(ValueError, match=match):
            task()
    else:
        start(worker)
        run = task.submit()
        with pytest.raises(ExecutionFailed, match=match):
            run.result(10)
        assert (info_of(worker, run).error_class, info_of(worker, run).step_count) == (FailureClass.PERMANENT, 0)
    assert calls == [1]


def test_a_full_journal_fails_the_execution_for_good_and_says_why(worker: Worker, start: Start) -> None:
    @worker.task(retry=TWICE)
    def pay() -> None:
        for number in range(3):
            current().step(f"part {number}", str, "x" * 400_000)

    start(worker)
    info = ended(worker, pay.submit())

    assert (info.error_class, info.step_count) == (FailureClass.PERMANENT, 2)
    assert info.error is not None
    assert "journal_full: the execution has 2 records of 800016 bytes, and 'part 2' takes 400002 more" in info.error
