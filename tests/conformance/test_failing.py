"""Attempts that fail: by class, retried by policy, with backoff, and kept as history."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.limits import MAX_DETAIL_BYTES, MAX_MESSAGE_BYTES
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import (
    Failure,
    FailureReason,
    RetryScheduled,
    TerminalCancelled,
    TerminalFailed,
)
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.reads import AttemptSummary, PastAttempt
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LEASE, claim_one, info_of, refused, request, running

MILLISECOND = timedelta(milliseconds=1)
AT_ONCE = timedelta()
RETRYABLE = (FailureClass.TRANSIENT, FailureClass.TIMEOUT, FailureClass.INFRA_CRASH)


def fixed(ms: int = 10, **changes: Any) -> ExecutionPolicy:
    """Retry that wait as long each time."""
    return ExecutionPolicy(
        retry=RetryPolicy(**{"backoff": "fixed", "initial": timedelta(milliseconds=ms), "jitter": False, **changes})
    )


def fail(engine: Engine, claimed: Claimed, classification: FailureClass = FailureClass.TRANSIENT) -> Any:
    return engine.fail(claimed.handle, BOOM, classification)


# Outcomes of a failure


def test_a_retryable_failure_is_tried_again_after_the_backoff(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=fixed(10))
    assert fail(engine, claimed) == RetryScheduled(delay_until_ms=clock.ms + 10)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.delay_until_ms, info.retry_count) == (PublicState.DELAYED, clock.ms + 10, 1)
    assert (info.current_lease, info.error, info.error_class) == (None, "boom", "transient")
    clock.move(timedelta(milliseconds=9))
    assert engine.claim_many(request(claimed.handle.lane)) == []
    clock.move(MILLISECOND)
    again = claim_one(engine, claimed.handle.lane)
    assert (again.handle.attempt_index, again.attempt_type, again.retry_count) == (1, "retry", 1)
    assert again.handle.attempt_id != claimed.handle.attempt_id


@pytest.mark.parametrize("classification", RETRYABLE)
def test_every_class_that_may_pass_is_retried(engine: Engine, classification: FailureClass) -> None:
    assert isinstance(fail(engine, running(engine, policy=fixed()), classification), RetryScheduled)


def test_a_permanent_failure_is_never_retried(engine: Engine) -> None:
    claimed = running(engine, policy=fixed())
    assert fail(engine, claimed, FailureClass.PERMANENT) == TerminalFailed()
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.error, info.error_class) == (PublicState.FAILED, "boom", "permanent")
    assert (info.retry_count, info.current_lease) == (0, None)


def test_a_cancelled_failure_ends_cancelled(engine: Engine) -> None:
    claimed = running(engine, policy=fixed())
    assert fail(engine, claimed, FailureClass.CANCELLED) == TerminalCancelled()
    assert engine.read_execution_state(claimed.execution_id) is PublicState.CANCELLED


@pytest.mark.parametrize("classification", FailureClass)
@pytest.mark.parametrize("policy", [ExecutionPolicy(), fixed(max_retries=0)], ids=["no policy", "no retries"])
def test_without_retries_every_failure_is_the_end(
    engine: Engine, policy: ExecutionPolicy, classification: FailureClass
) -> None:
    claimed = running(engine, policy=policy)
    ended = TerminalCancelled() if classification is FailureClass.CANCELLED else TerminalFailed()
    assert fail(engine, claimed, classification) == ended


def test_retries_end_with_the_last_that_the_policy_allows(engine: Engine) -> None:
    claimed = running(engine, policy=fixed(0, max_retries=2))
    for _ in range(2):
        assert isinstance(fail(engine, claimed), RetryScheduled)
        claimed = claim_one(engine, claimed.handle.lane)
    assert fail(engine, claimed) == TerminalFailed()
    info = info_of(engine, claimed.execution_id)
    assert (info.retry_count, info.total_attempt_count) == (2, 3)


@pytest.mark.parametrize("classification", RETRYABLE)
@pytest.mark.parametrize("category", RETRYABLE)
def test_only_the_categories_that_a_policy_names_are_retried(
    engine: Engine, category: FailureClass, classification: FailureClass
) -> None:
    claimed = running(engine, policy=fixed(retryable_categories={category}))
    assert isinstance(fail(engine, claimed, classification), RetryScheduled) is (category is classification)


def test_several_categories_are_all_retried(engine: Engine) -> None:
    policy = fixed(retryable_categories={FailureClass.TRANSIENT, FailureClass.TIMEOUT})
    assert isinstance(fail(engine, running(engine, policy=policy), FailureClass.TIMEOUT), RetryScheduled)
    assert isinstance(fail(engine, running(engine, policy=policy), FailureClass.TRANSIENT), RetryScheduled)
    assert fail(engine, running(engine, policy=policy), FailureClass.INFRA_CRASH) == TerminalFailed()


# Delays of retries


def test_an_exponential_backoff_grows_up_to_its_maximum(engine: Engine, clock: Clock) -> None:
    retry = RetryPolicy(
        max_retries=9, initial=timedelta(seconds=1), multiplier=1.5, maximum=timedelta(seconds=4), jitter=False
    )
    claimed = running(engine, policy=ExecutionPolicy(retry=retry))
    waits = []
    for _ in range(6):
        outcome = fail(engine, claimed)
        waits.append(outcome.delay_until_ms - clock.ms)
        clock.move(timedelta(milliseconds=waits[-1]))
        claimed = claim_one(engine, claimed.handle.lane)
    assert waits == [1000, 1500, 2250, 3375, 4000, 4000]


def test_jitter_waits_between_half_and_the_whole_and_varies(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(retry=RetryPolicy(initial=timedelta(hours=1), maximum=timedelta(hours=1)))
    claims = [running(engine, policy=policy) for _ in range(20)]
    waits = {fail(engine, claimed).delay_until_ms - clock.ms for claimed in claims}
    assert all(1_800_000 <= wait <= 3_600_000 for wait in waits)
    assert len(waits) > 10


def test_retry_after_takes_the_place_of_the_backoff(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=fixed(10))
    outcome = engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, timedelta(seconds=2, microseconds=500))
    assert outcome == RetryScheduled(delay_until_ms=clock.ms + 2000)


@pytest.mark.parametrize("how", ["retry_after", "policy"])
def test_a_retry_without_a_wait_is_ready_at_once(engine: Engine, clock: Clock, how: str) -> None:
    claimed = running(engine, policy=fixed(0 if how == "policy" else 10))
    retry_after = AT_ONCE if how == "retry_after" else None
    outcome = engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after)
    assert outcome == RetryScheduled(delay_until_ms=clock.ms)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.delay_until_ms) == (PublicState.WAITING, None)
    assert claim_one(engine, claimed.handle.lane).attempt_type == "retry"


def test_a_failure_that_asks_for_a_retry_gets_three_without_a_policy(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    for _ in range(3):
        outcome = engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, timedelta(seconds=1))
        assert outcome == RetryScheduled(delay_until_ms=clock.ms + 1000)
        clock.move(timedelta(seconds=1))
        claimed = claim_one(engine, claimed.handle.lane)
    assert engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, timedelta(seconds=1)) == TerminalFailed()


def test_retry_after_does_not_make_a_retry_where_a_policy_has_none(engine: Engine) -> None:
    claimed = running(engine, policy=ExecutionPolicy(retry=RetryPolicy(max_retries=0)))
    assert engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, timedelta(seconds=1)) == TerminalFailed()
    claimed = running(engine, policy=fixed())
    assert engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT, timedelta(seconds=1)) == TerminalFailed()


def test_a_backoff_of_nothing_stays_nothing_however_often_it_grows(engine: Engine, clock: Clock) -> None:
    # 1000 to the power of 103 is more than a double holds; times nothing it is nothing.
    retry = RetryPolicy(max_retries=200, initial=timedelta(), multiplier=1000.0, jitter=False)
    claimed = running(engine, policy=ExecutionPolicy(retry=retry))
    for _ in range(105):
        assert fail(engine, claimed) == RetryScheduled(delay_until_ms=clock.ms)
        claimed = claim_one(engine, claimed.handle.lane)


# Records of failures


def test_message_and_detail_are_cut_at_their_limits(engine: Engine) -> None:
    handle = running(engine).handle
    reason = FailureReason(message="x" + "ä" * MAX_MESSAGE_BYTES, detail=bytes(range(256)) * 100)
    engine.fail(handle, reason, FailureClass.PERMANENT)
    info = info_of(engine, handle.execution_id)
    assert info.error == "x" + "ä" * (MAX_MESSAGE_BYTES // 2 - 1)
    assert info.error_detail == (bytes(range(256)) * 100)[:MAX_DETAIL_BYTES]


def test_message_and_detail_at_their_limits_are_kept_whole(engine: Engine) -> None:
    handle = running(engine).handle
    reason = FailureReason(message="x" * MAX_MESSAGE_BYTES, detail=b"y" * MAX_DETAIL_BYTES)
    engine.fail(handle, reason, FailureClass.PERMANENT)
    outcome = engine.read_outcome(handle.execution_id)
    assert outcome is not None
    assert (outcome.error, outcome.detail) == (reason.message, reason.detail)


def test_a_later_failure_replaces_what_an_earlier_one_said(engine: Engine) -> None:
    claimed = running(engine, policy=fixed(0))
    engine.fail(claimed.handle, FailureReason(message="first", detail=b"trace"), FailureClass.TRANSIENT)
    claimed = claim_one(engine, claimed.handle.lane)
    engine.fail(claimed.handle, FailureReason(message="second"), FailureClass.PERMANENT)
    info = info_of(engine, claimed.execution_id)
    assert (info.error, info.error_class, info.error_detail) == ("second", "permanent", b"")


def test_a_success_after_a_failure_reports_no_error(engine: Engine) -> None:
    claimed = running(engine, policy=fixed(0))
    fail(engine, claimed)
    engine.complete(claim_one(engine, claimed.handle.lane).handle, b"ok")
    outcome = engine.read_outcome(claimed.execution_id)
    assert outcome is not None
    assert (outcome.result, outcome.error, outcome.error_class, outcome.detail) == (b"ok", None, None, b"")


@pytest.mark.parametrize(
    ("reason", "classification", "retry_after"),
    [
        (BOOM, "fatal", None),
        (BOOM, None, None),
        (BOOM, FailureClass.TRANSIENT, timedelta(milliseconds=-1)),
        (BOOM, FailureClass.TRANSIENT, timedelta(days=36501)),
        (BOOM, FailureClass.TRANSIENT, 5),
        (FailureReason(message=b"bytes"), FailureClass.TRANSIENT, None),  # type: ignore[arg-type]  # what is tested
        (FailureReason(message="m", detail="text"), FailureClass.TRANSIENT, None),  # type: ignore[arg-type]  # likewise
    ],
)
def test_a_failure_that_is_not_valid_is_refused(
    engine: Engine, dump: Dump, reason: FailureReason, classification: Any, retry_after: Any
) -> None:
    handle = running(engine, policy=fixed()).handle
    before = dump()
    with refused("invalid_input"):
        engine.fail(handle, reason, classification, retry_after)
    assert dump() == before


def test_fail_many_answers_each_attempt_by_itself(engine: Engine, clock: Clock) -> None:
    retried, ended, gone = running(engine, policy=fixed(10)), running(engine), running(engine)
    engine.complete(gone.handle)
    answers = engine.fail_many(
        [
            Failure(handle=each.handle, reason=BOOM, classification=FailureClass.TRANSIENT)
            for each in (retried, ended, gone)
        ]
    )
    assert answers[:2] == [RetryScheduled(delay_until_ms=clock.ms + 10), TerminalFailed()]
    assert getattr(answers[2], "code", None) == "execution_not_active"


# The history of attempts.


def test_past_attempts_say_how_each_began_and_ended(engine: Engine, clock: Clock) -> None:
    start = clock.ms
    second = timedelta(seconds=1)
    claimed = running(engine, policy=fixed(0), worker="w1")
    lane = claimed.handle.lane
    clock.move(second)
    fail(engine, claimed)  # the initial attempt
    clock.move(second)
    claim_one(engine, lane, worker="w2")
    clock.move(LEASE)  # the retry is lost
    reclaimed = claim_one(engine, lane, worker="w3")
    engine.complete(reclaimed.handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))
    replayed = claim_one(engine, lane, worker="w4")
    assert (reclaimed.attempt_type, replayed.attempt_type) == ("reclaim", "replay")

    info = info_of(engine, claimed.execution_id)
    lost = start + 2000 + 30_000
    assert info.past_attempts == (
        _past(0, "initial", "ended_failure", start, start + 1000, "w1", "transient", "boom"),
        _past(
            1, "retry", "interrupted_reclaimed", start + 2000, lost, "w2", error="worker w2 stopped renewing its lease"
        ),
        _past(2, "reclaim", "ended_success", lost, lost, "w3"),
    )
    assert info.current_attempt == AttemptSummary(attempt_id=replayed.handle.attempt_id, attempt_index=3)
    assert info.total_attempt_count == 4


def _past(
    index: int,
    kind: str,
    ending: str,
    started: int,
    ended: int,
    worker: str,
    error_class: Any = None,
    error: Any = None,
) -> PastAttempt:
    return PastAttempt(
        attempt_index=index,
        attempt_type=kind,
        ending=ending,
        started_at_ms=started,
        ended_at_ms=ended,
        worker_instance_id=worker,
        error_class=error_class,
        error=error,
    )


def cancel(engine: Engine, handle: Handle) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=handle.execution_id))


def expire_by_permanent_failure(engine: Engine, handle: Handle) -> None:
    engine.fail(handle, BOOM, FailureClass.PERMANENT)


@pytest.mark.parametrize(
    ("end", "ending"),
    [
        (Engine.complete, "ended_success"),
        (Engine.cancel, "ended_cancelled"),
        (cancel, "ended_cancelled"),
        (expire_by_permanent_failure, "ended_failure"),
    ],
)
def test_a_replayed_attempt_keeps_how_it_had_ended(
    engine: Engine, end: Callable[[Engine, Handle], None], ending: str
) -> None:
    handle = running(engine).handle
    end(engine, handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=handle.execution_id))
    claim_one(engine, handle.lane)
    assert [past.ending for past in info_of(engine, handle.execution_id).past_attempts] == [ending]


def test_resumed_work_adds_no_attempt(engine: Engine) -> None:
    claimed = running(engine)
    engine.release(claimed.handle)
    claim_one(engine, claimed.handle.lane)
    info = info_of(engine, claimed.execution_id)
    assert (info.past_attempts, info.total_attempt_count) == ((), 1)


def test_a_revoked_attempt_is_kept_as_interrupted(engine: Engine) -> None:
    handle = running(engine).handle
    engine.revoke_lease(RevokeLeaseArgs(execution_id=handle.execution_id))
    claim_one(engine, handle.lane, worker="w2")
    (past,) = info_of(engine, handle.execution_id).past_attempts
    assert (past.ending, past.error) == ("interrupted_reclaimed", "its lease was revoked")


def test_a_long_message_in_the_history_is_cut_between_two_characters(engine: Engine) -> None:
    claimed = running(engine, policy=fixed(0))
    engine.fail(claimed.handle, FailureReason(message="x" + "ä" * 500), FailureClass.TRANSIENT)
    claim_one(engine, claimed.handle.lane)
    (past,) = info_of(engine, claimed.execution_id).past_attempts
    assert past.error == "x" + "ä" * 127


def test_a_hundred_past_attempts_are_kept_the_oldest_are_dropped(engine: Engine) -> None:
    claimed = running(engine, policy=fixed(0, max_retries=200))
    for _ in range(103):
        fail(engine, claimed)
        claimed = claim_one(engine, claimed.handle.lane)
    info = info_of(engine, claimed.execution_id)
    assert [past.attempt_index for past in info.past_attempts] == list(range(3, 103))
    assert (info.total_attempt_count, info.current_attempt) == (
        104,
        AttemptSummary(attempt_id=claimed.handle.attempt_id, attempt_index=103),
    )
