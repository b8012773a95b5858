"""A flow as it is stored: its nodes with their present states, and its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from flowfabric_worker._flows.drawing import Drawing, DrawnEdge, DrawnNode, join_of
from flowfabric_worker._flows.nodes import NODE_HEADER
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.ids import FlowId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.types.edges import EdgeSnapshot
from flowfabric_worker.engine.types.flows import FlowMember, FlowSnapshot
from flowfabric_worker.listing import rows_of


@attrs.frozen(kw_only=True)
class StoredFlow:
    """A stored flow.

    Attributes:
        snapshot: the flow itself.
        members: its members by their keys.
        edges: its edges, except damaged ones.
    """

    snapshot: FlowSnapshot
    members: Mapping[str, FlowMember]
    edges: Sequence[EdgeSnapshot]

    def last(self) -> list[str]:
        """Return the keys of the members that no other member depends on."""
        parents = {edge.upstream_execution_id for edge in self.edges}
        return [key for key, member in self.members.items() if member.summary.execution_id not in parents]

    def drawing(self) -> Drawing:
        """Return what a picture of the flow shows, with the present states."""
        keys = {member.summary.execution_id: key for key, member in self.members.items()}
        policies = {group.downstream_execution_id: group for group in self.snapshot.edge_groups}
        edges = tuple(
            DrawnEdge(
                upstream=keys[edge.upstream_execution_id],
                downstream=keys[edge.downstream_execution_id],
                passes_data=edge.data_passing_ref is not None,
            )
            for edge in self.edges
            if edge.upstream_execution_id in keys and edge.downstream_execution_id in keys
        )
        nodes = {
            key: DrawnNode(
                key=key,
                task=member.summary.task or "?",
                join=join_of(group.policy, group.total_count)
                if (group := policies.get(member.summary.execution_id)) is not None
                else "",
                state=member.summary.public_state,
            )
            for key, member in self.members.items()
        }
        return Drawing(name=self.snapshot.kind, nodes=tuple(nodes[key] for key in _sorted(nodes, edges)), edges=edges)


def read_flow(engine: EngineBackend, flow_id: FlowId) -> StoredFlow | None:
    """Read a flow with all its members and edges; return None if it does not exist."""
    snapshot = engine.describe_flow(flow_id)
    if snapshot is None:
        return None
    members: dict[str, FlowMember] = {}
    for member in _members(engine, flow_id):
        # A member that was added by the engine's operations has no key.
        members[member.headers.get(NODE_HEADER, member.summary.execution_id.plain)] = member
    edges = [edge for edge in _edges(engine, flow_id) if isinstance(edge, EdgeSnapshot)]
    return StoredFlow(snapshot=snapshot, members=members, edges=edges)


def _members(engine: EngineBackend, flow_id: FlowId) -> Iterator[FlowMember]:
    def read(cursor: str | None) -> tuple[Sequence[FlowMember], str | None]:
        page = engine.list_flow_members(flow_id, cursor, MAX_PAGE_SIZE)
        return page.members, page.next_cursor

    return rows_of(read)


def _edges(engine: EngineBackend, flow_id: FlowId) -> Iterator[object]:
    def read(cursor: str | None) -> tuple[Sequence[object], str | None]:
        page = engine.list_edges(flow_id, None, cursor, MAX_PAGE_SIZE)
        return page.edges, page.next_cursor

    return rows_of(read)


def _sorted(keys: Mapping[str, object], edges: Sequence[DrawnEdge]) -> list[str]:
    """Return keys in their natural order, each behind those on which it depends."""
    waiting = dict.fromkeys(keys, 0)
    children: dict[str, list[str]] = {key: [] for key in keys}
    for edge in edges:
        waiting[edge.downstream] += 1
        children[edge.upstream].append(edge.downstream)
    layer, found = sorted((key for key, count in waiting.items() if not count), key=_natural), []
    while layer:
        found += layer
        following = []
        for key in layer:
            for child in children[key]:
                waiting[child] -= 1
                if not waiting[child]:
                    following.append(child)
        layer = sorted(following, key=_natural)
    return found


def _natural(key: str) -> tuple[str, int, str]:
    """Return what sorts `fetch-2` before `fetch-10`."""
    name, _, number = key.rpartition("-")
    return (name, int(number), key) if name and number.isdecimal() and len(number) < _MOST_DIGITS else (key, 0, key)


_MOST_DIGITS: Final = 10
