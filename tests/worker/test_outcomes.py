"""What a handler does, and what becomes of its execution."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import pytest

from flowfabric_worker import (
    Cancel,
    Delay,
    ExecutionFailed,
    Fail,
    FailureClass,
    HandlerExit,
    Interrupted,
    Retry,
    RetryPolicy,
    Task,
    WaitChildren,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import ended, in_state, info_of
from tests.worker.conftest import Start

AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)
HOUR = timedelta(hours=1)


# Returning and raising


def test_a_returned_value_completes_the_execution(worker: Worker, start: Start) -> None:
    @worker.task
    def double(number: int) -> int:
        return 2 * number

    start(worker)
    run = double.submit(21)

    assert ended(worker, run).public_state is PublicState.COMPLETED
    assert worker.engine.get_execution_result(run.id) == b"42"


def test_an_exception_fails_the_attempt_with_type_message_and_traceback(worker: Worker, start: Start) -> None:
    @worker.task
    def broken() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("no such order") from error

    start(worker)
    info = ended(worker, broken.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.TRANSIENT)
    assert info.error == "LookupError: no such order"
    detail = info.error_detail.decode()
    assert "KeyError: 'inner'" in detail
    assert 'raise LookupError("no such order") from error' in detail
    assert (info.retry_count, info.total_attempt_count) == (0, 1)


def test_what_is_kept_of_a_traceback_is_bounded_and_holds_its_end(worker: Worker, start: Start) -> None:
    @worker.task
    def deep(left: int) -> None:
        if left == 0:
            raise ValueError("x" * 40_000 + " and the end")
        deep.function(left - 1)

    start(worker)
    info = ended(worker, deep.submit(200))

    assert len(info.error_detail) == 16 * 1024
    assert info.error_detail.endswith(b"and the end\n")
    assert info.error is not None
    assert len(info.error) == 2 * 1024


def test_an_exception_is_retried_as_the_policy_says(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def flaky() -> list[int]:
        if next(times) < 3:
            raise OSError("not yet")
        return [current().attempt, current().retry_count]

    start(worker)
    run = flaky.submit()

    assert run.result(10) == [2, 2]
    assert [past.error for past in info_of(worker, run).past_attempts] == ["OSError: not yet"] * 2


def test_retries_end_with_the_last_failure(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def broken() -> None:
        raise OSError(f"time {next(times)}")

    start(worker)
    info = ended(worker, broken.submit())

    assert (info.error, info.retry_count, info.total_attempt_count) == ("OSError: time 3", 2, 3)


class DeclinedError(Exception):
    pass


class StolenCardError(DeclinedError):
    pass


def raise_stolen() -> NoReturn:
    raise StolenCardError("4711")


def raise_fail() -> NoReturn:
    raise Fail("no such card", detail="card 4711")


@pytest.mark.parametrize(
    ("raises", "error", "detail"),
    [(raise_stolen, "StolenCardError: 4711", "raise StolenCardError"), (raise_fail, "no such card", "card 4711")],
)
def test_a_permanent_failure_is_not_retried(worker: Worker, start: Start, raises: Any, error: str, detail: str) -> None:
    task: Task[[], None] = worker.task(name="pay", retry=AT_ONCE, permanent=(DeclinedError,))(raises)
    start(worker)
    info = ended(worker, task.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.PERMANENT)
    assert (info.error, info.total_attempt_count) == (error, 1)
    assert detail in info.error_detail.decode()


def test_an_exception_that_is_not_listed_as_permanent_is_retried(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE, permanent=(StolenCardError,))
    def pay() -> None:
        raise DeclinedError

    start(worker)

    assert ended(worker, pay.submit()).total_attempt_count == 3


def test_retry_waits_as_long_as_it_says_and_counts(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def later() -> None:
        raise Retry("the bank is closed", after=HOUR)

    start(worker)
    info = in_state(worker, later.submit(), PublicState.DELAYED)

    assert info.delay_until_ms == info.last_mutation_at_ms + 3_600_000
    assert (info.retry_count, info.error) == (1, "the bank is closed")


def test_retry_without_a_policy_is_granted_three_times(worker: Worker, start: Start) -> None:
    @worker.task
    def later() -> None:
        raise Retry("the bank is closed", after=timedelta(milliseconds=1))

    start(worker)
    info = ended(worker, later.submit())

    assert (info.public_state, info.retry_count, info.total_attempt_count) == (PublicState.FAILED, 3, 4)


def test_retry_without_retries_left_fails(worker: Worker, start: Start) -> None:
    @worker.task(retry=RetryPolicy(max_retries=0))
    def later() -> None:
        raise Retry("the bank is closed", after=HOUR)

    start(worker)
    info = ended(worker, later.submit())

    assert (info.public_state, info.error, info.error_class) == (
        PublicState.FAILED,
        "the bank is closed",
        FailureClass.TRANSIENT,
    )


def test_an_outcome_of_a_wrong_type_fails_its_own_run_alone(worker: Worker, start: Start) -> None:
    @worker.task
    def wrong(how: str) -> None:
        match how:
            case "retry":
                raise Retry(after=5)  # type: ignore[arg-type]  # that is the point
            case "delay":
                raise Delay(datetime(2031, 1, 1))
            case "fail":
                raise Fail(ValueError("an error as a reason"))

    start(worker, threads=4)
    runs = {how: wrong.submit(how) for how in ("retry", "delay", "fail", "right")}
    errors = {how: ended(worker, run).error for how, run in runs.items()}

    assert errors["retry"] is not None
    assert "after must be a timedelta" in errors["retry"]
    assert errors["delay"] is not None
    assert "Delay needs a moment with a time zone" in errors["delay"]
    assert errors["fail"] == "an error as a reason"
    assert errors["right"] is None


class BrokenTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OwnBase(BaseException):
    pass


class OwnExit(HandlerExit):
    pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (GeneratorExit(), "GeneratorExit: "),
        (OwnBase("mine"), "OwnBase: mine"),
        (OwnExit("mine"), "OwnExit: mine"),
        (Interrupted("by hand"), "Interrupted: by hand"),
        (BrokenTextError(), "BrokenTextError: (its text cannot be read)"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (MemoryError(), "MemoryError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_fails_the_attempt_and_the_thread_goes_on(
    worker: Worker, start: Start, error: BaseException, message: str
) -> None:
    @worker.task
    def raising(really: bool) -> str:
        if really:
            raise error
        return threading.current_thread().name

    start(worker, threads=1)
    before = raising.submit(False).result(10)
    info = ended(worker, raising.submit(True))

    assert (info.error, info.error_class) == (message, FailureClass.TRANSIENT)
    assert raising.submit(False).result(10) == before == "flowfabric-handler-0"


def test_an_outcome_that_a_handler_raises_passes_except_exception(worker: Worker, start: Start) -> None:
    @worker.task
    def careful() -> str:
        try:
            raise Cancel("enough")
        except Exception:  # noqa: BLE001  that is the point
            return "caught"

    start(worker)

    assert ended(worker, careful.submit()).public_state is PublicState.CANCELLED


# Leaving in other ways


def test_cancel_ends_the_execution_as_cancelled(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE)
    def given_up() -> None:
        raise Cancel("no longer needed")

    start(worker)
    info = ended(worker, given_up.submit())

    assert (info.public_state, info.cancel_reason) == (PublicState.CANCELLED, "no longer needed")
    assert (info.cancelled_by, info.total_attempt_count) == ("lease_holder", 1)


def test_delay_runs_the_handler_again_in_the_same_attempt(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task
    def later() -> list[Any]:
        if next(times) == 1:
            raise Delay(timedelta(milliseconds=20))
        return [current().kind, current().attempt, current().retry_count]

    start(worker)

    assert later.submit().result(10) == ["resumed", 0, 0]


def test_delay_takes_a_moment(worker: Worker, start: Start) -> None:
    moment = datetime(2040, 1, 1, tzinfo=UTC)

    @worker.task
    def later() -> None:
        raise Delay(moment)

    start(worker)

    assert in_state(worker, later.submit(), PublicState.DELAYED).delay_until_ms == moment.timestamp() * 1000


def test_wait_children_without_children_goes_on_at_once(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task
    def parent() -> str:
        if next(times) == 1:
            raise WaitChildren
        return current().kind

    start(worker)

    assert parent.submit().result(10) == "resumed"


# Unknown tasks, groups of exceptions, and retries without a policy


def test_work_for_a_task_that_the_worker_does_not_know_is_never_claimed(worker: Worker, start: Start) -> None:
    @worker.task
    def known() -> str:
        return "done"

    other = Worker("other", worker.url)
    unknown = other.task(name="unknown", priority=9)(lambda: None).submit()
    start(worker)

    assert known.submit().result(10) == "done"
    info = info_of(worker, unknown)
    assert (info.public_state, info.total_attempt_count) == (PublicState.WAITING, 0)
    explanation = worker.engine.explain_execution(unknown.id)
    assert explanation is not None
    assert explanation.code == "no_handler"
    other.close()


class GroupOfOurs(ExceptionGroup[Exception]):
    """A group whose class an application has made."""


@pytest.mark.parametrize(
    "raised",
    [
        ExceptionGroup("several", [ValueError("boom"), DeclinedError("no money")]),
        ExceptionGroup("outer", [ExceptionGroup("inner", [DeclinedError("no money")])]),
        GroupOfOurs("several", [DeclinedError("no money")]),
    ],
    ids=["beside another", "nested", "of a class of the application"],
)
def test_a_permanent_exception_in_a_group_is_not_retried(worker: Worker, start: Start, raised: Exception) -> None:
    @worker.task(retry=AT_ONCE, permanent=(DeclinedError,))
    def pay() -> None:
        raise raised

    run = pay.submit()
    start(worker)

    assert ended(worker, run).retry_count == 0


def test_a_group_without_a_permanent_exception_is_retried(worker: Worker, start: Start) -> None:
    @worker.task(retry=AT_ONCE, permanent=(DeclinedError,))
    def pay() -> None:
        raise ExceptionGroup("several", [ValueError("boom")])

    run = pay.submit()
    start(worker)

    assert ended(worker, run).retry_count == 2


@pytest.mark.parametrize("after", [None, timedelta()])
def test_a_retry_without_a_policy_is_granted_three_times(worker: Worker, after: timedelta | None) -> None:
    attempts: list[int] = []

    @worker.task
    def pay() -> None:
        attempts.append(current().attempt)
        raise Retry("the bank is closed", after=after)

    with worker.eager():
        run = pay.submit()
        with pytest.raises(ExecutionFailed) as caught:
            run.result(1)

    assert attempts == [0, 1, 2, 3]
    assert caught.value.reason == "the bank is closed (a task without retry= may raise Retry 3 times)"
