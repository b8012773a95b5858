"""The rules of durable calls: names that stand once, places where none may be made, and what later runs get."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    Delay,
    DurableCallError,
    ExecutionFailed,
    FailureClass,
    RetryPolicy,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import ended, info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Start

TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))
MOMENT = timedelta(milliseconds=20)


def refused(worker: Worker, start: Start, body: Callable[[], Any], match: str) -> None:
    """Assert that a handler fails for good by a durable call, in a worker and as a plain call."""
    task = worker.task(name="refused", retry=TWICE)(body)
    with pytest.raises(DurableCallError, match=match):
        task()
    start(worker, threads=1)
    info = ended(worker, task.submit())

    assert (info.public_state, info.retry_count, info.error_class) == (PublicState.FAILED, 0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DurableCallError: ")


def test_a_name_that_is_used_twice_is_an_error_that_names_both_places(worker: Worker, start: Start) -> None:
    charged: list[int] = []

    def pay() -> None:
        current().step("charge", charged.append, 1)
        current().step("charge", charged.append, 2)

    line = pay.__code__.co_firstlineno
    refused(worker, start, pay, rf"'charge' .*test_durable_calls.py:{line + 1} and again at .*calls.py:{line + 2}")
    assert charged == [1, 1]


def test_a_name_that_a_loop_uses_again_is_an_error(worker: Worker, start: Start) -> None:
    refused(worker, start, lambda: [current().step("charge", int, number) for number in "12"], "'charge' was used")


def test_a_name_is_used_also_by_a_step_that_raised(worker: Worker, start: Start) -> None:
    def pay() -> None:
        for _ in range(2):
            try:
                current().step("charge", int, "no number")
            except ValueError:
                continue

    refused(worker, start, pay, "'charge' was used")


def test_a_name_may_be_used_again_by_the_next_run(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=TWICE)
    def pay() -> int:
        number = current().step("number", int, "7")
        if next(times) < 3:
            raise OSError
        return number

    start(worker)

    assert pay.submit().result(10) == 7


@pytest.mark.parametrize("name", ["ff:sleep 1", "ff:", "x" * 241])
def test_a_name_of_the_reserved_form_is_refused(worker: Worker, start: Start, name: str) -> None:
    refused(worker, start, lambda: current().step(name, int, "7"), "cannot be named")


def test_a_step_named_sleep_is_no_sleep(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> list[int]:
        numbers = [current().step(name, int, "1") for name in ("sleep", "sleep 1", "sleep 2")]
        current().sleep(MOMENT)
        return numbers

    start(worker)

    assert drowsy.submit().result(10) == [1, 1, 1]


async def later(number: int = 1) -> int:
    return number


async def later_each() -> Any:
    yield 1


def each() -> Iterator[int]:
    yield 1


class Later:
    async def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    "function",
    [later, later_each, each, Later(), functools.partial(later, 2)],
    ids=["coroutine", "async generator", "generator", "callable object", "partial"],
)
def test_a_function_that_a_call_does_not_run_is_refused(worker: Worker, start: Start, function: Any) -> None:
    refused(worker, start, lambda: current().step("charge", function), "async function or a generator")


def test_a_function_that_returns_an_awaitable_is_refused(worker: Worker, start: Start) -> None:
    refused(worker, start, lambda: current().step("charge", lambda: later()), "an awaitable, which has not run")


def test_a_function_that_runs_a_coroutine_is_a_step(worker: Worker, start: Start) -> None:
    @worker.task
    def pay() -> int:
        return current().step("charge", lambda: asyncio.run(later()))

    start(worker)

    assert pay.submit().result(10) == 1
    assert pay() == 1


@pytest.mark.parametrize("what", ["step", "sleep", "task"])
def test_a_durable_call_inside_a_step_is_refused(worker: Worker, start: Start, what: str) -> None:
    other = worker.task(name="other")(lambda: current().step("inner", int, "1"))
    calls: dict[str, Callable[[], Any]] = {
        "step": lambda: current().step("inner", int, "1"),
        "sleep": lambda: current().sleep(MOMENT),
        "task": other,
    }

    @worker.task
    def pay() -> None:
        current().step("outer", calls[what])

    start(worker, threads=1)

    with pytest.raises(ExecutionFailed, match=r"DurableCallError: .* was made inside the step 'outer'"):
        pay.submit().result(10)


def test_a_step_in_a_thread_is_recorded_and_a_sleep_there_is_refused(worker: Worker, start: Start) -> None:
    @worker.task
    def pay() -> list[str]:
        got: list[str] = []

        def elsewhere() -> None:
            got.append(current().step("there", str, 7))
            try:
                current().sleep(MOMENT)
            except DurableCallError as error:
                got.append(str(error).partition(" was made ")[2])

        thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
        thread.start()
        thread.join()
        current().sleep(MOMENT)
        return got

    start(worker)
    run = pay.submit()

    assert run.result(10) == ["7", "in another thread than the handler's: make it there."]
    # The step, and the sleep of the handler.
    assert info_of(worker, run).step_count == 2


def test_a_thread_that_outlives_its_run_can_make_no_durable_call(worker: Worker, start: Start) -> None:
    over, told = threading.Event(), list[str]()

    @worker.task
    def pay() -> None:
        def elsewhere() -> None:
            over.wait(10)
            for call in (lambda: current().step("there", int, "1"), lambda: current().progress(5)):
                try:
                    call()
                except DurableCallError as error:
                    told.append(str(error))

        threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,)).start()

    start(worker)
    pay.submit().result(10)
    over.set()

    wait_until(lambda: len(told) == 2, "both are refused")
    assert {"has ended" in each for each in told} == {True}


@pytest.mark.parametrize("way", ["returns", "raises", "finally"])
def test_a_sleep_that_the_handler_swallows_still_suspends_it_and_is_logged(
    worker: Worker, start: Start, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    runs: list[str] = []

    @worker.task
    def drowsy() -> str:
        runs.append("begun")
        try:
            current().sleep(MOMENT)
        except BaseException:  # noqa: BLE001  as careless handlers do
            if way == "raises":
                raise ValueError("swallowed") from None
        finally:
            if way == "finally" and len(runs) == 1:
                current().step("clean up", runs.append, "cleaned")
        if len(runs) == 1:
            return "too early"
        return "slept"

    start(worker)
    run = drowsy.submit()

    assert run.result(10) == "slept"
    assert runs == ["begun", "begun"]
    wait_until(lambda: f"drowsy of {run.id.plain} caught the Delay" in caplog.text, "it is logged")
    assert {"returns": "(it returned)", "raises": "(ValueError: swallowed)", "finally": "(DurableCallError: "}[
        way
    ] in caplog.text
    assert info_of(worker, run).retry_count == 0


def test_a_durable_call_while_a_delay_of_the_handler_is_raised_is_an_error(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        try:
            raise Delay(MOMENT)
        finally:
            current().step("clean up", int, "1")

    start(worker)

    with pytest.raises(ExecutionFailed, match="while the handler is being left \\(Delay\\)"):
        drowsy.submit().result(10)
