"""The rules of durable calls: names that stand once, places where none may be made, and what later runs get."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    Delay,
    DurableCallError,
    ExecutionFailed,
    FailureClass,
    RetryPolicy,
    StepFailed,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.observation import ended, info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Start

TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))
MOMENT = timedelta(milliseconds=20)


class CardDeclined(Exception):  # noqa: N818  as applications name theirs
    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"{reason} ({code})")
        self.reason = reason
        self.code = code


@attrs.frozen
class Receipt:
    number: int


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


# Names


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


# Functions


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


# Places


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


# Leaving


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


# Results of steps


@pytest.mark.parametrize("plain", [False, True])
def test_a_step_returns_what_the_codec_brings_back_in_its_first_run_too(
    worker: Worker, start: Start, plain: bool
) -> None:
    given: list[Receipt] = []

    def charge() -> Receipt:
        given.append(Receipt(7))
        return given[-1]

    @worker.task
    def pay() -> list[bool]:
        receipt = current().step("charge", charge)
        return [receipt == given[0], receipt is given[0]]

    start(worker)

    assert (pay() if plain else pay.submit().result(10)) == [True, False]


def declining(calls: list[str]) -> Callable[[], int]:
    def charge() -> int:
        calls.append("charge")
        raise CardDeclined("no money", 51)

    return charge


@pytest.mark.parametrize("next_call", ["step", "sleep", "delay"])
def test_a_caught_exception_of_a_step_is_raised_again_in_later_runs(
    worker: Worker, start: Start, times: Iterator[int], next_call: str
) -> None:
    calls: list[str] = []

    @worker.task(retry=TWICE)
    def pay() -> list[Any]:
        number = next(times)
        try:
            current().step("charge", declining(calls))
        except CardDeclined as error:
            caught = [type(error) is CardDeclined, str(error), error.reason, error.code]
        if next_call == "sleep":
            current().sleep(MOMENT)
        elif next_call == "delay" and number == 1:
            raise Delay(MOMENT)
        elif next_call == "step":
            current().step("tell", int, "1")
            if number == 1:
                raise OSError
        return [number, *caught]

    start(worker)

    assert pay.submit().result(10) == [2, True, "no money (51)", "no money", 51]
    assert calls == ["charge"]


def test_an_exception_of_a_step_that_fails_the_attempt_is_not_remembered(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    @worker.task(retry=TWICE)
    def pay() -> int:
        current().step("before", int, "1")
        return current().step("charge", charge)

    def charge() -> int:
        if next(times) < 3:
            raise CardDeclined("no money", 51)
        return 7

    start(worker)

    assert pay.submit().result(10) == 7


def test_a_result_that_cannot_be_kept_is_an_exception_of_its_step(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    charged: list[object] = []

    def charge() -> object:
        charged.append(object())
        return charged[-1]

    @worker.task(retry=TWICE)
    def pay() -> str:
        try:
            current().step("charge", charge)
        except Exception as error:  # noqa: BLE001  as careless handlers do
            told = type(error).__name__
        current().step("tell", int, "1")
        if next(times) == 1:
            raise OSError
        return told

    start(worker)

    assert pay.submit().result(10) == "EncodingError"
    assert len(charged) == 1


@pytest.mark.parametrize(
    "error", [OSError(2, "no such file", "x"), KeyError("a"), ZeroDivisionError(), LookupError(object())]
)
def test_exceptions_of_python_come_back_as_they_were(worker: Worker, start: Start, error: Exception) -> None:
    seen: list[tuple[type, str]] = []

    def fail() -> None:
        raise error

    @worker.task
    def pay() -> None:
        try:
            current().step("fail", fail)
        except Exception as caught:  # noqa: BLE001  as careless handlers do
            seen.append((type(caught), str(caught)))
        current().sleep(MOMENT)

    start(worker)
    pay.submit().result(10)

    assert seen == [(type(error), str(error))] * 2


def test_an_exception_whose_class_cannot_be_had_comes_back_as_step_failed(worker: Worker, start: Start) -> None:
    class Local(Exception):  # noqa: N818  it is found nowhere
        pass

    def fail() -> None:
        raise Local("told")

    caught: list[BaseException] = []

    @worker.task
    def pay() -> None:
        try:
            current().step("fail", fail)
        except (Local, StepFailed) as error:
            caught.append(error)
        current().sleep(MOMENT)

    start(worker)
    pay.submit().result(10)
    first, second = caught

    assert isinstance(first, Local)
    assert isinstance(second, StepFailed)
    assert (second.step, second.class_name.rpartition(".")[2], second.text) == ("fail", "Local", "told")
    assert "in an earlier run" in second.__notes__[0]


def test_a_kept_exception_imports_no_module_and_creates_only_exceptions(worker: Worker) -> None:
    from flowfabric_worker._steps.step_errors import decode_error

    def kept(module: str, name: str) -> Exception:
        return decode_error(
            f'{{"module": "{module}", "class": "{name}", "text": "t", "args": [], "attributes": {{}}}}'.encode(), "s"
        )

    assert [type(kept(*named)) for named in [("antigravity", "X"), ("os", "system"), ("builtins", "SystemExit")]] == [
        StepFailed
    ] * 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff",
        b'{"module": "m"}',
        b'{"module":"m","class":"C","text":"t","args":1,"attributes":{}}',
    ],
)
def test_a_damaged_record_of_a_failed_step_fails_the_execution_for_good(
    worker: Worker, start: Start, data: bytes
) -> None:
    @worker.task(retry=TWICE)
    def pay() -> None:
        current().step("charge", int, "1")

    run = pay.submit()
    lost = claim_one(worker.engine, "default").handle
    worker.engine.record_step(lost, "ff:raised charge", data)
    worker.engine.release(lost)
    start(worker)
    info = ended(worker, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DecodingError: The record of the failed step 'charge' is damaged")


def test_a_damaged_record_of_a_sleep_fails_the_execution_for_good(worker: Worker, start: Start) -> None:
    task = worker.task(name="drowsy", retry=TWICE)(lambda: current().sleep(MOMENT))
    run = task.submit()
    lost = claim_one(worker.engine, "default").handle
    worker.engine.record_step(lost, "ff:sleep 20 ms 1", b"tomorrow")
    worker.engine.release(lost)
    start(worker)

    assert (
        ended(worker, run).error == "DecodingError: The record of a sleep is damaged: b'tomorrow' is not a time in ms."
    )
