"""The results and exceptions that steps record, and later runs find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    Delay,
    FailureClass,
    RetryPolicy,
    StepFailed,
    Worker,
    current,
)
from tests.support.executions import claim_one
from tests.support.observation import ended
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


@pytest.mark.parametrize("data", [b"many", b"-1", b"9" * 30, b""])
def test_a_damaged_record_of_what_a_step_emitted_fails_for_good(worker: Worker, start: Start, data: bytes) -> None:
    @worker.task(retry=TWICE)
    def talk() -> None:
        current().step("speak", int, "1")
        current().emit("after")

    run = talk.submit()
    lost = claim_one(worker.engine, "default").handle
    worker.engine.record_step(lost, "ff:out0 speak", data)
    worker.engine.record_step(lost, "speak", b"1")
    worker.engine.release(lost)
    start(worker)
    info = ended(worker, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DecodingError: The record of what the step 'speak' emitted is damaged")
