"""The operations on flows: how they are built, submitted as a whole, cancelled and read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import UUID

import attrs

from flowfabric_worker.engine.batches import Item, size_of
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.core import EngineCore, execution_id
from flowfabric_worker.engine.errors import (
    ConflictError,
    EngineTimeoutError,
    NotFoundError,
    StateError,
    ValidationError,
)
from flowfabric_worker.engine.flow_graphs import (
    EncodedGraph,
    check_flow_id,
    check_graph,
    children_id,
    encode_graph,
    member_id,
)
from flowfabric_worker.engine.flow_replies import (
    FLOW_FIELDS,
    MEMBER_FIELDS,
    SUMMARY_FIELDS,
    decode_edge,
    decode_flow,
    decode_inputs,
    decode_member,
    decode_summary,
    edge_or_damage,
    pack_policy,
)
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId, check_execution_id, check_name
from flowfabric_worker.engine.limits import DEFAULT_CANCEL_GRACE_MS, MAX_CALL_BYTES
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.submission import Submission, check_tags
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    ApplyDependencyToChildArgs,
    ApplyDependencyToChildResult,
    DependencyEdge,
    EdgeDependencyPolicy,
    EdgeDirection,
    EdgeSnapshot,
    EdgeState,
    Incoming,
    LinkResult,
    ListEdgesPage,
    Outgoing,
    Quorum,
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
    CancelFlowStatus,
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
from flowfabric_worker.engine.wire import decode_class, pack, pack_texts, reading

# The most items of a graph in one call; its work budget may allow fewer.
_MOST_ITEMS = 500

# How many characters a UUID has.
_UUID_CHARACTERS = 36

# The longest pause between two calls that continue a cancellation, in seconds.
_PAUSE = 0.05


class Flows(Submission, EngineCore):
    """The operations of the area flows."""

    # Building

    def create_flow(self, args: CreateFlowArgs) -> CreateFlowResult:
        flow = self._flow(check_record(args, CreateFlowArgs).flow_id)
        reply = self.call("create_flow", flow.partition, [*flow.once(), args.kind, pack_texts(check_tags(args.tags))])
        return CreateFlowResult(flow_id=flow.flow_id, created=reply[0] == b"created")

    def add_execution_to_flow(self, args: AddExecutionToFlowArgs) -> AddExecutionToFlowResult:
        flow = self._flow(check_record(args, AddExecutionToFlowArgs).flow_id)
        member = flow.member(args.execution_id)
        word, count = self.call("add_execution_to_flow", flow.partition, [*flow.once(), member.uuid])
        nodes = flow.number(count, "nodes")
        return AddExecutionToFlowResult(execution_id=member, added=word == b"added", node_count=nodes)

    def stage_dependency_edge(self, args: StageDependencyEdgeArgs) -> StageDependencyEdgeResult:
        check_record(args, StageDependencyEdgeArgs)
        word, revision, *_ = self._stage(args.edge, str(args.expected_graph_revision), "")
        return StageDependencyEdgeResult(
            edge_id=args.edge.edge_id, staged=word == b"staged", graph_revision=int(revision)
        )

    def apply_dependency_to_child(self, args: ApplyDependencyToChildArgs) -> ApplyDependencyToChildResult:
        flow = self._flow(check_record(args, ApplyDependencyToChildArgs).flow_id)
        word, left = self.call("apply_dependency_to_child", flow.partition, [*flow.once(), args.edge_id])
        return ApplyDependencyToChildResult(applied=word == b"applied", unsatisfied_count=int(left))

    def link(self, edge: DependencyEdge) -> LinkResult:
        _, revision, state, left, applied = self._stage(edge, "", "1")
        return LinkResult(
            edge_id=edge.edge_id,
            created=applied == b"1",
            edge_state=EdgeState(state.decode()),
            unsatisfied_count=int(left),
            graph_revision=int(revision),
        )

    def _stage(self, edge: DependencyEdge, revision: str, links: str) -> Reply:
        flow = self._flow(check_record(edge, DependencyEdge).flow_id)
        upstream, downstream = flow.member(edge.upstream_execution_id), flow.member(edge.downstream_execution_id)
        if upstream == downstream:
            raise ConflictError("self_referencing_edge", execution_id=str(upstream))
        ends = upstream.uuid, downstream.uuid
        arguments: Item = [*flow.once(), edge.edge_id, *ends, edge.data_passing_ref or "", edge.dependency_kind.value]
        return self.call("stage_dependency_edge", flow.partition, [*arguments, revision, links])

    def set_edge_group_policy(
        self, flow_id: FlowId, downstream_execution_id: ExecutionId, policy: EdgeDependencyPolicy
    ) -> SetEdgeGroupPolicyResult:
        flow = self._flow(flow_id)
        member = flow.member(downstream_execution_id)
        if not isinstance(policy, AllOf | AllEnded | AnyOf | Quorum):
            raise ValidationError("invalid_input", f"Pass the policy of a group, not {type(policy).__name__}.")
        arguments: Item = [*flow.once(), member.uuid, *pack_policy(policy)]
        reply = self.call("set_edge_group_policy", flow.partition, arguments)
        return SetEdgeGroupPolicyResult.SET if reply[0] == b"set" else SetEdgeGroupPolicyResult.ALREADY_SET

    def seal_flow(self, flow_id: FlowId) -> None:
        flow = self._flow(flow_id)
        self.call("seal_flow", flow.partition, flow.once())

    # Whole graphs

    def submit_flow(self, graph: FlowGraph) -> SubmitFlowResult:
        flow = self._flow(check_graph(graph).flow_id)
        ids = {node.key: self._node_id(flow, node.key, node.execution) for node in graph.nodes}
        self.refuse_repeats(ids.values(), "The execution id")
        creations = [self._node_item(flow, ids[node.key], node.execution) for node in graph.nodes]
        self.refuse_repeats((each[4] for each in creations if each[4]), "An idempotency key")
        encoded = encode_graph(graph, ids, creations)
        tags = pack_texts(check_tags(graph.tags))
        created = self._send_graph(flow, [graph.kind, tags], encoded)
        return SubmitFlowResult(flow_id=flow.flow_id, created=created, execution_ids=ids)

    def _node_id(self, flow: _Flow, key: str, args: CreateExecutionArgs) -> ExecutionId:
        if args.execution_id is not None:
            return flow.member(args.execution_id)
        return member_id(flow.flow_id, key, flow.partition)

    def _node_item(self, flow: _Flow, member: ExecutionId, args: CreateExecutionArgs) -> Item:
        """Return the arguments that create a member. Its key is unique in the flow."""
        key = b""
        if args.idempotency_key is not None:
            name = check_name(args.idempotency_key, "idempotency key")
            key = pack((self.namespace, check_name(args.task, "task"), name, flow.flow_id))
        return self.creation(args, flow.partition, member.uuid, key)[1]

    def _send_graph(self, flow: _Flow, head: Sequence[Argument], graph: EncodedGraph) -> bool:
        """Send a graph in bounded calls; return True if this submission built the flow."""
        call_id, total, stored = new_call_id(), len(graph.items), 0
        while True:
            arguments: list[Argument] = [*flow.head, *head, graph.digest, call_id, total, stored]
            arguments += (part for item in _first_of(graph.items[stored:]) for part in item)
            with self.creating():
                word, *more = self.call("submit_flow", flow.partition, arguments)
            if word != b"more":
                return bool(word == b"built" or more[0] == call_id.encode())
            stored = int(more[0])

    # Children

    def spawn(self, handle: Handle, name: str, args: CreateExecutionArgs, detached: bool = False) -> SpawnResult:
        partition, uuid, fence = self.fenced(handle)
        check_name(name, "a child's name")
        if check_record(args, CreateExecutionArgs).execution_id is not None:
            raise ValidationError("invalid_input", "The id of a child follows from its parent and its name; give none.")
        flow = self._flow(children_id(handle.execution_id, self.partitions))
        item = self._node_item(flow, member_id(flow.flow_id, name, partition), self._inheriting(handle, args))
        head: Item = [uuid, fence, new_call_id(), flow.flow_id, name, "1" if detached else ""]
        with self.creating():
            word = self.call("spawn", partition, [*head, *item])[0]
        return SpawnResult(execution_id=member_id(flow.flow_id, name, partition), created=word == b"created")

    def _inheriting(self, handle: Handle, args: CreateExecutionArgs) -> CreateExecutionArgs:
        """Return the arguments of a child, whose budgets are those of its parent and its own."""
        parent = handle.execution_id
        arguments: Item = [self._packed_namespace, 1, "class", parent.uuid]
        values = self.call("read_executions", parent.partition_number, arguments)[0]
        with reading(str(parent), "class", execution_id=str(parent)):
            inherited = decode_class(values[0]).budgets if values and values[0] else ()
        if not inherited:
            return args
        budgets = dict.fromkeys((*inherited, *args.policy.budget_ids))
        return attrs.evolve(args, policy=attrs.evolve(args.policy, budget_ids=tuple(budgets)))

    # Inputs

    def read_inputs(self, handle: Handle, cursor: str) -> InputsPage:
        partition, uuid, fence = self.fenced(handle)
        reply = self.call("read_inputs", partition, [uuid, fence, check_name(cursor, "cursor")])
        inputs, following = decode_inputs(partition, reply)
        return InputsPage(inputs=inputs, next_cursor=following)

    # Cancelling

    def cancel_flow(
        self, flow_id: FlowId, policy: CancelFlowPolicy, wait: CancelFlowWait, reason: str | None = None
    ) -> CancelFlowResult:
        flow = self._flow(flow_id)
        check_record(wait, CancelFlowWait)
        began, timeout = time.monotonic(), wait.timeout
        while True:
            word, stored, _, count, left, members = self._cancel(flow, policy, reason, "")
            if word == b"ended":
                raise StateError("flow_already_terminal", flow_id=flow.flow_id)
            elapsed = time.monotonic() - began
            if left != b"1" or (timeout is not None and elapsed >= timeout.total_seconds()):
                break
            time.sleep(min(_PAUSE, elapsed / 10))
        if left == b"1" and timeout:
            raise EngineTimeoutError(
                message=f"The members of the flow {flow.flow_id} have not ended within {timeout}; the cancellation "
                "continues.",
                flow_id=flow.flow_id,
            )
        return CancelFlowResult(
            status=CancelFlowStatus.SCHEDULED if left == b"1" else CancelFlowStatus.CANCELLED,
            policy=CancelFlowPolicy(stored.decode()),
            member_count=flow.number(count, "nodes"),
            member_execution_ids=flow.ids(members),
        )

    def cancel_flow_header(self, args: CancelFlowArgs) -> CancelFlowHeader:
        flow = self._flow(check_record(args, CancelFlowArgs).flow_id)
        word, policy, reason, count, _, members = self._cancel(
            flow, args.policy, args.reason, str(DEFAULT_CANCEL_GRACE_MS)
        )
        return CancelFlowHeader(
            already_terminal=word != b"cancelled",
            policy=CancelFlowPolicy(policy.decode()) if policy else None,
            reason=reason.decode() or None,
            member_count=flow.number(count, "nodes"),
            member_execution_ids=flow.ids(members),
        )

    def _cancel(self, flow: _Flow, policy: CancelFlowPolicy, reason: str | None, grace: str) -> Reply:
        if not isinstance(policy, CancelFlowPolicy):
            raise ValidationError("invalid_input", f"Pass a CancelFlowPolicy, not {policy!r:.100}.")
        why = "" if reason is None else check_name(reason, "reason")
        reply = self.call("cancel_flow", flow.partition, [*flow.once(), policy.value, why, grace])
        self.pay_ends({flow.partition})
        return reply

    def ack_cancel_member(self, flow_id: FlowId, execution_id: ExecutionId) -> None:
        flow = self._flow(flow_id)
        self.call("ack_cancel_member", flow.partition, [*flow.head, check_execution_id(execution_id).uuid])

    def purge_flow(self, flow_id: FlowId) -> None:
        flow = self._flow(flow_id)
        arguments: Item = flow.once()
        while self.call("purge_flow", flow.partition, arguments)[0] == b"more":
            pass

    # Reading

    def describe_flow(self, flow_id: FlowId) -> FlowSnapshot | None:
        flow = self._flow(flow_id)
        try:
            reply = self.call("describe_flow", flow.partition, [*flow.head, *FLOW_FIELDS])
        except NotFoundError:
            return None
        return decode_flow(flow.flow_id, self.namespace, flow.partition, reply)

    def describe_edge(self, flow_id: FlowId, edge_id: EdgeId) -> EdgeSnapshot | None:
        flow = self._flow(flow_id)
        try:
            row = self.call("describe_edge", flow.partition, [*flow.head, check_name(edge_id, "edge_id")])
        except NotFoundError:
            return None
        return decode_edge(flow.flow_id, flow.partition, row) if row[2] else None

    def list_edges(
        self, flow_id: FlowId, direction: EdgeDirection | None = None, cursor: str | None = None, limit: int = 1000
    ) -> ListEdgesPage:
        flow, count = self._flow(flow_id), page_size(limit, 1)
        if direction is not None and not isinstance(direction, Outgoing | Incoming):
            raise ValidationError("invalid_input", f"Pass Outgoing or Incoming, not {type(direction).__name__}.")
        subject = None if direction is None else check_execution_id(direction.execution_id)
        after = "" if cursor is None else read_cursor(lambda: _check_link(cursor), "an edge id")
        side = ("i" if isinstance(direction, Incoming) else "o", "" if subject is None else subject.uuid)
        is_elsewhere = subject is not None and subject.partition_number != flow.partition
        rows = [] if is_elsewhere else self._rows("list_edges", flow, side, after, count + 1, ())
        edges = tuple(edge_or_damage(flow.flow_id, flow.partition, row) for row in rows[:count])
        return ListEdgesPage(edges=edges, next_cursor=rows[count - 1][0].decode() if len(rows) > count else None)

    def list_flow_members(self, flow_id: FlowId, cursor: str | None = None, limit: int = 100) -> ListFlowMembersPage:
        flow, count = self._flow(flow_id), page_size(limit, 1)
        after = "" if cursor is None else read_cursor(lambda: flow.member(ExecutionId.parse(cursor)), "a member").uuid
        rows = self._rows("list_flow_members", flow, (), after, count + 1, MEMBER_FIELDS)
        if not rows and self.describe_flow(flow.flow_id) is None:
            raise NotFoundError("flow_not_found", flow_id=flow.flow_id)
        members = tuple(decode_member(execution_id(flow.partition, uuid), values) for uuid, values in rows[:count])
        return ListFlowMembersPage(
            members=members, next_cursor=str(members[-1].summary.execution_id) if len(rows) > count else None
        )

    def _rows(
        self, function: str, flow: _Flow, which: Sequence[Argument], after: str, count: int, fields: Sequence[str]
    ) -> list[Reply]:
        """Return rows of a listing of a flow, none if it does not exist."""

        def page(place: bytes, most: int) -> Reply:
            return self.call(function, flow.partition, [*flow.head, *which, place, most, *fields])

        try:
            return list(read_rows(page, after.encode(), count))
        except NotFoundError:
            return []

    def list_flows(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListFlowsPage:
        number, count = self.check_partition(partition), page_size(limit, 1)
        after = b"" if cursor is None else read_cursor(lambda: check_flow_id(cursor), "a flow id").encode()

        def page(place: bytes, most: int) -> Reply:
            return self.call("list_flows", number, [self._packed_namespace, place, most, *SUMMARY_FIELDS])

        rows = list(read_rows(page, after, count + 1))
        flows = tuple(decode_summary(row) for row in rows[:count])
        return ListFlowsPage(flows=flows, next_cursor=rows[count - 1][0].decode() if len(rows) > count else None)

    def _flow(self, flow_id: FlowId) -> _Flow:
        """Return the address of a flow of this namespace."""
        checked = check_flow_id(flow_id)
        partition = partition_of_uuid(UUID(checked), self.partitions)
        return _Flow(flow_id=checked, partition=partition, head=(checked, self._packed_namespace))


@attrs.frozen(kw_only=True)
class _Flow:
    """The address of a flow, and the first arguments of every operation on it."""

    flow_id: FlowId
    partition: int
    head: tuple[Argument, ...]

    def once(self) -> Item:
        """Return the first arguments of an operation that changes the flow once, however often it is sent."""
        return *self.head, new_call_id()

    def member(self, member: ExecutionId) -> ExecutionId:
        """Return the id of an execution that may be a member.

        Raises:
            ValidationError: `partition_mismatch`, `invalid_execution_id`.
        """
        checked = check_execution_id(member)
        if checked.partition_number != self.partition:
            raise ValidationError(
                "partition_mismatch", f"{checked} is not in partition {self.partition}, that of its flow."
            )
        return checked

    def number(self, text: bytes, field: str) -> int:
        """Return a number of the flow's record.

        Raises:
            ValidationError: `corruption`.
        """
        with reading(f"The flow {self.flow_id}", field):
            return int(text)

    def ids(self, uuids: Reply) -> tuple[ExecutionId, ...]:
        """Return the ids of members."""
        return tuple(execution_id(self.partition, uuid) for uuid in uuids)


def _check_link(cursor: str) -> str:
    """Return the cursor of a listing of edges: an edge id, or an upstream uuid and an edge id."""
    uuid, _, edge = cursor.partition(":") if isinstance(cursor, str) else ("", "", "")
    check_name(edge if len(uuid) == _UUID_CHARACTERS else cursor, "cursor")
    return cursor


def _first_of(items: Sequence[Item]) -> Sequence[Item]:
    """Return as many items as one call may carry, at least one."""
    size = 0
    for count, item in enumerate(items[:_MOST_ITEMS]):
        size += size_of(item)
        if size > MAX_CALL_BYTES and count:
            return items[:count]
    return items[:_MOST_ITEMS]
