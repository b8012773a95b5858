"""The operations of the area flows, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric_worker.engine.errors import UnavailableError

if TYPE_CHECKING:
    from flowfabric_worker.engine.handle import Handle
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
        InputsPage,
        ListFlowMembersPage,
        ListFlowsPage,
        SpawnResult,
        SubmitFlowResult,
    )
    from flowfabric_worker.engine.types.submission import CreateExecutionArgs


class FlowsBackend:
    """Build, cancel and read flows."""

    def create_flow(self, args: CreateFlowArgs) -> CreateFlowResult:
        """Create an empty flow, to which members are added one by one, and linked before or while they run.

        Args:
            args: the flow.

        Returns:
            Whether this call created the flow; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a flow with that id has another kind, or is being submitted.
        """
        raise UnavailableError("create_flow")

    def add_execution_to_flow(self, args: AddExecutionToFlowArgs) -> AddExecutionToFlowResult:
        """Make an execution a member of a flow.

        Args:
            args: the flow, and the execution, which must be in the flow's partition.

        Returns:
            Whether this call made it a member, and the number of members.

        Raises:
            ValidationError: `partition_mismatch`.
            NotFoundError: `flow_not_found`, `execution_not_found`.
            StateError: `flow_already_terminal`, `flow_sealed`.
            ConflictError: `execution_already_in_flow`, the execution is a member of another flow.
        """
        raise UnavailableError("add_execution_to_flow")

    def stage_dependency_edge(self, args: StageDependencyEdgeArgs) -> StageDependencyEdgeResult:
        """Record an edge between two members; `apply_dependency_to_child` puts it into force.

        Args:
            args: the edge, and the revision of the flow that the caller has read.

        Returns:
            The new revision of the flow.

        Raises:
            ConflictError: `self_referencing_edge`; `cycle_detected`; `dependency_already_exists`, another edge has
                that id; `edge_group_fired`, the execution does not wait any more.
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, `flow_sealed`, `execution_not_in_flow`.
            ContentionError: `stale_graph_revision`, read the flow again.
            ResourceExhaustedError: `cycle_search_limit`, the search for a cycle follows at most 500 edges.
        """
        raise UnavailableError("stage_dependency_edge")

    def apply_dependency_to_child(self, args: ApplyDependencyToChildArgs) -> ApplyDependencyToChildResult:
        """Put a staged edge into force, so that its downstream execution waits unless the upstream one has ended.

        Args:
            args: the flow and the edge.

        Returns:
            The number of edges for which the downstream execution still waits.

        Raises:
            NotFoundError: `flow_not_found`, `edge_not_found`, `execution_not_found`.
            ConflictError: `edge_group_fired`, the downstream execution does not wait any more.
        """
        raise UnavailableError("apply_dependency_to_child")

    def link(self, edge: DependencyEdge) -> LinkResult:
        """Stage an edge, apply it, and take the outcome of the upstream execution into account, in one step.

        Args:
            edge: the edge.

        Returns:
            The state of the edge, and the number of edges for which the downstream execution still waits.

        Raises:
            ConflictError, NotFoundError, StateError: the same as `stage_dependency_edge`.
        """
        raise UnavailableError("link")

    def set_edge_group_policy(
        self, flow_id: FlowId, downstream_execution_id: ExecutionId, policy: EdgeDependencyPolicy
    ) -> SetEdgeGroupPolicyResult:
        """Set when the edges into an execution let it run, before the first of them is staged.

        Args:
            flow_id: the flow.
            downstream_execution_id: the execution.
            policy: all of the edges, any of them, or a quorum; the default is all.

        Returns:
            SET, or ALREADY_SET if the policy was the same before.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, `flow_sealed`, `execution_not_in_flow`.
            ConflictError: `edge_group_policy_fixed`, an edge is staged or another policy is set.
        """
        raise UnavailableError("set_edge_group_policy")

    def submit_flow(self, graph: FlowGraph) -> SubmitFlowResult:
        """Create a flow with all its executions and edges; no execution can run before all edges are in force.

        A large graph is sent in bounded chunks; a graph that stays incomplete is removed after an hour.

        Args:
            graph: the nodes and edges.

        Returns:
            The executions by node key; the same graph again gets the same executions.

        Raises:
            ValidationError: `invalid_graph`, a key occurs twice, an edge names no node, or a node wants more successes
                than it has edges; or an error of `create_execution`.
            ConflictError: `self_referencing_edge`, `cycle_detected`; `conflict`, a different flow has that id, or an
                execution has that of a node.
        """
        raise UnavailableError("submit_flow")

    def seal_flow(self, flow_id: FlowId) -> None:
        """End the building of a flow: only a sealed flow completes or fails. `submit_flow` seals its flow.

        Args:
            flow_id: the flow; a sealed one is not an error.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`.
            ValidationError: `invalid_graph`, an execution needs more upstream executions than it has.
        """
        raise UnavailableError("seal_flow")

    def purge_flow(self, flow_id: FlowId) -> None:
        """Remove an ended flow with its members, before its retention is over.

        Args:
            flow_id: the flow.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_not_terminal`.
        """
        raise UnavailableError("purge_flow")

    def read_inputs(self, handle: Handle, cursor: str) -> InputsPage:
        """Read the results of the parents of a claimed execution that did not fit into the claim.

        Args:
            handle: the lease.
            cursor: `Claimed.inputs_cursor`, or the `next_cursor` of the previous page.

        Returns:
            A page of at most 8 MiB, and at least one input.

        Raises:
            ValidationError: `invalid_cursor`.
        """
        raise UnavailableError("read_inputs")

    def spawn(self, handle: Handle, name: str, args: CreateExecutionArgs, detached: bool = False) -> SpawnResult:
        """Create a child of a running execution, in the partition of its parent.

        Args:
            handle: the lease.
            name: the child's name; the first child of a name stands, also for later attempts.
            args: the execution to create; its id follows from the parent and the name.
            detached: True for a child that is not cancelled with its parent, and for which no one waits.

        Returns:
            The child.

        Raises:
            ValidationError, NotFoundError: the same as `create_execution`.
        """
        raise UnavailableError("spawn")

    def cancel_flow(
        self, flow_id: FlowId, policy: CancelFlowPolicy, wait: CancelFlowWait, reason: str | None = None
    ) -> CancelFlowResult:
        """Cancel a flow and the members that the policy includes; members that have ended do not change.

        Args:
            flow_id: the flow.
            policy: which members are cancelled too.
            wait: how long to wait until those members have ended.
            reason: why, for operators.

        Returns:
            The progress of the cancellation. A flow that was cancelled before keeps its policy and its reason.

        Raises:
            NotFoundError: `flow_not_found`.
            StateError: `flow_already_terminal`, the flow has completed or failed.
            EngineTimeoutError: `timeout`, the members have not ended in time; the cancellation continues.
        """
        raise UnavailableError("cancel_flow")

    def cancel_flow_header(self, args: CancelFlowArgs) -> CancelFlowHeader:
        """Mark a flow as cancelled and list its members, for a caller that cancels them itself within 30 s.

        Members that the policy includes and that are not acknowledged by then are cancelled by the store's callers.

        Args:
            args: the flow, the policy and the reason.

        Returns:
            The members; for a flow that has ended, with the stored policy and reason.

        Raises:
            NotFoundError: `flow_not_found`.
        """
        raise UnavailableError("cancel_flow_header")

    def ack_cancel_member(self, flow_id: FlowId, execution_id: ExecutionId) -> None:
        """Record that a member of a cancelled flow has ended, so that it is not cancelled again.

        Args:
            flow_id: the flow; an unknown flow is not an error.
            execution_id: the member; it may be recorded again.
        """
        raise UnavailableError("ack_cancel_member")

    def describe_flow(self, flow_id: FlowId) -> FlowSnapshot | None:
        """Read a flow.

        Args:
            flow_id: the flow.

        Returns:
            The flow, or None if it does not exist.

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
            The edge, or None if the flow has no edge with that id.

        Raises:
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("describe_edge")

    def list_flow_members(self, flow_id: FlowId, cursor: str | None = None, limit: int = 100) -> ListFlowMembersPage:
        """List the members of a flow by id.

        Args:
            flow_id: the flow.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            NotFoundError: `flow_not_found`.
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_flow_members")

    def list_edges(
        self, flow_id: FlowId, direction: EdgeDirection | None = None, cursor: str | None = None, limit: int = 1000
    ) -> ListEdgesPage:
        """List the edges that leave an execution or lead to it, by edge id; or every edge, by its upstream execution.

        Args:
            flow_id: the flow.
            direction: `Outgoing` or `Incoming`, with the execution; None for every edge of the flow.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most rows of the page, 1 to 1,000.

        Returns:
            A page of edges; empty if the flow or the member does not exist.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_edges")

    def list_flows(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListFlowsPage:
        """List the flows of a partition by id.

        Args:
            partition: the number of the partition.
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_partition_key`, `invalid_input`.
        """
        raise UnavailableError("list_flows")

    def resolve_execution_flow_id(self, execution_id: ExecutionId) -> FlowId | None:
        """Return the flow of which an execution is a member.

        Args:
            execution_id: the execution.

        Returns:
            The id of the flow; None if the execution is in no flow, or does not exist.

        Raises:
            ValidationError: `corruption`.
        """
        raise UnavailableError("resolve_execution_flow_id")
