"""Suspensions and time: timeouts and what they do, delayed resumes, and the deadline and timeout of the attempt."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.conditions import Count, CountKind, OperatorOnly, TimeoutOnly
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import (
    ResumePolicy,
    ResumeReason,
    SignalEffect,
    SuspendArgs,
    SuspensionReason,
    TimeoutBehavior,
)
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, claim_one, claimed_ids, info_of, refused, running
from tests.support.maintenance import HandleDue, handled
from tests.support.suspensions import MINUTE, SECOND, effect_of, signal, suspend, suspended

AUTO_RESUME = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
MILLISECOND = timedelta(milliseconds=1)
RETRYING = ExecutionPolicy(retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False))
ENDS = {
    TimeoutBehavior.FAIL: (PublicState.FAILED, "suspension_timeout", None),
    TimeoutBehavior.EXPIRE: (PublicState.EXPIRED, "suspension_timeout", None),
    TimeoutBehavior.CANCEL: (PublicState.CANCELLED, None, "suspension_timeout"),
}


@handled
@pytest.mark.parametrize("behavior", ENDS)
def test_a_timeout_that_ends_the_execution_closes_everything(
    engine: Engine, clock: Clock, dump: Dump, behavior: TimeoutBehavior, handle_due: HandleDue
) -> None:
    claimed = running(engine, lane=LANE, policy=RETRYING)
    pending = engine.create_waitpoint(claimed.handle, "later", 10 * MINUTE)
    (waitpoint,) = suspend(engine, claimed, "go", timeout=MINUTE, timeout_behavior=behavior)
    clock.move(MINUTE - MILLISECOND)
    handle_due(engine)
    assert info_of(engine, claimed.execution_id).public_state is PublicState.SUSPENDED
    clock.move(MILLISECOND)

    handle_due(engine)

    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.error, info.cancel_reason) == ENDS[behavior]
    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints == ()
    assert engine.list_suspended(claimed.execution_id.partition_number).executions == ()
    before = dump()
    for each, why in ((waitpoint, "timed_out"), (pending, info.public_state)):
        with refused("waitpoint_closed") as caught:
            signal(engine, claimed.execution_id, each)
        assert caught.value.details["why"] == why
    assert dump() == before


@handled
def test_a_timeout_that_resumes_tells_the_partial_signals(engine: Engine, clock: Clock, handle_due: HandleDue) -> None:
    condition = Count(n=2, kind=CountKind.SIGNALS, waitpoint_keys=["go"])
    execution, waitpoint = suspended(engine, condition=condition, timeout=MINUTE, timeout_behavior=AUTO_RESUME)
    signal(engine, execution, waitpoint)
    clock.move(MINUTE)

    handle_due(engine)

    observed = engine.observe_signals(claim_one(engine).handle)
    assert (observed.reason, [each.name for each in observed.signals]) == (ResumeReason.TIMEOUT, ["go"])


def test_a_timeout_that_escalates_leaves_the_waitpoints_open(engine: Engine, clock: Clock) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE, timeout_behavior=TimeoutBehavior.ESCALATE)
    clock.move(2 * MINUTE)
    assert len(engine.list_pending_waitpoints(execution).waitpoints) == 1
    engine.run_upkeep()

    info = info_of(engine, execution)
    (row,) = engine.list_suspended(execution.partition_number).executions
    assert (info.public_state, info.state.blocking_reason) == (PublicState.SUSPENDED, "paused_by_operator")
    assert (row.timeout_at_ms, row.reason) == (None, SuspensionReason.WAITING_FOR_OPERATOR_REVIEW)
    assert engine.run_upkeep().handled == 0
    assert effect_of(signal(engine, execution, waitpoint)) is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.parametrize("behavior", [*ENDS, AUTO_RESUME])
def test_a_signal_after_the_timeout_never_resumes_swept_or_not(
    engine: Engine, clock: Clock, behavior: TimeoutBehavior
) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE, timeout_behavior=behavior)
    clock.move(MINUTE)
    assert engine.list_pending_waitpoints(execution).waitpoints == ()

    with refused("waitpoint_closed") as caught:
        signal(engine, execution, waitpoint)

    assert caught.value.details["why"] == "timed_out"
    decided = info_of(engine, execution)
    engine.run_upkeep()
    assert info_of(engine, execution) == decided


def test_a_timeout_is_over_once_the_execution_is_resumed(engine: Engine, clock: Clock) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE)
    signal(engine, execution, waitpoint)
    claimed = claim_one(engine, lease=10 * MINUTE)
    clock.move(2 * MINUTE)

    engine.run_upkeep()

    engine.complete(claimed.handle, b"")


def test_a_sleep_needs_no_waitpoint_and_wakes_at_its_moment(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    engine.suspend(claimed.handle, SuspendArgs(condition=TimeoutOnly(), timeout=SECOND, timeout_behavior=AUTO_RESUME))
    clock.move(SECOND - MILLISECOND)
    assert claimed_ids(engine) == []
    clock.move(MILLISECOND)

    resumed = claim_one(engine)

    assert engine.observe_signals(resumed.handle).reason is ResumeReason.TIMEOUT


@pytest.mark.parametrize("by", ["signal", "timeout"])
def test_the_resume_delay_holds_back_whatever_resumed(engine: Engine, clock: Clock, by: str) -> None:
    delay = ResumePolicy(resume_delay=SECOND)
    execution, waitpoint = suspended(engine, resume_policy=delay, timeout=MINUTE, timeout_behavior=AUTO_RESUME)
    if by == "signal":
        signal(engine, execution, waitpoint)
    else:
        clock.move(MINUTE)
        engine.run_upkeep()
    assert info_of(engine, execution).state.blocking_reason == "waiting_for_resume_delay"
    clock.move(SECOND - MILLISECOND)
    assert claimed_ids(engine) == []
    clock.move(MILLISECOND)

    assert claimed_ids(engine) == [execution]


def test_the_attempt_timeout_stands_still_while_suspended(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(attempt_timeout=SECOND))
    clock.move(300 * MILLISECOND)
    (waitpoint,) = suspend(engine, claimed, "go")
    clock.move(MINUTE)
    engine.run_upkeep()
    signal(engine, claimed.execution_id, waitpoint)

    resumed = claim_one(engine)

    assert resumed.timeout_at_ms == clock.ms + 700
    engine.release(resumed.handle)
    assert claim_one(engine).timeout_at_ms == clock.ms + 1000


def test_the_deadline_ends_a_suspended_execution_and_closes_its_waitpoints(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(execution_deadline=MINUTE))
    (waitpoint,) = suspend(engine, claimed, "go", timeout=2 * MINUTE, timeout_behavior=AUTO_RESUME)
    clock.move(3 * MINUTE)
    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints == ()

    with refused("waitpoint_closed") as caught:
        signal(engine, claimed.execution_id, waitpoint)

    assert caught.value.details["why"] == "expired"
    assert info_of(engine, claimed.execution_id).public_state is PublicState.EXPIRED


def test_the_earlier_of_timeout_and_deadline_counts(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(execution_deadline=2 * MINUTE))
    suspend(engine, claimed, "go", timeout=MINUTE, timeout_behavior=TimeoutBehavior.CANCEL)
    clock.move(3 * MINUTE)

    engine.run_upkeep()

    assert info_of(engine, claimed.execution_id).public_state is PublicState.CANCELLED


def test_an_operator_resumes_whatever_the_condition_says(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    (waitpoint,) = suspend(engine, claimed, "go", condition=OperatorOnly())
    assert effect_of(signal(engine, claimed.execution_id, waitpoint, "__operator_only__")) is SignalEffect.NO_OP

    result = engine.resume_execution(claimed.execution_id, SECOND)

    assert result.ready_at_ms == clock.ms + 1000
    clock.move(SECOND)
    handle = claim_one(engine).handle
    assert engine.observe_signals(handle).reason is ResumeReason.OPERATOR
    with refused("waitpoint_closed") as caught:
        signal(engine, claimed.execution_id, waitpoint)
    assert caught.value.details["why"] == "resumed"
