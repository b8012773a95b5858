"""What a picture of a flow shows: its nodes in layers, and its edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from flowfabric_worker._flows.nodes import Graph
from flowfabric_worker.engine.types.edges import AllEnded, AllOf, AnyOf, EdgeDependencyPolicy, OnSatisfied, Quorum
from flowfabric_worker.engine.types.states import PublicState

# How often the nodes of the layers are put in the order of their neighbours.
_SWEEPS: Final = 4


@attrs.frozen(kw_only=True)
class DrawnNode:
    """A node of a picture.

    Attributes:
        key: the name of the node.
        task: the name of its task.
        join: when its parents let it run, in words; empty if all must succeed.
        state: its state; None in the picture of a flow that was not submitted.
    """

    key: str
    task: str
    join: str = ""
    state: PublicState | None = None


@attrs.frozen(kw_only=True)
class DrawnEdge:
    """An edge of a picture; `passes_data` is False for one that only orders."""

    upstream: str
    downstream: str
    passes_data: bool


@attrs.frozen(kw_only=True)
class Drawing:
    """A flow to draw; each node stands after its parents."""

    name: str
    nodes: tuple[DrawnNode, ...]
    edges: tuple[DrawnEdge, ...]

    def parents(self) -> Mapping[str, list[DrawnEdge]]:
        """Return the edges that lead to each node."""
        found: dict[str, list[DrawnEdge]] = {node.key: [] for node in self.nodes}
        for edge in self.edges:
            found[edge.downstream].append(edge)
        return found

    def layers(self) -> list[list[DrawnNode]]:
        """Return the nodes in layers, each node behind all of its parents, ordered so that few edges cross."""
        depths: dict[str, int] = {}
        parents = self.parents()
        for node in self.nodes:
            depths[node.key] = 1 + max((depths[edge.upstream] for edge in parents[node.key]), default=-1)
        layers: list[list[DrawnNode]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
        for node in self.nodes:
            layers[depths[node.key]].append(node)
        self._order(layers)
        return layers

    def _order(self, layers: list[list[DrawnNode]]) -> None:
        up: dict[str, list[str]] = {node.key: [] for node in self.nodes}
        down: dict[str, list[str]] = {node.key: [] for node in self.nodes}
        for edge in self.edges:
            up[edge.downstream].append(edge.upstream)
            down[edge.upstream].append(edge.downstream)
        for sweep in range(_SWEEPS):
            neighbours, order = (up, layers) if sweep % 2 == 0 else (down, layers[::-1])
            places: dict[str, float] = {}
            for layer in order:
                own = {node.key: float(index) for index, node in enumerate(layer)}
                means = {key: _mean((places[each] for each in neighbours[key]), place) for key, place in own.items()}
                layer.sort(key=lambda node: means[node.key])
                places.update({node.key: float(index) for index, node in enumerate(layer)})


def drawing_of(graph: Graph) -> Drawing:
    """Return the drawing of a graph that is being built."""
    nodes = graph.nodes.values()
    return Drawing(
        name=graph.name,
        nodes=tuple(
            DrawnNode(key=node.key, task=node.task, join=join_of(node._policy, len(node._parents))) for node in nodes
        ),
        edges=tuple(
            DrawnEdge(upstream=parent.key, downstream=node.key, passes_data=bool(paths))
            for node in nodes
            for parent, paths in node._parents.items()
        ),
    )


def _mean(values: Iterable[float], otherwise: float) -> float:
    known = list(values)
    return sum(known) / len(known) if known else otherwise


def join_of(policy: EdgeDependencyPolicy, count: int) -> str:
    """Return in words when the parents of a node let it run; empty if all must succeed.

    Args:
        policy: the policy of the node.
        count: the number of its parents.
    """
    match policy:
        case AllOf(OnSatisfied.LET_RUN):
            return ""
        case AllOf():
            return "all, or cancel the rest"
        case AllEnded():
            return "when all have ended"
        case AnyOf(others):
            need = 1
        case Quorum(need, others):
            pass
    return f"{need} of {count}" + (", cancel the rest" if others is OnSatisfied.CANCEL_REMAINING else "")
