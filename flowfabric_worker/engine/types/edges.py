"""The arguments and results of the area flows that concern edges: groups, dependencies and their states."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow

# ── Groups: when the edges into one execution let it run ──


class OnSatisfied(StrEnum):
    """What happens to the other upstream executions once a group has fired, satisfied or not."""

    CANCEL_REMAINING = "cancel_remaining"
    LET_RUN = "let_run"


def _as_on_satisfied(value: object) -> OnSatisfied:
    return checks.word(OnSatisfied, value, "What becomes of the others")


@attrs.frozen
class AllOf:
    """Every upstream execution must succeed; `on_impossible` tells what happens to the others once one has not."""

    on_impossible: OnSatisfied = attrs.field(default=OnSatisfied.LET_RUN, converter=_as_on_satisfied)


@attrs.frozen
class AllEnded:
    """Every upstream execution must have ended, in whatever way."""


@attrs.frozen
class AnyOf:
    """One upstream execution must succeed."""

    on_satisfied: OnSatisfied = attrs.field(default=OnSatisfied.CANCEL_REMAINING, converter=_as_on_satisfied)


@attrs.frozen
class Quorum:
    """`k` upstream executions must succeed."""

    k: int = attrs.field(validator=checks.integer(1))
    on_satisfied: OnSatisfied = attrs.field(default=OnSatisfied.CANCEL_REMAINING, converter=_as_on_satisfied)


EdgeDependencyPolicy: TypeAlias = AllOf | AllEnded | AnyOf | Quorum


class SetEdgeGroupPolicyResult(StrEnum):
    """Whether a group's policy was set, or was the same before."""

    SET = "set"
    ALREADY_SET = "already_set"


class EdgeGroupState(StrEnum):
    """The state of a group. It leaves `pending` once."""

    PENDING = "pending"
    SATISFIED = "satisfied"
    IMPOSSIBLE = "impossible"
    CANCELLED = "cancelled"


# ── Edges ──


class EdgeState(StrEnum):
    """The state of an edge: staged, holding its downstream execution back, or decided."""

    STAGED = "staged"
    APPLIED = "applied"
    SATISFIED = "satisfied"
    IMPOSSIBLE = "impossible"


class DependencyKind(StrEnum):
    """What an edge waits for: the success of its upstream execution."""

    SUCCESS_ONLY = "success_only"


def as_dependency_kind(value: object) -> DependencyKind:
    """Convert a field to a kind of dependency, which may be given by its word."""
    return checks.word(DependencyKind, value, "dependency_kind")


@attrs.frozen(kw_only=True)
class DependencyEdge:
    """An edge between two members.

    Attributes:
        edge_id: the caller's own; the same id is the same edge.
        data_passing_ref: the downstream argument that receives the upstream result; None passes nothing.
    """

    flow_id: FlowId = attrs.field(validator=checks.name)
    edge_id: EdgeId = attrs.field(validator=checks.name)
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: DependencyKind = attrs.field(default=DependencyKind.SUCCESS_ONLY, converter=as_dependency_kind)
    data_passing_ref: str | None = attrs.field(default=None, validator=optional(checks.name))


@attrs.frozen(kw_only=True)
class LinkResult:
    """An edge that is in force.

    Attributes:
        created: False if the same edge was in force before.
        edge_state: the state that follows from the upstream execution's outcome.
        unsatisfied_count: how many edges the downstream execution still waits for.
    """

    edge_id: EdgeId
    created: bool
    edge_state: EdgeState
    unsatisfied_count: int
    graph_revision: int


@attrs.frozen(kw_only=True)
class StageDependencyEdgeArgs:
    """An edge to stage, which does not hold its downstream execution back yet.

    Attributes:
        edge: the edge.
        expected_graph_revision: the revision of the flow that the caller has read.
    """

    edge: DependencyEdge
    expected_graph_revision: int = attrs.field(validator=checks.integer(0))


@attrs.frozen(kw_only=True)
class StageDependencyEdgeResult:
    """A staged edge; `staged` is False when the same one was staged before."""

    edge_id: EdgeId
    staged: bool
    graph_revision: int


@attrs.frozen(kw_only=True)
class ApplyDependencyToChildArgs:
    """A staged edge to put into force, so that it holds its downstream execution back."""

    flow_id: FlowId = attrs.field(validator=checks.name)
    edge_id: EdgeId = attrs.field(validator=checks.name)


@attrs.frozen(kw_only=True)
class ApplyDependencyToChildResult:
    """An applied edge; `applied` is False when it was applied before."""

    applied: bool
    unsatisfied_count: int


# ── Reading ──


@attrs.frozen
class Outgoing:
    """The edges that leave an execution."""

    execution_id: ExecutionId


@attrs.frozen
class Incoming:
    """The edges that lead to an execution."""

    execution_id: ExecutionId


EdgeDirection: TypeAlias = Outgoing | Incoming


@attrs.frozen(kw_only=True)
class EdgeSnapshot:
    """An edge at one moment."""

    edge_id: EdgeId
    flow_id: FlowId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: DependencyKind
    data_passing_ref: str | None
    state: EdgeState
    created_at_ms: int


@attrs.frozen(kw_only=True)
class EdgeGroupSnapshot:
    """The edges into one execution at one moment. The four counts add up to `total_count`.

    Attributes:
        failed_count: upstream executions that failed, expired or were cancelled.
        running_count: upstream executions that have not ended.
    """

    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy
    state: EdgeGroupState
    total_count: int
    satisfied_count: int
    failed_count: int
    skipped_count: int
    running_count: int


@attrs.frozen(kw_only=True)
class ListEdgesPage:
    """A page of edges by id; `next_cursor` is None on the last one."""

    edges: tuple[EdgeSnapshot | DamagedRow, ...]
    next_cursor: str | None
