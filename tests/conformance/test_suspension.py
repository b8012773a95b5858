"""Suspending: what becomes of the execution, what resumes it, and what its worker is told."""

from __future__ import annotations

from datetime import timedelta

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.conditions import (
    AllOf,
    Count,
    CountKind,
    SignalMatcher,
    Single,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    ResumeReason,
    SignalAccepted,
    SignalEffect,
    SignalSource,
    SuspendArgs,
    Suspended,
    SuspensionReason,
    TimeoutBehavior,
    WaitpointBinding,
)
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LANE, claim_one, claimed_ids, depths, info_of, refused, running
from tests.support.suspension_operations import approval
from tests.support.suspensions import MINUTE, SECOND, effect_of, signal, suspend, suspended, waiting_for

AUTO_RESUME = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
MILLISECOND = timedelta(milliseconds=1)
RETRYING = ExecutionPolicy(retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False))


def state_of(engine: Engine, execution: ExecutionId) -> str:
    state = info_of(engine, execution).state
    return " ".join(attrs.astuple(state))


# The way through ------------------------------------------------------------------------------------------------------


def test_a_signal_resumes_its_execution_in_the_same_attempt(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)

    outcome = engine.suspend(claimed.handle, waiting_for("go", continuation="step 2"))

    assert isinstance(outcome, Suspended)
    assert outcome.handle == attrs.evolve(claimed.handle, kind=HandleKind.SUSPENDED)
    (waitpoint,) = outcome.details.waitpoints
    assert state_of(engine, claimed.execution_id) == (
        "suspended unowned not_applicable waiting_for_signal none attempt_interrupted"
    )
    assert depths(engine, LANE) == {PublicState.SUSPENDED: 1}
    assert claimed_ids(engine) == []

    answer = signal(engine, claimed.execution_id, waitpoint, payload=b"\xff\0", correlation_id="c", category="order")

    assert effect_of(answer) is SignalEffect.RESUME_CONDITION_SATISFIED
    resumed = claim_one(engine)
    assert resumed.handle.kind is HandleKind.RESUMED
    assert (resumed.handle.attempt_index, resumed.handle.attempt_id) == (0, claimed.handle.attempt_id)
    assert resumed.handle.lease_epoch > claimed.handle.lease_epoch
    observed = engine.observe_signals(resumed.handle)
    assert (observed.reason, observed.continuation, observed.next_cursor) == (ResumeReason.SIGNAL, "step 2", None)
    (seen,) = observed.signals
    assert (seen.name, seen.payload, seen.correlation_id, seen.category) == ("go", b"\xff\0", "c", "order")
    assert (seen.source, seen.waitpoint_key, seen.matched) == (SignalSource("user", "jane"), "go", True)
    engine.complete(resumed.handle, b"done")


@pytest.mark.parametrize(
    ("reason", "blocking"),
    [
        (SuspensionReason.WAITING_FOR_SIGNAL, "waiting_for_signal"),
        (SuspensionReason.WAITING_FOR_APPROVAL, "waiting_for_approval"),
        (SuspensionReason.WAITING_FOR_CALLBACK, "waiting_for_callback"),
        (SuspensionReason.WAITING_FOR_TOOL_RESULT, "waiting_for_tool_result"),
        (SuspensionReason.WAITING_FOR_OPERATOR_REVIEW, "paused_by_operator"),
        (SuspensionReason.PAUSED_BY_POLICY, "paused_by_policy"),
        (SuspensionReason.PAUSED_BY_BUDGET, "waiting_for_budget"),
        (SuspensionReason.STEP_BOUNDARY, "waiting_for_signal"),
        (SuspensionReason.MANUAL_PAUSE, "paused_by_operator"),
    ],
)
def test_a_suspended_execution_says_what_blocks_it(engine: Engine, reason: SuspensionReason, blocking: str) -> None:
    execution, _ = suspended(engine, reason=reason)

    assert info_of(engine, execution).state.blocking_reason == blocking


def test_a_suspended_execution_says_since_when_and_until_when(engine: Engine, clock: Clock) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE)
    info = info_of(engine, execution)
    assert (info.suspended_at_ms, info.suspended_until_ms) == (clock.ms, clock.ms + 60_000)

    signal(engine, execution, waitpoint)

    info = info_of(engine, execution)
    assert (info.suspended_at_ms, info.suspended_until_ms) == (None, None)


def test_a_signal_that_matches_nothing_is_told_so_and_observed_as_such(engine: Engine) -> None:
    execution, waitpoint = suspended(engine, condition=Single("go", SignalMatcher("approved")))

    answer = signal(engine, execution, waitpoint, "aproved")

    assert isinstance(answer, SignalAccepted)
    assert (answer.effect, answer.awaited_names) == (SignalEffect.NO_OP, ("approved",))
    assert claimed_ids(engine) == []
    signal(engine, execution, waitpoint, "approved")
    observed = engine.observe_signals(claim_one(engine).handle)
    assert [(each.name, each.matched) for each in observed.signals] == [("aproved", False), ("approved", True)]
    assert [each.name for each in observed.matched] == ["approved"]


def test_every_waitpoint_of_a_suspension_closes_with_it(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    condition = Count(n=1, kind=CountKind.WAITPOINTS, waitpoint_keys=["a", "b", "c"])
    waitpoints = suspend(engine, claimed, "a", "b", "c", condition=condition)
    assert len(engine.list_pending_waitpoints(claimed.execution_id).waitpoints) == 3

    signal(engine, claimed.execution_id, waitpoints[1])

    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints == ()
    suspend(engine, claim_one(engine), "later")
    before = dump()
    for waitpoint in waitpoints:
        with refused("waitpoint_closed") as caught:
            signal(engine, claimed.execution_id, waitpoint)
        assert caught.value.details["why"] == "resumed"
    assert dump() == before


def test_resume_signals_stay_observable_until_the_next_suspension(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=RETRYING)
    (waitpoint,) = suspend(engine, claimed, "go")
    signal(engine, claimed.execution_id, waitpoint)
    first = claim_one(engine)
    told = engine.observe_signals(first.handle)
    assert told.reason is ResumeReason.SIGNAL

    engine.release(first.handle)
    released = claim_one(engine)
    assert engine.observe_signals(released.handle) == told
    engine.fail(released.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND)
    retried = claim_one(engine)
    assert (retried.handle.attempt_index, engine.observe_signals(retried.handle)) == (1, told)
    clock.move(MINUTE)
    reclaimed = claim_one(engine)
    assert (reclaimed.handle.kind, engine.observe_signals(reclaimed.handle)) == (HandleKind.RECLAIMED, told)
    suspend(engine, reclaimed, "next")
    assert engine.observe_signals(reclaimed.handle).reason is None


def test_a_fresh_execution_was_resumed_by_nothing(engine: Engine) -> None:
    observed = engine.observe_signals(running(engine).handle)

    assert (observed.reason, observed.signals, observed.continuation) == (None, (), None)


def test_a_suspension_that_is_refused_keeps_what_the_last_one_brought(engine: Engine) -> None:
    execution, waitpoint = suspended(engine)
    signal(engine, execution, waitpoint)
    handle = claim_one(engine).handle
    told = engine.observe_signals(handle)

    with refused("waitpoint_not_pending"):
        engine.suspend(handle, waiting_for("go"))

    assert engine.observe_signals(handle) == told


def test_observed_signals_are_paged_in_the_order_in_which_they_came(engine: Engine) -> None:
    names = [f"n{number}" for number in range(7)]
    execution, waitpoint = suspended(engine, condition=Count(n=7, kind=CountKind.SIGNALS, waitpoint_keys=["go"]))
    for name in names:
        signal(engine, execution, waitpoint, name)
    handle = claim_one(engine).handle

    seen, cursor = [], None
    while True:
        page = engine.observe_signals(handle, cursor, 3)
        seen += [each.name for each in page.signals]
        cursor = page.next_cursor
        if cursor is None:
            break

    assert seen == names


@pytest.mark.parametrize("payload", [None, b"", bytes(range(256)), b"x" * 64 * 1024])
def test_a_payload_arrives_as_it_was_sent(engine: Engine, payload: bytes | None) -> None:
    execution, waitpoint = suspended(engine)
    signal(engine, execution, waitpoint, payload=payload)

    assert engine.observe_signals(claim_one(engine).handle).signals[0].payload == payload


# Pending waitpoints ---------------------------------------------------------------------------------------------------


def test_a_signal_before_the_suspension_satisfies_it_and_keeps_the_lease(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "paid", MINUTE)
    answer = signal(engine, claimed.execution_id, pending, payload=b"7")
    assert effect_of(answer) is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT

    outcome = engine.suspend(claimed.handle, waiting_for("paid"))

    assert isinstance(outcome, AlreadySatisfied)
    assert [each.payload for each in outcome.signals] == [b"7"]
    assert outcome.details.waitpoints[0].token == pending.token
    assert engine.list_suspended(claimed.execution_id.partition_number).executions == ()
    assert engine.observe_signals(claimed.handle).signals == outcome.signals
    with refused("waitpoint_closed") as caught:
        signal(engine, claimed.execution_id, pending)
    assert caught.value.details["why"] == "already_satisfied"
    engine.complete(claimed.handle, b"")


@pytest.mark.parametrize("bind", [True, False], ids=["by its id", "by its name"])
def test_buffered_signals_and_later_ones_count_together(engine: Engine, bind: bool) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    signal(engine, claimed.execution_id, pending)
    binding = WaitpointBinding(waitpoint_key="go", pending=pending.waitpoint_id if bind else None)
    condition = AllOf([AllOf([Count(n=2, kind=CountKind.SIGNALS, waitpoint_keys=["go"])])])

    outcome = engine.suspend(claimed.handle, SuspendArgs(condition=condition, waitpoints=[binding]))

    assert isinstance(outcome, Suspended)
    assert outcome.details.waitpoints[0].token == pending.token
    assert effect_of(signal(engine, claimed.execution_id, pending)) is SignalEffect.RESUME_CONDITION_SATISFIED
    assert len(engine.observe_signals(claim_one(engine).handle).signals) == 2


def test_many_buffered_signals_are_counted_in_bounded_calls(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    other = engine.create_waitpoint(claimed.handle, "other", MINUTE)
    for number in range(205):
        signal(engine, claimed.execution_id, pending if number % 2 == 0 else other, f"n{number}")
    condition = Count(n=103, kind=CountKind.SIGNALS, waitpoint_keys=["go"])

    assert isinstance(engine.suspend(claimed.handle, waiting_for("go", condition=condition)), AlreadySatisfied)
    condition = Count(n=103, kind=CountKind.SIGNALS, waitpoint_keys=["other"])
    assert isinstance(engine.suspend(claimed.handle, waiting_for("other", condition=condition)), Suspended)
    assert effect_of(signal(engine, claimed.execution_id, other)) is SignalEffect.RESUME_CONDITION_SATISFIED
    assert len(engine.observe_signals(claim_one(engine).handle, limit=1000).signals) == 103


def test_a_waitpoint_asked_for_again_is_the_same_in_every_attempt(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=RETRYING)
    first = engine.create_waitpoint(claimed.handle, "cb", 10 * MINUTE)
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND)
    retried = claim_one(engine)

    again = engine.create_waitpoint(retried.handle, "cb", 10 * MINUTE)

    assert (again.waitpoint_id, again.token) == (first.waitpoint_id, first.token)
    assert len(engine.list_pending_waitpoints(claimed.execution_id).waitpoints) == 1
    suspend(engine, retried, "cb")
    signal(engine, claimed.execution_id, first)
    after = engine.create_waitpoint(claim_one(engine).handle, "cb", 10 * MINUTE)
    assert (after.waitpoint_id, after.token) == (first.waitpoint_id, first.token)


def test_an_expired_waitpoint_takes_no_signal_until_it_is_asked_for_again(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, lease=10 * MINUTE)
    pending = engine.create_waitpoint(claimed.handle, "cb", MINUTE)
    clock.move(MINUTE - MILLISECOND)
    assert effect_of(signal(engine, claimed.execution_id, pending)) is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    clock.move(MILLISECOND)

    with refused("waitpoint_closed") as caught:
        signal(engine, claimed.execution_id, pending)

    assert caught.value.details["why"] == "expired"
    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints == ()
    assert engine.create_waitpoint(claimed.handle, "cb", MINUTE).token == pending.token
    assert effect_of(signal(engine, claimed.execution_id, pending)) is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT


# Idempotency ----------------------------------------------------------------------------------------------------------


def test_the_same_suspension_by_the_same_lease_gets_the_first_answer(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    first = engine.suspend(claimed.handle, waiting_for("go", timeout=MINUTE))
    before = dump()

    assert engine.suspend(claimed.handle, waiting_for("go", timeout=MINUTE)) == first
    with refused("execution_not_active"):
        engine.suspend(claimed.handle, waiting_for("go", timeout=2 * MINUTE))
    assert dump() == before


@pytest.mark.parametrize("key", ["k", "é", "a b"])
def test_a_key_makes_another_suspension_the_same(engine: Engine, key: str) -> None:
    claimed = running(engine, lane=LANE)
    first = engine.suspend(claimed.handle, waiting_for("go", idempotency_key=key))

    assert engine.suspend(claimed.handle, waiting_for("other", idempotency_key=key)) == first
    with refused("execution_not_active"):
        engine.suspend(claimed.handle, waiting_for("go", idempotency_key=f"{key} 2"))


def test_a_key_of_one_execution_means_nothing_to_another(engine: Engine) -> None:
    outcomes = [
        engine.suspend(running(engine, lane=LANE).handle, waiting_for("go", idempotency_key="k")) for _ in range(2)
    ]

    assert len({outcome.details.suspension_id for outcome in outcomes}) == 2


# Operators ------------------------------------------------------------------------------------------------------------


def test_a_cancelled_execution_takes_no_late_signal(engine: Engine, dump: Dump) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE)
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
    before = dump()

    with refused("waitpoint_closed") as caught:
        signal(engine, execution, waitpoint)

    assert caught.value.details["why"] == "cancelled"
    assert (dump(), engine.list_suspended(execution.partition_number).executions) == (before, ())


def test_the_first_decision_stands_and_keeps_who_decided(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    (waitpoint,) = suspend(engine, claimed, "go", condition=Count(n=2, kind=CountKind.SIGNALS, waitpoint_keys=["go"]))
    execution = claimed.execution_id
    first = engine.deliver_approval_signal(approval(execution, waitpoint, payload=b"no"))
    assert effect_of(first) is SignalEffect.APPENDED_TO_WAITPOINT

    with refused("waitpoint_closed") as caught:
        engine.deliver_approval_signal(approval(execution, waitpoint, name="rejected", operator="bob"))

    details = caught.value.details
    assert (details["why"], details["decision"], details["decided_by"]) == ("decided", "approved", "ann")
    again = engine.deliver_approval_signal(approval(execution, waitpoint))
    assert isinstance(first, SignalAccepted)
    assert getattr(again, "existing_signal_id", None) == first.signal_id
    signal(engine, execution, waitpoint)
    decision = engine.observe_signals(claim_one(engine).handle).signals[0]
    assert (decision.category, decision.source, decision.payload) == (
        "approval",
        SignalSource("operator", "ann"),
        b"no",
    )


# Ends -----------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_an_execution_that_is_removed(engine: Engine, clock: Clock, dump: Dump) -> None:
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(retention=SECOND), lease=10 * MINUTE)
    pending = engine.create_waitpoint(claimed.handle, "never", MINUTE)
    signal(engine, claimed.execution_id, pending, idempotency_key="k", payload=b"x")
    (waitpoint,) = suspend(engine, claimed, "go")
    signal(engine, claimed.execution_id, waitpoint)
    again = claim_one(engine)
    suspend(engine, again, "more", timeout=SECOND)
    clock.move(SECOND)
    engine.run_upkeep()
    clock.move(10 * MINUTE)

    engine.run_upkeep()

    uuid = claimed.execution_id.uuid
    assert [key for key, value in dump().items() if uuid in key or (uuid in repr(value) and "feed" not in key)] == []
