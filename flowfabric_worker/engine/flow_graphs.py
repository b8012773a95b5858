"""Whole graphs: how they are checked, and encoded as the items of stored functions."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from uuid import UUID

import attrs

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.errors import ConflictError, ValidationError
from flowfabric_worker.engine.flow_replies import pack_policy
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.stores.base import Argument
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.edges import AnyOf, Quorum
from flowfabric_worker.engine.types.flows import FlowEdge, FlowGraph, FlowNode
from flowfabric_worker.engine.wire import pack


def check_flow_id(value: object) -> FlowId:
    """Return the id of a flow in canonical spelling.

    Raises:
        ValidationError: `invalid_input`, it is not a UUID.
    """
    try:
        return FlowId(str(UUID(value)))  # type: ignore[arg-type]  # the error below is for anything that is no text
    except (ValueError, AttributeError, TypeError):
        raise ValidationError("invalid_input", f"A flow id must be a UUID, not {value!r:.100}.") from None


def member_id(flow_id: FlowId, name: str, partition: int) -> ExecutionId:
    """Return the id of a member of a flow by its name: the same flow and name always give the same id.

    The id has the form of a UUIDv7, with the time of the flow's id if that is one.
    """
    digest = hashlib.sha256(f"{flow_id}\0{name}".encode()).digest()
    flow = UUID(flow_id)
    milliseconds = flow.int >> 80 if flow.version == 7 else 0
    number = milliseconds << 80 | int.from_bytes(digest[:10], "big")
    number = number & ~(0xF << 76) & ~(0b11 << 62) | 0x7 << 76 | 0b10 << 62
    return ExecutionId(partition, str(UUID(int=number)))


def children_id(parent: ExecutionId, partitions: int) -> FlowId:
    """Return the id of the flow of an execution's children: a UUIDv7 that lies in the execution's partition."""
    for attempt in itertools.count():
        flow = FlowId(member_id(FlowId(parent.uuid), f"children {attempt}", parent.partition_number).uuid)
        if partition_of_uuid(UUID(flow), partitions) == parent.partition_number:
            return flow
    raise AssertionError("an endless count has ended")


def check_graph(graph: FlowGraph) -> FlowGraph:
    """Return the graph if its flow can be built.

    Raises:
        ValidationError: `invalid_graph`, a key occurs twice, an edge names no node, or a node wants more successes than
            it has edges.
        ConflictError: `self_referencing_edge`, `cycle_detected`.
    """
    check_record(graph, FlowGraph)
    incoming: dict[str, list[FlowEdge]] = {}
    for node in graph.nodes:
        if check_record(node, FlowNode).key in incoming:
            raise _invalid(f"the key {node.key!r} occurs twice")
        incoming[node.key] = []
    for edge in graph.edges:
        check_record(edge, FlowEdge)
        for key in (edge.upstream, edge.downstream):
            if key not in incoming:
                raise _invalid(f"an edge names the node {key!r}, which does not exist")
        if edge.upstream == edge.downstream:
            raise ConflictError("self_referencing_edge", f"An edge of {edge.upstream!r} leads back to it.")
        incoming[edge.downstream].append(edge)
    for node in graph.nodes:
        wanted = node.policy.k if isinstance(node.policy, Quorum) else int(isinstance(node.policy, AnyOf))
        if wanted > len(incoming[node.key]):
            raise _invalid(f"{node.key!r} wants {wanted} successes, but has {len(incoming[node.key])} edges")
    _refuse_cycles(graph, {key: len(edges) for key, edges in incoming.items()})
    return graph


def _refuse_cycles(graph: FlowGraph, waiting: dict[str, int]) -> None:
    """Take the nodes away to which no edge leads, again and again; what is left is in a cycle or behind one."""
    outgoing: dict[str, list[str]] = {}
    for edge in graph.edges:
        outgoing.setdefault(edge.upstream, []).append(edge.downstream)
    free = [key for key, count in waiting.items() if not count]
    while free:
        key = free.pop()
        del waiting[key]
        for downstream in outgoing.get(key, ()):
            waiting[downstream] -= 1
            if not waiting[downstream]:
                free.append(downstream)
    if waiting:
        raise ConflictError("cycle_detected", f"The graph has a cycle; {min(waiting)!r} is in it or behind it.")


def _invalid(problem: str) -> ValidationError:
    return ValidationError("invalid_graph", f"The graph is not valid: {problem}. Correct its keys and edges.")


@attrs.frozen(kw_only=True)
class EncodedGraph:
    """A graph as a stored function reads it.

    Attributes:
        items: the arguments of each node, then those of each edge.
        digest: the same for the same graph.
    """

    items: Sequence[Item]
    digest: str


def encode_graph(graph: FlowGraph, ids: dict[str, ExecutionId], creations: Sequence[Item]) -> EncodedGraph:
    """Encode a graph, with the creation of each of its nodes in their order."""
    edges_into = dict.fromkeys(ids, 0)
    for edge in graph.edges:
        edges_into[edge.downstream] += 1
    items: list[Item] = []
    for node, creation in zip(graph.nodes, creations, strict=True):
        count = edges_into[node.key]
        group = pack((*pack_policy(node.policy), str(count))) if count else b""
        items.append(("n", *creation, group))
    for place, edge in enumerate(graph.edges):
        ends = ids[edge.upstream].uuid, ids[edge.downstream].uuid
        items.append(("e", f"e{place:07d}", *ends, edge.data_passing_ref or ""))
    digest = hashlib.sha256()
    for item in items:
        digest.update(pack(_as_text(part) for part in item))
    return EncodedGraph(items=items, digest=digest.hexdigest())


def _as_text(part: Argument) -> bytes | str:
    return part if isinstance(part, bytes) else str(part)
