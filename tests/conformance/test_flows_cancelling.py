"""Cancelling flows: which members go with it, what is never handed out again, and what a repeat answers."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineTimeoutError
from flowfabric_worker.engine.ids import FlowId
from flowfabric_worker.engine.types.edges import AnyOf, OnSatisfied
from flowfabric_worker.engine.types.flows import (
    CancelFlowArgs,
    CancelFlowPolicy,
    CancelFlowStatus,
    CancelFlowWait,
    FlowState,
)
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, RETRYING, TASK, info_of, refused, upkeep_all
from tests.support.flows import DIAMOND, Run, graph_of

ALL, PENDING, ONLY = CancelFlowPolicy.CANCEL_ALL, CancelFlowPolicy.CANCEL_PENDING, CancelFlowPolicy.FLOW_ONLY
NO_WAIT, FOREVER = CancelFlowWait.no_wait(), CancelFlowWait.indefinite()
CANCELLED = PublicState.CANCELLED


def half_run(engine: Engine) -> Run:
    """Return a flow of which a has completed, b runs, c is ready, and d waits."""
    run = Run(engine, graph_of(*DIAMOND, policy=RETRYING))
    run.claim()
    run.complete("a")
    run.claim()
    engine.release(run.held.pop("c").handle)
    return run


@pytest.mark.parametrize(
    ("policy", "states"),
    [
        (ALL, {"b": CANCELLED, "c": CANCELLED, "d": CANCELLED}),
        (PENDING, {"b": PublicState.ACTIVE, "c": CANCELLED, "d": CANCELLED}),
        (ONLY, {"b": PublicState.ACTIVE, "c": PublicState.WAITING, "d": PublicState.WAITING_CHILDREN}),
    ],
)
def test_a_policy_says_which_members_go_with_the_flow(
    engine: Engine, clock: Clock, policy: CancelFlowPolicy, states: dict[str, PublicState]
) -> None:
    run = half_run(engine)
    result = engine.cancel_flow(run.flow_id, policy, FOREVER, "operator_requested")

    assert run.states() == {"a": PublicState.COMPLETED, **states}
    assert (result.status, result.policy, result.member_count) == (CancelFlowStatus.CANCELLED, policy, 4)
    assert set(result.member_execution_ids) == set(run.ids.values())
    flow = run.flow
    assert (flow.state, flow.cancel_reason, flow.cancellation_policy) == (
        FlowState.CANCELLED, "operator_requested", policy,
    )  # fmt: skip
    assert flow.cancelled_at_ms == clock.ms
    if policy is ALL:
        assert info_of(engine, run.ids["b"]).cancel_reason == "operator_requested"
        with refused("execution_not_active"):
            run.complete("b")


@pytest.mark.parametrize("policy", [ALL, PENDING, ONLY])
def test_a_repeat_answers_the_stored_policy_and_reason(
    engine: Engine, clock: Clock, dump: Dump, policy: CancelFlowPolicy
) -> None:
    run = half_run(engine)
    first = engine.cancel_flow(run.flow_id, policy, NO_WAIT, "first")
    before = dump()
    again = engine.cancel_flow(run.flow_id, ALL, NO_WAIT, "second")

    assert again == first
    assert run.flow.cancel_reason == "first"
    assert dump() == before
    header = engine.cancel_flow_header(CancelFlowArgs(flow_id=run.flow_id, policy=ALL))
    assert (header.already_terminal, header.policy, header.reason) == (True, policy, "first")
    assert clock.ms == run.flow.cancelled_at_ms


def test_under_cancel_pending_a_retry_is_not_handed_out(engine: Engine) -> None:
    run = half_run(engine)
    engine.cancel_flow(run.flow_id, PENDING, NO_WAIT)
    engine.fail(run.held.pop("b").handle, BOOM, FailureClass.TRANSIENT)

    assert run.states()["b"] is CANCELLED
    assert run.claim() == set()


def test_a_lapsed_lease_of_a_cancelled_flow_is_not_claimed_again(engine: Engine, clock: Clock) -> None:
    run = half_run(engine)
    engine.cancel_flow(run.flow_id, PENDING, NO_WAIT)
    clock.move(timedelta(minutes=1))

    assert run.claim(worker="w2") == set()
    assert run.states()["b"] is CANCELLED


def test_what_a_cancelled_flow_reaches_over_an_edge_is_cancelled(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b"), ("a", "any"), ("b", "any"), policies={"any": AnyOf(OnSatisfied.LET_RUN)}))
    run.claim()
    engine.cancel_flow(run.flow_id, PENDING, NO_WAIT)
    run.complete("a")
    assert run.states() == {"a": PublicState.COMPLETED, "b": CANCELLED, "any": CANCELLED}


def test_members_of_a_flow_only_cancel_run_on_to_their_end(engine: Engine) -> None:
    run = half_run(engine)
    engine.cancel_flow(run.flow_id, ONLY, NO_WAIT)
    run.claim()
    run.complete("b", "c")
    assert run.drain() == [{"d"}]
    assert run.flow.state is FlowState.CANCELLED


def test_a_flow_that_has_ended_cannot_be_cancelled(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b")))
    run.drain()
    with refused("flow_already_terminal"):
        engine.cancel_flow(run.flow_id, ALL, NO_WAIT)
    header = engine.cancel_flow_header(CancelFlowArgs(flow_id=run.flow_id, policy=ALL))
    assert (header.already_terminal, header.policy, header.member_count) == (True, None, 2)
    assert run.flow.state is FlowState.COMPLETED
    with refused("flow_not_found"):
        engine.cancel_flow(FlowId(str(uuid4())), ALL, FOREVER)


def test_an_empty_flow_is_cancelled_at_once(engine: Engine) -> None:
    from tests.support.flows import flow_with

    flow, _ = flow_with(engine, 0)
    result = engine.cancel_flow(flow, ALL, CancelFlowWait.at_most(timedelta(milliseconds=500)))
    assert (result.status, result.member_execution_ids) == (CancelFlowStatus.CANCELLED, ())
    described = engine.describe_flow(flow)
    assert described is not None
    assert described.state is FlowState.CANCELLED


def wide(engine: Engine, count: int) -> Run:
    run = Run(engine, graph_of(nodes=[f"n{number}" for number in range(count)], task=TASK))
    upkeep_all(engine)
    return run


def test_a_wide_cancel_is_scheduled_and_finished_by_the_next_callers(engine: Engine, clock: Clock) -> None:
    run = wide(engine, 150)
    result = engine.cancel_flow(run.flow_id, ALL, NO_WAIT)
    assert result.status is CancelFlowStatus.SCHEDULED
    # None of those that still wait is handed out.
    assert run.claim() == set()
    upkeep_all(engine)
    assert run.counts() == {"cancelled": 150}
    assert engine.cancel_flow(run.flow_id, ALL, NO_WAIT).status is CancelFlowStatus.CANCELLED
    clock.move(timedelta(days=1))
    upkeep_all(engine)
    assert engine.describe_flow(run.flow_id) is None


def test_a_wait_ends_when_the_members_have_ended_or_the_time_is_over(engine: Engine) -> None:
    run = wide(engine, 150)
    with pytest.raises(EngineTimeoutError):
        engine.cancel_flow(run.flow_id, ALL, CancelFlowWait.at_most(timedelta(microseconds=1)))
    assert engine.cancel_flow(run.flow_id, ALL, FOREVER).status is CancelFlowStatus.CANCELLED
    assert run.counts() == {"cancelled": 150}


def test_keepers_cancel_what_a_header_left_and_no_one_acknowledged(engine: Engine, clock: Clock) -> None:
    run = half_run(engine)
    header = engine.cancel_flow_header(CancelFlowArgs(flow_id=run.flow_id, policy=ALL, reason="why"))
    assert (header.already_terminal, header.policy, header.reason, header.member_count) == (False, ALL, "why", 4)
    assert set(header.member_execution_ids) == set(run.ids.values())
    engine.ack_cancel_member(run.flow_id, run.ids["b"])
    engine.ack_cancel_member(run.flow_id, run.ids["b"])
    engine.ack_cancel_member(FlowId(str(uuid4())), run.ids["b"])
    clock.move(timedelta(seconds=29, milliseconds=999))
    engine.renew(run.held["b"].handle)
    upkeep_all(engine)
    assert run.states()["d"] is PublicState.WAITING_CHILDREN

    clock.move(timedelta(milliseconds=1))
    upkeep_all(engine)

    assert run.states() == {
        "a": PublicState.COMPLETED, "b": PublicState.ACTIVE, "c": CANCELLED, "d": CANCELLED,
    }  # fmt: skip
