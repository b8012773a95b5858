"""A stream is closed where its attempt ends, by what ended it first, whether or not anything was written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy
from flowfabric_worker.engine.types.streams import StreamCloseReason
from flowfabric_worker.engine.types.suspension import TimeoutBehavior
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LEASE, claim_one, created, damage, refused, running, upkeep_all
from tests.support.streams import append_all, frame, live, patch, payloads, read_all
from tests.support.suspensions import signal, suspend

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
RETRYING = ExecutionPolicy(
    retry=RetryPolicy(max_retries=3, backoff="fixed", initial=HOUR, maximum=HOUR, jitter=False),
    attempt_timeout=10 * SECOND,
)
ONCE = ExecutionPolicy(attempt_timeout=10 * SECOND, max_reclaim_count=0)


def cancel(engine: Engine, execution_id: ExecutionId) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))


def revoke(engine: Engine, execution_id: ExecutionId) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=execution_id))


Ending = Callable[[Engine, Clock, Claimed], object]
# What ends an attempt, how its execution was created, and the reason that closes the stream.
ENDINGS: dict[str, tuple[Ending, ExecutionPolicy, StreamCloseReason]] = {
    "complete": (
        lambda engine, _, claimed: engine.complete(claimed.handle),
        RETRYING,
        StreamCloseReason.ATTEMPT_SUCCESS,
    ),
    "fail for good": (
        lambda engine, _, claimed: engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT),
        RETRYING,
        StreamCloseReason.ATTEMPT_FAILURE,
    ),
    "fail and retry": (
        lambda engine, _, claimed: engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT),
        RETRYING,
        StreamCloseReason.ATTEMPT_FAILURE,
    ),
    "fail as cancelled": (
        lambda engine, _, claimed: engine.fail(claimed.handle, BOOM, FailureClass.CANCELLED),
        RETRYING,
        StreamCloseReason.ATTEMPT_CANCELLED,
    ),
    "cancel by its holder": (
        lambda engine, _, claimed: engine.cancel(claimed.handle),
        RETRYING,
        StreamCloseReason.ATTEMPT_CANCELLED,
    ),
    "cancel by an operator": (
        lambda engine, _, claimed: cancel(engine, claimed.execution_id),
        RETRYING,
        StreamCloseReason.ATTEMPT_CANCELLED,
    ),
    "time out and retry": (lambda _, clock, __: clock.move(11 * SECOND), RETRYING, StreamCloseReason.TIMED_OUT),
    "time out for good": (lambda _, clock, __: clock.move(11 * SECOND), ONCE, StreamCloseReason.TIMED_OUT),
    "deadline": (lambda _, clock, __: clock.move(2 * SECOND), RETRYING, StreamCloseReason.EXPIRED),
    "lapse": (lambda _, clock, __: clock.move(LEASE), ExecutionPolicy(), StreamCloseReason.LEASE_EXPIRED),
    "revoke": (
        lambda engine, _, claimed: revoke(engine, claimed.execution_id),
        RETRYING,
        StreamCloseReason.LEASE_REVOKED,
    ),
    "give up": (
        lambda engine, _, claimed: engine.release_many([claimed.handle], lost="out of memory"),
        RETRYING,
        StreamCloseReason.LEASE_EXPIRED,
    ),
    "give up for the last time": (
        lambda engine, _, claimed: engine.release_many([claimed.handle], lost="out of memory"),
        ONCE,
        StreamCloseReason.LEASE_EXPIRED,
    ),
}


@pytest.mark.parametrize("writes", [True, False], ids=["written", "unwritten"])
@pytest.mark.parametrize("case", ENDINGS)
def test_what_ends_an_attempt_closes_its_stream(engine: Engine, clock: Clock, case: str, writes: bool) -> None:
    end, policy, reason = ENDINGS[case]
    deadline = clock.now + 2 * SECOND if case == "deadline" else None
    claimed = running(engine, policy=policy, deadline=deadline)
    if writes:
        engine.append_frame(claimed.handle, frame("kept"))
    assert not read_all(engine, claimed.execution_id).is_closed
    end(engine, clock, claimed)

    # Only the read itself has read the clock.
    found = read_all(engine, claimed.execution_id)

    assert found.closed_reason is reason
    assert found.closed_at_ms is not None
    assert payloads(found) == ([b"kept"] if writes else [])


@pytest.mark.parametrize("case", ENDINGS)
def test_what_closed_a_stream_first_stands_whatever_comes_later(engine: Engine, clock: Clock, case: str) -> None:
    end, policy, reason = ENDINGS[case]
    deadline = clock.now + 2 * SECOND if case == "deadline" else None
    claimed = running(engine, policy=policy, deadline=deadline)
    end(engine, clock, claimed)
    first = read_all(engine, claimed.execution_id)
    clock.move(SECOND)
    if first.has_ended:
        engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))
        again = claim_one(engine, claimed.handle.lane)
        assert again.handle.attempt_index == 1
    cancel(engine, claimed.execution_id)
    clock.move(HOUR)
    upkeep_all(engine)

    found = read_all(engine, claimed.execution_id)

    assert (found.closed_reason, found.closed_at_ms) == (reason, first.closed_at_ms)


def test_a_reclaimed_attempt_stays_closed_by_its_lapse(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("a"))
    clock.move(LEASE)
    again = claim_one(engine, claimed.handle.lane, worker="w2")
    engine.append_frame(again.handle, frame("b"))

    first, second = (read_all(engine, claimed.execution_id, attempt) for attempt in (0, 1))

    assert first.closed_reason is StreamCloseReason.LEASE_EXPIRED
    assert not second.is_closed
    assert (payloads(first), payloads(second)) == ([b"a"], [b"b"])


@pytest.mark.parametrize("operation", ["release", "delay", "wait_children"])
def test_a_pause_of_the_attempt_keeps_its_stream_open(engine: Engine, clock: Clock, operation: str) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("a"))
    if operation == "delay":
        engine.delay(claimed.handle, SECOND)
    else:
        getattr(engine, operation)(claimed.handle)
    assert not read_all(engine, claimed.execution_id).is_closed
    clock.move(SECOND)
    again = claim_one(engine, claimed.handle.lane)
    engine.append_frame(again.handle, frame("b"))
    engine.complete(again.handle)

    found = read_all(engine, claimed.execution_id)

    assert payloads(found) == [b"a", b"b"]
    assert found.closed_reason is StreamCloseReason.ATTEMPT_SUCCESS
    assert (found.latest_attempt, found.has_ended) == (0, True)


def test_a_stream_stays_open_over_a_suspension(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("a"))
    (waitpoint,) = suspend(engine, claimed, "ready")
    found = read_all(engine, claimed.execution_id)
    assert (found.is_closed, found.latest_attempt, found.has_ended) == (False, 0, False)
    signal(engine, claimed.execution_id, waitpoint)
    again = claim_one(engine, claimed.handle.lane)
    engine.append_frame(again.handle, frame("b"))

    found = read_all(engine, claimed.execution_id)

    assert payloads(found) == [b"a", b"b"]
    assert (found.is_closed, found.latest_attempt) == (False, 0)


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        (TimeoutBehavior.FAIL, StreamCloseReason.TIMED_OUT),
        (TimeoutBehavior.CANCEL, StreamCloseReason.ATTEMPT_CANCELLED),
        (TimeoutBehavior.EXPIRE, StreamCloseReason.EXPIRED),
    ],
)
def test_the_end_of_a_suspension_that_nothing_met_closes_the_stream(
    engine: Engine, clock: Clock, behavior: TimeoutBehavior, reason: StreamCloseReason
) -> None:
    claimed = running(engine)
    suspend(engine, claimed, "ready", timeout=SECOND, timeout_behavior=behavior)
    clock.move(SECOND)
    assert read_all(engine, claimed.execution_id).closed_reason is reason


def test_an_execution_that_ends_before_it_begins_closes_every_stream(engine: Engine, clock: Clock) -> None:
    execution = created(engine)
    waiting = read_all(engine, execution)
    assert (waiting.is_closed, waiting.latest_attempt, waiting.has_ended) == (False, None, False)
    cancel(engine, execution)

    found = read_all(engine, execution)

    assert found.closed_reason is StreamCloseReason.ATTEMPT_CANCELLED
    assert (found.closed_at_ms, found.latest_attempt, found.has_ended) == (clock.ms, None, True)


def test_the_next_attempt_is_open_between_a_failure_and_its_retry(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=RETRYING)
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)

    first, second = (read_all(engine, claimed.execution_id, attempt) for attempt in (0, 1))

    assert (first.is_closed, second.is_closed) == (True, False)
    assert (first.latest_attempt, second.latest_attempt, second.has_ended) == (0, 0, False)


def test_attempts_before_the_last_hundred_are_closed_without_a_reason(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(
        retry=RetryPolicy(max_retries=200, backoff="fixed", initial=timedelta(milliseconds=1), jitter=False)
    )
    claimed = running(engine, policy=policy)
    engine.append_frame(claimed.handle, frame("a"))
    for _ in range(102):
        engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
        claimed = claim_one(engine, claimed.handle.lane)

    oldest, kept = (read_all(engine, claimed.execution_id, attempt) for attempt in (0, 90))

    assert (oldest.closed_reason, payloads(oldest)) == (None, [b"a"])
    assert oldest.is_closed
    assert kept.closed_reason is StreamCloseReason.ATTEMPT_FAILURE


# The keys of streams.


def keys_of(dump: Dump, execution_id: ExecutionId) -> list[str]:
    return [key for key in dump() if execution_id.uuid in key]


def streamed(engine: Engine) -> Claimed:
    """Return an execution that has used every kind of frame, in two attempts."""
    claimed = running(engine, policy=ExecutionPolicy(retry=RETRYING.retry, retention=HOUR))
    for attempt in range(2):
        append_all(engine, claimed.handle, [frame("a", seq=1), live("b", seq=2), patch("{}", seq=3)])
        append_all(engine, claimed.handle, [frame("a"), live("b"), patch('{"a": [1]}')])
        if attempt == 0:
            engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
            claimed = claim_one(engine, claimed.handle.lane)
    return claimed


def test_nothing_is_left_of_a_stream_after_the_retention(engine: Engine, clock: Clock, dump: Dump) -> None:
    claimed = streamed(engine)
    engine.complete(claimed.handle)
    clock.move(HOUR - timedelta(milliseconds=1))
    upkeep_all(engine)
    assert len(payloads(read_all(engine, claimed.execution_id, 1))) == 6
    clock.move(timedelta(milliseconds=1))
    with refused("execution_not_found"):
        read_all(engine, claimed.execution_id, 1)
    upkeep_all(engine)
    assert keys_of(dump, claimed.execution_id) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_a_purge_leaves_nothing_of_a_stream(engine: Engine, dump: Dump, damaged: bool) -> None:
    claimed = streamed(engine)
    if damaged:
        damage(engine, claimed.execution_id, "priority", b"nonsense")
        with refused("corruption"):
            read_all(engine, claimed.execution_id)
    else:
        engine.complete(claimed.handle)
    engine.purge(claimed.execution_id)
    assert keys_of(dump, claimed.execution_id) == []
    with refused("execution_not_found"):
        engine.read_summary(claimed.execution_id, 0)


def test_an_erased_store_holds_no_stream(engine: Engine, dump: Dump) -> None:
    streamed(engine)
    engine.erase()
    assert dump() == {}


def test_a_reader_that_came_first_leaves_nothing_either(engine: Engine, dump: Dump) -> None:
    execution = created(engine)
    engine.tail_stream(execution, 0, read_all(engine, execution).next_cursor, timedelta(milliseconds=20), 1)
    cancel(engine, execution)
    engine.purge(execution)
    assert keys_of(dump, execution) == []
