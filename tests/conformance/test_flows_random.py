"""Random operations on random flows: members, edges, groups and the flow agree after each of them."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ConflictError, StateError
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    EdgeDependencyPolicy,
    EdgeGroupSnapshot,
    EdgeGroupState,
    EdgeSnapshot,
    EdgeState,
    OnSatisfied,
    Quorum,
)
from flowfabric_worker.engine.types.flows import CancelFlowPolicy, CancelFlowWait, FlowState
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.flows import Run, graph_of

CANCEL, LET = OnSatisfied.CANCEL_REMAINING, OnSatisfied.LET_RUN
NEVER_RAN = {PublicState.CANCELLED, PublicState.EXPIRED}
# The states in which the member of a group may be, by the state of the group.
UNDECIDED = {PublicState.WAITING_CHILDREN, *NEVER_RAN}
LOST = {PublicState.SKIPPED, *NEVER_RAN}
# What an operation may be refused for, as the states of members are random.
REFUSALS = {"execution_not_active", "execution_not_terminal", "max_replays_exhausted", "flow_already_terminal"}


def random_run(engine: Engine, draw: random.Random) -> Run:
    """Return a submitted flow with a random graph and random policies."""
    keys = [f"n{number}" for number in range(draw.randint(3, 9))]
    pairs = [(up, down, "x") for place, down in enumerate(keys) for up in keys[:place] if draw.random() < 0.35]
    policies: dict[str, EdgeDependencyPolicy] = {}
    for key, count in Counter(pair[1] for pair in pairs).items():
        others = draw.choice([CANCEL, LET])
        choices = (AllOf(), AllOf(CANCEL), AllEnded(), AnyOf(others), Quorum(draw.randint(1, count), others))
        policies[key] = draw.choice(choices)
    return Run(engine, graph_of(*pairs, nodes=keys, policies=policies))


def act(run: Run, draw: random.Random) -> None:
    """Do something to the flow or to one of its members; it may be refused in the state that the member is in."""
    key = draw.choice(sorted(run.ids))
    chance = draw.random()
    if chance < 0.4:
        run.claim(limit=draw.randint(1, 3))
    elif chance < 0.7 and run.held:
        key = draw.choice(sorted(run.held))
        (run.complete if draw.random() < 0.6 else run.fail)(key)
    elif chance < 0.76:
        run.engine.cancel_execution(CancelExecutionArgs(execution_id=run.ids[key]))
    elif chance < 0.98:
        run.engine.replay_execution(ReplayExecutionArgs(execution_id=run.ids[key]))
    else:
        policy = draw.choice([CancelFlowPolicy.CANCEL_ALL, CancelFlowPolicy.CANCEL_PENDING])
        run.engine.cancel_flow(run.flow_id, policy, CancelFlowWait.no_wait())


def check(run: Run) -> None:
    """Compare what the store says of the flow with its members and edges."""
    flow, states = run.flow, {run.ids[key]: state for key, state in run.states().items()}
    assert {state: count for state, count in flow.member_counts.items() if count} == Counter(states.values())
    edges = [each for each in run.engine.list_edges(run.flow_id).edges if isinstance(each, EdgeSnapshot)]
    assert len(edges) == flow.edge_count
    for group in flow.edge_groups:
        incoming = [each for each in edges if each.downstream_execution_id == group.downstream_execution_id]
        check_group(group, Counter(each.state for each in incoming), states[group.downstream_execution_id])
    for each in edges:
        if each.state is EdgeState.APPLIED:
            assert states[each.upstream_execution_id] is not PublicState.COMPLETED
    is_over = all(state is not None and state.is_terminal for state in states.values())
    assert (flow.state in (FlowState.COMPLETED, FlowState.FAILED)) <= is_over
    assert not is_over or flow.state in (FlowState.COMPLETED, FlowState.FAILED, FlowState.CANCELLED)


def check_group(group: EdgeGroupSnapshot, edges: Counter[EdgeState], member: PublicState | None) -> None:
    """Compare the counters of a group with its edges, and its state with that of its member."""
    assert group.satisfied_count == edges[EdgeState.SATISFIED]
    assert group.failed_count + group.skipped_count == edges[EdgeState.IMPOSSIBLE]
    if group.state is EdgeGroupState.PENDING:
        assert member in UNDECIDED
    elif group.state is EdgeGroupState.IMPOSSIBLE:
        assert member in LOST
    else:
        assert member is not PublicState.WAITING_CHILDREN


@pytest.mark.parametrize("seed", range(6))
def test_a_flow_agrees_with_its_members_whatever_is_done_to_them(engine: Engine, clock: Clock, seed: int) -> None:
    draw = random.Random(seed)
    run = random_run(engine, draw)
    for _ in range(40):
        try:
            act(run, draw)
        except (StateError, ConflictError) as error:
            if error.code not in REFUSALS:
                raise
        clock.move(timedelta(milliseconds=1))
        check(run)
