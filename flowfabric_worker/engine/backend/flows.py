"""The operations of the area flows, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.types.edges import (
    ApplyDependencyToChildArgs,
    ApplyDependencyToChildResult,
    DependencyEdge,
    EdgeDependencyPolicy,
    EdgeDirection,
    EdgeSnapshot,
    LinkResult,
    ListEdgesPage,
    SetEdgeGroupPolicyResult,
    StageDependencyEdgeArgs,
    StageDependencyEdgeResult,
)
from flowfabric_worker.engine.types.flows import (
    AddExecutionToFlowArgs,
    AddExecutionToFlowResult,
    CancelFlowArgs,
    CancelFlowHeader,
    CancelFlowPolicy,
    CancelFlowResult,
    CancelFlowWait,
    CreateFlowArgs,
    CreateFlowResult,
    FlowGraph,
    FlowSnapshot,
    ListFlowsPage,
    SubmitFlowResult,
)


class FlowsBackend:
    """Build, cancel and read flows."""

    def create_flow(self, args: CreateFlowArgs) -> CreateFlowResult:
        """Create an empty flow. Members are added one by one, and linked before or while they run.

        Args:
            args: the flow.

        Returns:
            Whether this call created it; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a flow of that id exists with another kind.
        """
        raise UnavailableError("create_flow")

    def add_execution_to_flow(self, args: AddExecutionToFlowArgs) -> AddExecutionToFlowResult:
        """Make an execution a member of a flow.

        Args:
            args: the flow and the execution, which lies in the flow's partition.

        Returns:
            Whether it became one now, and how many members there are.

        Raises:
            ValidationError: `partition_mismatch`.
            NotFoundError: `flow_not_found`, `execution_not_found`.
            StateError: `flow_already_terminal`.
            ConflictError: `execution_already_in_flow`, it is a member of another one.
        """
        raise UnavailableError("add_execution_to_flow")

    def stage_dependency_edge(self, args: StageDependencyEdgeArgs) -> StageDependencyEdgeResult:
        """Record an edge between two members; `apply_dependency_to_child` puts it into force.

        Args:
            args: the edge, and the flow's revision that the caller has seen.

        Returns:
            The flow's new revision.

        Raises:
            ConflictError: `self_referencing_edge`; `cycle_detected`; `dependency_already_exists`, the id is
                another edge's; `edge_group_fired`, the execution waits no more.
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, `execution_not_in_flow`.
            ContentionError: `stale_graph_revision`, read the flow again.
        """
        raise UnavailableError("stage_dependency_edge")

    def apply_dependency_to_child(self, args: ApplyDependencyToChildArgs) -> ApplyDependencyToChildResult:
        """Put a staged edge into force: its downstream execution waits, unless the upstream one has ended.

        Args:
            args: the flow and the edge.

        Returns:
            How many edges the downstream execution still waits for.

        Raises:
            NotFoundError: `flow_not_found`, `edge_not_found`, `execution_not_found`.
        """
        raise UnavailableError("apply_dependency_to_child")

    def link(self, edge: DependencyEdge) -> LinkResult:
        """Stage an edge, apply it, and look at the upstream execution's outcome, in one step.

        Args:
            edge: the edge.

        Returns:
            Where the edge stands, and how many the downstream execution still waits for.

        Raises:
            ConflictError, NotFoundError, StateError: as `stage_dependency_edge`.
        """
        raise UnavailableError("link")

    def set_edge_group_policy(
        self, flow_id: FlowId, downstream_execution_id: ExecutionId, policy: EdgeDependencyPolicy
    ) -> SetEdgeGroupPolicyResult:
        """Set when the edges into an execution let it run, before the first of them is staged.

        Args:
            flow_id: the flow.
            downstream_execution_id: the execution.
            policy: all of them, any, or a quorum. Without this call it is all.

        Returns:
            SET, or ALREADY_SET when the whole policy was the same.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, `execution_not_in_flow`.
            ConflictError: `edge_group_policy_fixed`, an edge is staged or another policy is set.
        """
        raise UnavailableError("set_edge_group_policy")

    def submit_flow(self, graph: FlowGraph) -> SubmitFlowResult:
        """Create a flow with all its executions and edges; none can run before the last one is wired.

        A large graph goes in bounded chunks; one that stays half-built is removed after an hour.

        Args:
            graph: the nodes and edges.

        Returns:
            The executions by node key; the same graph again gets the same ones.

        Raises:
            ValidationError: `invalid_graph`, a key stands twice or an edge names no node; or what
                `create_execution` refuses.
            ConflictError: `self_referencing_edge`, `cycle_detected`; `conflict`, another flow has that id.
        """
        raise UnavailableError("submit_flow")

    def cancel_flow(
        self, flow_id: FlowId, policy: CancelFlowPolicy, wait: CancelFlowWait, reason: str | None = None
    ) -> CancelFlowResult:
        """Cancel a flow and the members that the policy takes along; what has ended stays as it is.

        Args:
            flow_id: the flow.
            policy: which members it takes along.
            wait: how long to wait until these have ended.
            reason: why, for operators.

        Returns:
            How far it got. A flow that is cancelled already gives its first answer.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, it completed or failed.
            EngineTimeoutError: `timeout`, the wait is over; the cancellation goes on.
        """
        raise UnavailableError("cancel_flow")

    def cancel_flow_header(self, args: CancelFlowArgs) -> CancelFlowHeader:
        """Mark a flow as cancelled and list its members, for a caller that cancels them itself.

        Args:
            args: the flow, the policy and the reason.

        Returns:
            The members; for a flow that has ended, with what is stored of its cancellation.

        Raises:
            NotFoundError: `flow_not_found`.
        """
        raise UnavailableError("cancel_flow_header")

    def ack_cancel_member(self, flow_id: FlowId, execution_id: ExecutionId) -> None:
        """Record that a member of a cancelled flow has ended, so that it is not cancelled again.

        Args:
            flow_id: the flow; an unknown one is no error.
            execution_id: the member; may be noted again.
        """
        raise UnavailableError("ack_cancel_member")

    def describe_flow(self, flow_id: FlowId) -> FlowSnapshot | None:
        """Read a flow at one moment.

        Args:
            flow_id: the flow.

        Returns:
            The flow, or None when there is none.

        Raises:
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("describe_flow")

    def describe_edge(self, flow_id: FlowId, edge_id: EdgeId) -> EdgeSnapshot | None:
        """Read one edge.

        Args:
            flow_id: the flow.
            edge_id: the edge.

        Returns:
            The edge, or None when that flow has none of that id.

        Raises:
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("describe_edge")

    def list_edges(
        self, flow_id: FlowId, direction: EdgeDirection, cursor: str | None = None, limit: int = 1000
    ) -> ListEdgesPage:
        """List the edges that leave an execution or lead to it, by edge id.

        Args:
            flow_id: the flow.
            direction: Outgoing or Incoming, with the execution.
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

        Returns:
            A page; empty for a flow or member that does not exist.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_edges")

    def list_flows(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListFlowsPage:
        """List a partition's flows by id.

        Args:
            partition: the partition's number.
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `invalid_input`.
        """
        raise UnavailableError("list_flows")

    def resolve_execution_flow_id(self, execution_id: ExecutionId) -> FlowId | None:
        """Tell which flow an execution is a member of.

        Args:
            execution_id: the execution.

        Returns:
            The flow's id; None when the execution stands alone or does not exist.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("resolve_execution_flow_id")
