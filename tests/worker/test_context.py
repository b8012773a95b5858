"""What a handler may ask for while it runs: its time, its steps, its sleep, and what it is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    ExecutionFailed,
    FailureClass,
    Interrupted,
    RetryPolicy,
    ValidationError,
    Worker,
    current,
)
from flowfabric_worker.engine.types.admin import ReplayExecutionArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.observation import ended, in_state, info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Start

AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)
HOUR = timedelta(hours=1)


# Running out of time, and being told


def test_a_run_past_its_timeout_fails_and_its_handler_is_told(
    worker: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    @worker.task(timeout=timedelta(milliseconds=200))
    def slow() -> str:
        assert current().cancelled.wait(10)
        try:
            current().check()
        except Interrupted as interrupted:
            told.append(interrupted.reason)
            raise
        return "it was not told"

    # No round of maintenance comes in time, and one busy thread claims nothing, which would look for what is due.
    monkeypatch.setattr("flowfabric_worker._runtime.lease_keeper.MAINTENANCE_EVERY", 120.0)
    start(worker, threads=1)
    info = ended(worker, slow.submit())

    assert (info.public_state, info.error_class) == (PublicState.FAILED, FailureClass.TIMEOUT)
    assert info.error == "attempt_timeout"
    wait_until(lambda: told == ["timeout"], "the handler was told")


def test_a_timeout_is_retried_and_a_late_result_does_not_count(
    worker: Worker, start: Start, times: Iterator[int], caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    @worker.task(retry=AT_ONCE, timeout=timedelta(milliseconds=200))
    def slow() -> int:
        number = next(times)
        if number == 1:
            over.wait(10)
        return number

    start(worker, threads=2)
    run = slow.submit()

    assert run.result(10) == 2
    over.set()
    wait_until(lambda: "ended (complete), which does not count: timeout" in caplog.text, "the late result is dropped")
    assert run.result(10) == 2
    assert info_of(worker, run).retry_count == 1


def test_an_execution_past_its_deadline_expires_and_its_handler_is_told(worker: Worker, start: Start) -> None:
    told = threading.Event()

    @worker.task(deadline=timedelta(milliseconds=300))
    def slow() -> None:
        assert current().deadline is not None
        current().cancelled.wait(10)
        told.set()
        current().check()

    start(worker, threads=1)
    info = ended(worker, slow.submit())

    assert (info.public_state, info.error) == (PublicState.EXPIRED, "execution_deadline")
    assert told.wait(10)


# The context of a run


def test_the_context_says_what_the_run_is(worker: Worker, start: Start) -> None:
    @worker.task(lane="mail", tags={"team": "a"}, deadline=HOUR)
    def describe() -> dict[str, Any]:
        context = current()
        return {
            "id": context.id,
            "task": context.task,
            "lane": context.lane,
            "kind": context.kind,
            "tags": dict(context.tags),
            "deadline": context.deadline is not None and context.deadline.timestamp() * 1000,
        }

    start(worker)
    run = describe.submit()

    assert run.result(10) == {
        "id": str(run.id),
        "task": "shop.describe",
        "lane": "mail",
        "kind": "fresh",
        "tags": {"team": "a"},
        "deadline": info_of(worker, run).deadline_at_ms,
    }


def test_progress_can_be_seen_while_the_handler_runs(worker: Worker, start: Start) -> None:
    said, go_on = threading.Event(), threading.Event()

    @worker.task
    def slow() -> None:
        current().progress(40, "packing")
        current().progress(message="sending")
        said.set()
        assert go_on.wait(10)

    start(worker)
    run = slow.submit()
    assert said.wait(10)
    info = info_of(worker, run)
    go_on.set()

    assert (info.progress_percent, info.progress_message) == (40, "sending")
    assert run.result(10) is None


def test_progress_of_a_lost_lease_interrupts_the_handler(worker: Worker, start: Start) -> None:
    begun, lost = threading.Event(), threading.Event()
    seen: list[str] = []

    @worker.task
    def slow() -> None:
        begun.set()
        assert lost.wait(10)
        try:
            current().progress(50)
        except Interrupted as interrupted:
            seen.append(interrupted.reason)
            raise

    start(worker)
    run = slow.submit()
    assert begun.wait(10)
    run.cancel()
    lost.set()

    wait_until(lambda: seen, "the handler was interrupted")
    assert run.state() is PublicState.CANCELLED


def test_log_records_say_of_which_run_they_speak(
    worker: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    @worker.task(lane="mail")
    def talkative() -> None:
        current().log.info("hello from %s", "inside")
        raise OSError("broken")

    caplog.set_level(logging.INFO)
    start(worker)
    run = talkative.submit()
    ended(worker, run)
    wait_until(lambda: "failed for good" in caplog.text, "the failure is told")
    records = [record for record in caplog.records if hasattr(record, "ff_execution_id")]

    assert [record.getMessage().split("\n")[0] for record in records] == [
        "hello from inside",
        f"shop.talkative {run.id.plain} failed for good: OSError: broken",
    ]
    for record in records:
        fields = {name: vars(record)[name] for name in ("ff_execution_id", "ff_task", "ff_lane", "ff_attempt")}
        assert fields == {
            "ff_execution_id": str(run.id),
            "ff_task": "shop.talkative",
            "ff_lane": "mail",
            "ff_attempt": 0,
        }


# Steps


def test_a_step_runs_once_and_is_remembered_over_retries_and_replays(
    worker: Worker, start: Start, times: Iterator[int]
) -> None:
    charged: list[int] = []

    def charge(amount: int) -> datetime:
        charged.append(amount)
        return datetime(2030, 1, len(charged), tzinfo=UTC)

    @worker.task(retry=AT_ONCE)
    def pay(amount: int) -> datetime:
        when = current().step("charge", charge, amount)
        if next(times) < 3:
            raise OSError("after the charge")
        return when

    start(worker)
    run = pay.submit(7)

    assert run.result(10) == datetime(2030, 1, 1, tzinfo=UTC)
    worker.engine.replay_execution(ReplayExecutionArgs(execution_id=run.id))
    assert run.result(10) == datetime(2030, 1, 1, tzinfo=UTC)
    assert next(times) == 5
    assert charged == [7]
    assert info_of(worker, run).step_count == 1


def test_a_step_that_raises_is_not_remembered(worker: Worker, start: Start, times: Iterator[int]) -> None:
    @worker.task(retry=AT_ONCE)
    def pay() -> int:
        return current().step("charge", charge)

    def charge() -> int:
        number = next(times)
        if number < 3:
            raise OSError
        return number

    start(worker)

    assert pay.submit().result(10) == 3


def test_a_step_may_be_any_callable(worker: Worker, start: Start) -> None:
    class Bank:
        def charge(self, amount: int) -> int:
            return amount + 1

    @worker.task
    def pay() -> list[Any]:
        step = current().step
        return [step("clock", time.time) > 0, step("method", Bank().charge, 1), step("lambda", lambda: {"a": [None]})]

    start(worker)

    assert pay.submit().result(10) == [True, 2, {"a": [None]}]


def test_nothing_that_a_step_closes_over_is_kept(worker: Worker, start: Start) -> None:
    import weakref

    class Big:
        pass

    kept: list[weakref.ref[Big]] = []

    @worker.task
    def pay() -> int:
        big = Big()
        kept.append(weakref.ref(big))
        return current().step("size", lambda: len(repr(big)))

    start(worker)

    assert pay.submit().result(10) > 0
    wait_until(lambda: kept[0]() is None, "what the step closed over is gone")


def test_a_step_that_cannot_be_recorded_fails_the_attempt(worker: Worker, start: Start) -> None:
    @worker.task
    def pay() -> Any:
        return current().step("odd", lambda: object())

    start(worker)

    with pytest.raises(ExecutionFailed, match="cannot be encoded"):
        pay.submit().result(10)


# Sleeping


def test_sleep_frees_the_thread_and_returns_the_second_time(worker: Worker, start: Start) -> None:
    passed: list[str] = []

    @worker.task
    def drowsy() -> list[str]:
        passed.append("begun")
        current().sleep(timedelta(milliseconds=20))
        passed.append("first")
        current().sleep(timedelta(milliseconds=20))
        passed.append("second")
        return passed

    start(worker)
    run = drowsy.submit()

    assert run.result(10) == ["begun", "begun", "first", "begun", "first", "second"]
    assert (info_of(worker, run).total_attempt_count, info_of(worker, run).retry_count) == (1, 0)


def test_sleep_lasts_as_long_as_it_says(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        current().sleep(HOUR)

    worker.engine.set_clock(datetime(2030, 1, 1, tzinfo=UTC))
    runtime = start(worker)
    run = drowsy.submit()

    info = in_state(worker, run, PublicState.DELAYED)
    assert info.delay_until_ms == datetime(2030, 1, 1, 1, tzinfo=UTC).timestamp() * 1000
    # A waiting worker is not told of a clock that is set; a new claim sees it.
    runtime.stop()
    worker.engine.set_clock(datetime(2030, 1, 1, 1, tzinfo=UTC))
    start(worker)
    assert run.result(10) is None


def test_a_sleep_that_a_lost_worker_had_only_begun_goes_on(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        current().sleep(HOUR)

    run = drowsy.submit()
    lost = claim_one(worker.engine, "default").handle
    ends_at = worker.engine.server_time() + 3_600_000
    worker.engine.record_step(lost, "ff:sleep 3600000 ms 1", str(ends_at).encode())
    worker.engine.release(lost)
    start(worker)

    assert in_state(worker, run, PublicState.DELAYED).delay_until_ms == ends_at


def test_a_sleep_of_no_duration_is_refused(worker: Worker, start: Start) -> None:
    @worker.task
    def drowsy() -> None:
        with pytest.raises(ValidationError):
            current().sleep(5)  # type: ignore[arg-type]  # that is the point

    start(worker)

    assert drowsy.submit().result(10) is None
