"""Flows that are built member by member and edge by edge: what each call does, and what it refuses, in which order."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    EdgeGroupState,
    EdgeState,
    OnSatisfied,
    Quorum,
    SetEdgeGroupPolicyResult,
)
from flowfabric_worker.engine.types.flows import (
    AddExecutionToFlowArgs,
    CreateFlowArgs,
    FlowState,
)
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import BOOM, claim_one, ids_in, info_of, refused, upkeep_all
from tests.support.flows import apply, edge, executions_beside, flow_with, member, stage


def finish(engine: Engine, execution: ExecutionId) -> None:
    """Run an execution of the lane to its end; it must be the first that is ready."""
    claimed = claim_one(engine)
    assert claimed.execution_id == execution
    engine.complete(claimed.handle, b"r")


def test_a_new_flow_is_open_and_empty(engine: Engine, clock: Clock) -> None:
    args = CreateFlowArgs(flow_id=FlowId(str(uuid4())), kind="dag", tags={"team": "x"})
    assert engine.create_flow(args).created
    assert not engine.create_flow(args).created
    with refused("conflict"):
        engine.create_flow(attrs.evolve(args, kind="other"))

    flow = engine.describe_flow(args.flow_id)
    assert flow is not None
    assert (flow.kind, flow.state, flow.graph_revision, flow.node_count, flow.edge_count) == (
        "dag", FlowState.OPEN, 0, 0, 0,
    )  # fmt: skip
    assert flow.tags == {"team": "x"}
    assert (flow.created_at_ms, flow.last_mutation_at_ms) == (clock.ms, clock.ms)
    assert (flow.cancelled_at_ms, flow.cancel_reason, flow.cancellation_policy) == (None, None, None)
    assert engine.describe_flow(FlowId(str(uuid4()))) is None


def test_adding_a_member_twice_counts_it_once(engine: Engine) -> None:
    flow, members = flow_with(engine, 3)
    again = engine.add_execution_to_flow(AddExecutionToFlowArgs(flow_id=flow, execution_id=members[0]))
    assert (again.added, again.node_count) == (False, 3)
    described = engine.describe_flow(flow)
    assert described is not None
    assert (described.node_count, described.graph_revision) == (3, 3)
    assert described.member_counts[PublicState.WAITING] == 3


def test_an_ended_execution_may_join_and_stays_as_long_as_the_flow(engine: Engine, clock: Clock) -> None:
    flow, (member,) = flow_with(engine, 1)
    ended = executions_beside(engine, flow, 1)[0]
    engine.cancel_execution(CancelExecutionArgs(execution_id=ended))
    engine.add_execution_to_flow(AddExecutionToFlowArgs(flow_id=flow, execution_id=ended))
    clock.move(timedelta(days=3))
    upkeep_all(engine)
    assert info_of(engine, ended).remove_at_ms is None
    finish(engine, member)
    engine.seal_flow(flow)
    described = engine.describe_flow(flow)
    assert described is not None
    assert described.state is FlowState.FAILED


def test_an_edge_holds_its_child_back_until_its_parent_ends(engine: Engine) -> None:
    flow, (a, b) = flow_with(engine, 2)
    staged = stage(engine, flow, "e", (a, b))
    assert (staged.staged, staged.graph_revision) == (True, 3)
    # A staged edge alone holds nothing back.
    assert engine.read_execution_state(b) is PublicState.WAITING
    applied = apply(engine, flow, "e")
    assert (applied.applied, applied.unsatisfied_count) == (True, 1)
    assert not apply(engine, flow, "e").applied
    assert engine.read_execution_state(b) is PublicState.WAITING_CHILDREN
    assert info_of(engine, b).state.blocking_reason == "waiting_for_children"

    finish(engine, a)
    finish(engine, b)
    described = engine.describe_flow(flow)
    assert described is not None
    assert described.state is FlowState.OPEN
    engine.seal_flow(flow)
    engine.seal_flow(flow)
    described = engine.describe_flow(flow)
    assert described is not None
    assert described.state is FlowState.COMPLETED


def test_once_an_edge_is_applied_all_staged_ones_must_resolve(engine: Engine) -> None:
    flow, (a, b, c) = flow_with(engine, 3)
    stage(engine, flow, "e1", (a, c))
    stage(engine, flow, "e2", (b, c))
    assert apply(engine, flow, "e1").unsatisfied_count == 2
    finish(engine, a)
    assert engine.read_execution_state(c) is PublicState.WAITING_CHILDREN
    assert apply(engine, flow, "e2").unsatisfied_count == 1
    finish(engine, b)
    assert engine.read_execution_state(c) is PublicState.WAITING


@pytest.mark.parametrize(
    ("outcome", "child", "state"),
    [("success", PublicState.WAITING, EdgeState.SATISFIED), ("failed", PublicState.SKIPPED, EdgeState.IMPOSSIBLE)],
)
def test_a_link_to_a_parent_that_has_ended_decides_at_once(
    engine: Engine, outcome: str, child: PublicState, state: EdgeState
) -> None:
    flow, (a, b) = flow_with(engine, 2)
    claimed = claim_one(engine)
    assert claimed.execution_id == a
    if outcome == "success":
        engine.complete(claimed.handle, b"5")
    else:
        engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT)

    linked = engine.link(edge(flow, "e", (a, b), data_passing_ref="x"))

    assert (linked.created, linked.edge_state, linked.unsatisfied_count) == (True, state, 0)
    assert engine.read_execution_state(b) is child
    again = engine.link(edge(flow, "e", (a, b), data_passing_ref="x"))
    assert again == attrs.evolve(linked, created=False)
    if outcome == "success":
        assert [each.outcome.result for each in claim_one(engine).inputs] == [b"5"]


def test_staged_edges_whose_parents_have_ended_decide_when_one_is_applied(engine: Engine) -> None:
    flow, (a, b) = flow_with(engine, 2)
    stage(engine, flow, "e", (a, b))
    finish(engine, a)
    assert engine.read_execution_state(b) is PublicState.WAITING
    assert apply(engine, flow, "e").unsatisfied_count == 0
    finish(engine, b)


def test_a_member_of_one_flow_cannot_join_another(engine: Engine) -> None:
    flow, (a,) = flow_with(engine, 1)
    other = FlowId(ids_in(engine, a.partition_number, 1)[0].uuid)
    engine.create_flow(CreateFlowArgs(flow_id=other, kind="dag"))
    with refused("execution_already_in_flow") as caught:
        engine.add_execution_to_flow(member(other, a))
    assert caught.value.details["flow_id"] == flow


@pytest.mark.parametrize("policy", [AllOf(), AllOf(OnSatisfied.CANCEL_REMAINING), AllEnded(), AnyOf(), Quorum(2)])
def test_a_policy_is_set_once_and_read_back(engine: Engine, policy: Any) -> None:
    flow, (a, b) = flow_with(engine, 2)
    assert engine.set_edge_group_policy(flow, b, policy) is SetEdgeGroupPolicyResult.SET
    assert engine.set_edge_group_policy(flow, b, policy) is SetEdgeGroupPolicyResult.ALREADY_SET
    with refused("edge_group_policy_fixed"):
        engine.set_edge_group_policy(flow, b, Quorum(3, OnSatisfied.LET_RUN))
    engine.link(edge(flow, "e", (a, b)))
    described = engine.describe_flow(flow)
    assert described is not None
    (group,) = described.edge_groups
    assert (group.policy, group.state, group.total_count) == (policy, EdgeGroupState.PENDING, 1)


def test_a_quorum_above_the_edges_waits_until_the_flow_has_them(engine: Engine) -> None:
    flow, (a, b, c) = flow_with(engine, 3)
    engine.set_edge_group_policy(flow, c, Quorum(2))
    engine.link(edge(flow, "e1", (a, c)))
    claimed = claim_one(engine)
    engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT)
    # One edge, which failed, proves nothing while others may come.
    assert engine.read_execution_state(c) is PublicState.WAITING_CHILDREN
    with refused("invalid_graph"):
        engine.seal_flow(flow)
    engine.link(edge(flow, "e2", (b, c)))
    assert engine.read_execution_state(c) is PublicState.SKIPPED
    engine.seal_flow(flow)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_long_chain_is_linked_and_never_closed(engine: Engine, backwards: bool) -> None:
    flow, members = flow_with(engine, 40)
    pairs = list(pairwise(members))
    for number, pair in enumerate(reversed(pairs) if backwards else pairs):
        engine.link(edge(flow, f"e{number}", pair))
    with refused("cycle_detected"):
        engine.link(edge(flow, "back", (members[-1], members[0])))
    engine.link(edge(flow, "short", (members[0], members[-1])))
