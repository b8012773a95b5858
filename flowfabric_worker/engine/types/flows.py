"""The arguments and results of the area flows: flows, whole graphs, and how flows are cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.edges import (
    AllOf,
    DependencyKind,
    EdgeDependencyPolicy,
    EdgeGroupSnapshot,
    as_dependency_kind,
)
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

# ── Building a flow step by step ──


@attrs.frozen(kw_only=True)
class CreateFlowArgs:
    """A flow to create, in the engine's namespace.

    Attributes:
        flow_id: a UUID; the flow's partition follows from it.
        kind: the kind of flow, a word that the caller chooses.
        tags: values by key, to find the flow by.
    """

    flow_id: FlowId = attrs.field(validator=checks.name)
    kind: str = attrs.field(validator=checks.name)
    tags: Mapping[str, str] = attrs.field(factory=dict, converter=checks.as_dict, validator=checks.names)


@attrs.frozen(kw_only=True)
class CreateFlowResult:
    """A flow that exists now; `created` is False when the same one existed before."""

    flow_id: FlowId
    created: bool


@attrs.frozen(kw_only=True)
class AddExecutionToFlowArgs:
    """An execution to make a member; it must be in the flow's partition."""

    flow_id: FlowId = attrs.field(validator=checks.name)
    execution_id: ExecutionId


@attrs.frozen(kw_only=True)
class AddExecutionToFlowResult:
    """A member of the flow; `added` is False if it was a member before."""

    execution_id: ExecutionId
    added: bool
    node_count: int


# ── A whole graph at once ──


@attrs.frozen(kw_only=True)
class FlowNode:
    """An execution of a graph.

    Attributes:
        key: the name of the node in the graph.
        execution: the execution to create for it.
        policy: when the upstream nodes let it run.
    """

    key: str = attrs.field(validator=checks.name)
    execution: CreateExecutionArgs
    policy: EdgeDependencyPolicy = attrs.field(factory=AllOf)


@attrs.frozen(kw_only=True)
class FlowEdge:
    """An edge between two nodes, by their keys; `data_passing_ref` as in `DependencyEdge`."""

    upstream: str = attrs.field(validator=checks.name)
    downstream: str = attrs.field(validator=checks.name)
    dependency_kind: DependencyKind = attrs.field(default=DependencyKind.SUCCESS_ONLY, converter=as_dependency_kind)
    data_passing_ref: str | None = attrs.field(default=None, validator=optional(checks.name))


@attrs.frozen(kw_only=True)
class FlowGraph:
    """A flow with all its nodes and edges. Results are passed in the order of the edges."""

    flow_id: FlowId = attrs.field(validator=checks.name)
    kind: str = attrs.field(validator=checks.name)
    nodes: tuple[FlowNode, ...] = attrs.field(converter=checks.as_tuple)
    edges: tuple[FlowEdge, ...] = attrs.field(default=(), converter=checks.as_tuple)
    tags: Mapping[str, str] = attrs.field(factory=dict, converter=checks.as_dict, validator=checks.names)


@attrs.frozen(kw_only=True)
class SubmitFlowResult:
    """A flow that runs now, and the executions of its nodes by key.

    `created` is False when the same flow was submitted before.
    """

    flow_id: FlowId
    created: bool
    execution_ids: Mapping[str, ExecutionId]


# ── The results of parents, and children ──


@attrs.frozen(kw_only=True)
class FlowInput:
    """The outcome of an upstream execution, for an argument of the downstream one.

    Attributes:
        name: the `data_passing_ref` of the edge.
    """

    edge_id: EdgeId
    name: str
    outcome: ExecutionOutcome


@attrs.frozen(kw_only=True)
class InputsPage:
    """The next inputs of an execution, in the order of their edges; `next_cursor` is None on the last page."""

    inputs: tuple[FlowInput, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class SpawnResult:
    """A child of an execution; `created` is False when it was spawned before."""

    execution_id: ExecutionId
    created: bool


# ── Cancelling ──


class CancelFlowPolicy(StrEnum):
    """Which members are cancelled with a flow: none, all, or those that have not started."""

    FLOW_ONLY = "flow_only"
    CANCEL_ALL = "cancel_all"
    CANCEL_PENDING = "cancel_pending"


@attrs.frozen
class CancelFlowWait:
    """How long a cancellation waits until its members have ended; None without end."""

    timeout: timedelta | None = attrs.field(validator=optional(checks.duration()))

    @classmethod
    def no_wait(cls) -> CancelFlowWait:
        """Return a wait of zero."""
        return cls(timedelta(0))

    @classmethod
    def at_most(cls, timeout: timedelta) -> CancelFlowWait:
        """Return a wait of at most `timeout`."""
        return cls(timeout)

    @classmethod
    def indefinite(cls) -> CancelFlowWait:
        """Return a wait until the last member has ended."""
        return cls(None)


class CancelFlowStatus(StrEnum):
    """How far a cancellation has come."""

    CANCELLED = "cancelled"
    SCHEDULED = "scheduled"
    PARTIALLY_CANCELLED = "partially_cancelled"


@attrs.frozen(kw_only=True)
class CancelFlowResult:
    """A cancelled flow.

    Attributes:
        status: CANCELLED if every member that the policy covers has ended, SCHEDULED if some have not yet,
            PARTIALLY_CANCELLED if some could not be cancelled.
        policy: the policy of the first call, which counts.
        member_count: how many members the flow has.
        member_execution_ids: the first 1,000 members.
        failed_member_execution_ids: the members that could not be cancelled.
    """

    status: CancelFlowStatus
    policy: CancelFlowPolicy
    member_count: int
    member_execution_ids: tuple[ExecutionId, ...]
    failed_member_execution_ids: tuple[ExecutionId, ...] = ()


@attrs.frozen(kw_only=True)
class CancelFlowArgs:
    """A flow to mark as cancelled."""

    flow_id: FlowId = attrs.field(validator=checks.name)
    policy: CancelFlowPolicy
    reason: str | None = attrs.field(default=None, validator=optional(checks.name))


@attrs.frozen(kw_only=True)
class CancelFlowHeader:
    """A flow that was marked as cancelled, or had ended before.

    Attributes:
        already_terminal: whether the flow had ended before; policy and reason are then those of that end, if any.
        member_count: how many members the flow has.
        member_execution_ids: the first 1,000 members.
    """

    already_terminal: bool
    policy: CancelFlowPolicy | None
    reason: str | None
    member_count: int
    member_execution_ids: tuple[ExecutionId, ...]


# ── Reading ──


class FlowState(StrEnum):
    """The state of a flow, kept with the counts of its members."""

    OPEN = "open"
    RUNNING = "running"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@attrs.frozen(kw_only=True)
class FlowSnapshot:
    """A flow at one moment.

    Attributes:
        graph_revision: counts the members added and the edges staged.
        member_counts: the number of members per public state.
        failed_execution_ids: the first 10 members, by id, that failed, expired or were cancelled by an operator.
        edge_groups: the first 1,000 groups, by downstream execution.
        more_edge_groups: whether there are more groups.
    """

    flow_id: FlowId
    kind: str
    namespace: str
    state: FlowState
    graph_revision: int
    node_count: int
    edge_count: int
    member_counts: Mapping[PublicState, int]
    created_at_ms: int
    last_mutation_at_ms: int
    cancelled_at_ms: int | None
    cancel_reason: str | None
    cancellation_policy: CancelFlowPolicy | None
    tags: Mapping[str, str]
    failed_execution_ids: tuple[ExecutionId, ...]
    edge_groups: tuple[EdgeGroupSnapshot, ...]
    more_edge_groups: bool


@attrs.frozen(kw_only=True)
class FlowSummary:
    """A flow in a listing."""

    flow_id: FlowId
    kind: str
    state: FlowState
    created_at_ms: int


@attrs.frozen(kw_only=True)
class ListFlowsPage:
    """A page of flows by id; `next_cursor` is None on the last one."""

    flows: tuple[FlowSummary | DamagedRow, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class FlowMember:
    """A member of a flow in a listing; `headers` are those of its submission."""

    summary: ExecutionSummary
    headers: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ListFlowMembersPage:
    """A page of the members of a flow by id; `next_cursor` is None on the last one."""

    members: tuple[FlowMember, ...]
    next_cursor: str | None
