"""Failures, retries and what a handler may raise are the same wherever a task runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import NoReturn

import pytest

from flowfabric_worker import (
    Cancel,
    Delay,
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    Fail,
    FailureClass,
    Retry,
    RetryPolicy,
    current,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.support.observation import info_of
from tests.support.places import AT_ONCE, SLOWLY, SOON, Place

# Failures


def test_a_failure_tells_its_reason_and_traceback(place: Place) -> None:
    @place.worker.task
    def broken() -> NoReturn:
        raise LookupError("no such order")

    place.start()
    run = broken.submit()

    with pytest.raises(ExecutionFailed, match="LookupError: no such order") as raised:
        run.result(10)
    assert 'raise LookupError("no such order")' in raised.value.detail
    assert info_of(place.worker, run).error_class == FailureClass.TRANSIENT


@pytest.mark.parametrize("policy", [AT_ONCE, SLOWLY])
def test_a_retry_may_succeed(place: Place, policy: RetryPolicy, times: Iterator[int]) -> None:
    @place.worker.task(retry=policy)
    def flaky() -> tuple[int, int]:
        if next(times) < 3:
            raise OSError("not yet")
        return current().attempt, current().retry_count

    place.start()

    assert flaky.submit().result(10) == (2, 2)


def test_retries_come_to_an_end(place: Place, times: Iterator[int]) -> None:
    @place.worker.task(retry=SLOWLY)
    def broken() -> NoReturn:
        raise OSError(f"time {next(times)}")

    place.start()

    with pytest.raises(ExecutionFailed, match="time 3"):
        broken.submit().result(10)


def test_a_permanent_failure_is_not_tried_again(place: Place, times: Iterator[int]) -> None:
    @place.worker.task(retry=AT_ONCE, permanent=[LookupError])
    def broken() -> NoReturn:
        raise KeyError(next(times))

    place.start()
    run = broken.submit()

    with pytest.raises(ExecutionFailed, match="KeyError: 1"):
        run.result(10)
    assert info_of(place.worker, run).error_class == FailureClass.PERMANENT


def test_arguments_that_do_not_fit_the_annotations_fail_for_good(place: Place) -> None:
    @place.worker.task(retry=AT_ONCE)
    def double(number: int) -> int:
        return 2 * number

    place.start()
    policy = double.options_given.policy()
    wrong = CreateExecutionArgs(
        lane="default", task="shop.double", payload=b'[["no number"]]', codec="json", policy=policy
    )
    run = double.run(place.worker.engine.create_execution(wrong).execution_id)

    with pytest.raises(ExecutionFailed, match="payload_decode"):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0


def test_a_result_that_is_too_large_fails_for_good(place: Place) -> None:
    limit = place.worker.engine.limits.payload_bytes

    @place.worker.task(retry=AT_ONCE)
    def large() -> str:
        return "x" * limit

    place.start()
    run = large.submit()

    with pytest.raises(ExecutionFailed, match="payload_too_large"):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0


def test_a_handler_that_runs_past_its_timeout_is_told_and_fails(place: Place) -> None:
    told: list[bool] = []

    @place.worker.task(timeout=timedelta(milliseconds=200))
    def slow() -> str:
        told.append(current().cancelled.wait(20))
        return "too late"

    place.start()
    run = slow.submit()

    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        run.result(10)
    assert info_of(place.worker, run).error_class == FailureClass.TIMEOUT
    assert told in ([], [True])


def test_what_does_not_begin_before_its_deadline_expires(place: Place) -> None:
    task = place.worker.task(len)
    place.start()
    run = task.options(delay=timedelta(hours=1), deadline=timedelta(milliseconds=100)).submit("abc")

    with pytest.raises(ExecutionExpired):
        run.result(10)


# Exceptions of handlers


def test_fail_ends_an_execution_for_good(place: Place) -> None:
    @place.worker.task(retry=AT_ONCE)
    def declined() -> NoReturn:
        raise Fail("no money", detail="4711")

    place.start()

    with pytest.raises(ExecutionFailed, match="no money") as raised:
        declined.submit().result(10)
    assert raised.value.detail == "4711"


def test_retry_counts_and_waits_as_long_as_it_says(place: Place) -> None:
    @place.worker.task(retry=RetryPolicy(max_retries=1, initial=timedelta(days=1)))
    def again() -> int:
        if current().retry_count == 0:
            raise Retry("later", after=SOON)
        return current().retry_count

    place.start()

    assert again.submit().result(10) == 1


def test_delay_uses_no_retry(place: Place, times: Iterator[int]) -> None:
    @place.worker.task
    def later() -> tuple[int, str]:
        if next(times) < 3:
            raise Delay(SOON)
        return current().retry_count, current().kind

    place.start()

    assert later.submit().result(10) == (0, "resumed")


def test_cancel_ends_an_execution_as_cancelled(place: Place) -> None:
    @place.worker.task
    def unwanted() -> NoReturn:
        raise Cancel("sold out")

    place.start()

    with pytest.raises(ExecutionCancelled, match="sold out"):
        unwanted.submit().result(10)
