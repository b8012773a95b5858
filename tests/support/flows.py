"""Short ways to make flows and to run their members, for the conformance suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.edges import (
    AllOf,
    ApplyDependencyToChildArgs,
    ApplyDependencyToChildResult,
    DependencyEdge,
    EdgeDependencyPolicy,
    StageDependencyEdgeArgs,
    StageDependencyEdgeResult,
)
from flowfabric_worker.engine.types.flows import (
    AddExecutionToFlowArgs,
    CreateFlowArgs,
    FlowEdge,
    FlowGraph,
    FlowNode,
    FlowSnapshot,
)
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import BOOM, all_created, creation, ids_in, request

# An edge of a test: upstream, downstream, and the argument that receives the result if it passes one.
Pair = tuple[str, str] | tuple[str, str, str]

DIAMOND: tuple[Pair, ...] = (("a", "b", "x"), ("a", "c"), ("b", "d", "left"), ("c", "d", "right"))


def graph_of(
    *pairs: Pair,
    nodes: Iterable[str] | None = None,
    policies: Mapping[str, EdgeDependencyPolicy] | None = None,
    flow_id: str | None = None,
    **changes: Any,
) -> FlowGraph:
    """Return a graph of these edges. Each node is a task of its name, with changes, and waits as its policy says."""
    keys = list(dict.fromkeys([*(nodes or ()), *(key for pair in pairs for key in pair[:2])]))
    return FlowGraph(
        flow_id=FlowId(flow_id or str(uuid4())),
        kind="test",
        nodes=tuple(
            FlowNode(key=key, execution=creation(**{"task": key, **changes}), policy=(policies or {}).get(key, AllOf()))
            for key in keys
        ),
        edges=tuple(
            FlowEdge(upstream=pair[0], downstream=pair[1], data_passing_ref=pair[2] if len(pair) == 3 else None)
            for pair in pairs
        ),
    )


class Run:
    """A submitted flow whose members are claimed and ended by their keys."""

    def __init__(self, engine: Engine, graph: FlowGraph) -> None:
        self.engine = engine
        self.flow_id = graph.flow_id
        self.ids = engine.submit_flow(graph).execution_ids
        self.held: dict[str, Claimed] = {}

    def claim(self, **changes: Any) -> set[str]:
        """Claim everything that is ready; return the keys of what was claimed."""
        keys = {each: key for key, each in self.ids.items()}
        claimed = {
            keys[each.execution_id]: each for each in self.engine.claim_many(request(**{"limit": 500, **changes}))
        }
        self.held |= claimed
        return set(claimed)

    def complete(self, *keys: str) -> None:
        """Complete members that are claimed; the result of each is its key."""
        for key in keys:
            self.engine.complete(self.held.pop(key).handle, key.encode())

    def fail(self, *keys: str) -> None:
        """Fail members that are claimed, for good."""
        for key in keys:
            self.engine.fail(self.held.pop(key).handle, BOOM, FailureClass.PERMANENT)

    def drain(self) -> list[set[str]]:
        """Claim and complete until nothing is ready; return what was claimed each time."""
        rounds = []
        while ready := self.claim():
            rounds.append(ready)
            self.complete(*ready)
        return rounds

    def states(self) -> dict[str, PublicState | None]:
        """Return the state of each member."""
        return {key: self.engine.read_execution_state(each) for key, each in self.ids.items()}

    @property
    def flow(self) -> FlowSnapshot:
        """The flow at this moment."""
        snapshot = self.engine.describe_flow(self.flow_id)
        assert snapshot is not None
        return snapshot

    def counts(self) -> dict[str, int]:
        """Return the numbers of members in the states in which there are any."""
        return {state.value: count for state, count in self.flow.member_counts.items() if count}


def flow_with(
    engine: Engine, count: int, flow_id: FlowId | None = None, **changes: Any
) -> tuple[FlowId, list[ExecutionId]]:
    """Return a new flow that is not sealed, and its members, which are ready."""
    flow_id = flow_id or FlowId(str(uuid4()))
    engine.create_flow(CreateFlowArgs(flow_id=flow_id, kind="dag"))
    members = executions_beside(engine, flow_id, count, **changes)
    for each in members:
        engine.add_execution_to_flow(AddExecutionToFlowArgs(flow_id=flow_id, execution_id=each))
    return flow_id, members


def executions_beside(engine: Engine, flow_id: FlowId, count: int, **changes: Any) -> list[ExecutionId]:
    """Return new executions in the partition of a flow."""
    ids = ids_in(engine, partition_of_uuid(UUID(flow_id), engine.partitions), count)
    return all_created(engine, [creation(execution_id=each, **changes) for each in ids])


def edge(flow_id: FlowId, name: str, ends: Sequence[ExecutionId], **changes: Any) -> DependencyEdge:
    """Return an edge between two executions."""
    return DependencyEdge(
        flow_id=flow_id,
        edge_id=EdgeId(name),
        upstream_execution_id=ends[0],
        downstream_execution_id=ends[1],
        **changes,
    )


def member(flow: FlowId, execution: ExecutionId) -> AddExecutionToFlowArgs:
    """Return the arguments that make an execution a member."""
    return AddExecutionToFlowArgs(flow_id=flow, execution_id=execution)


def stage(
    engine: Engine, flow: FlowId, name: str, ends: Sequence[ExecutionId], revision: int | None = None
) -> StageDependencyEdgeResult:
    """Stage an edge; by default at the present revision."""
    known = engine.describe_flow(flow)
    assert known is not None
    expected = known.graph_revision if revision is None else revision
    args = StageDependencyEdgeArgs(edge=edge(flow, name, ends), expected_graph_revision=expected)
    return engine.stage_dependency_edge(args)


def apply(engine: Engine, flow: FlowId, name: str) -> ApplyDependencyToChildResult:
    """Put a staged edge into force."""
    return engine.apply_dependency_to_child(ApplyDependencyToChildArgs(flow_id=flow, edge_id=EdgeId(name)))
