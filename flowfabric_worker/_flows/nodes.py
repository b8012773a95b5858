"""`Node`, a task in the graph of a flow, and the graph that is being built in a `with` block."""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, Protocol, TypeVar

from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.types.edges import EdgeDependencyPolicy
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

R = TypeVar("R")

# The header in which the execution of a node has the key of the node.
NODE_HEADER: Final = "flowfabric-node"


class Planned(Protocol):
    """The task of a node."""

    @property
    def name(self) -> str: ...

    @property
    def owner(self) -> Any: ...

    @property
    def codec(self) -> TaskCodec: ...


class Node(Generic[R]):
    """A task in the graph of a flow. Another node takes its result where it is passed as an argument.

    `task.node(...)` creates it.

    Attributes:
        key: the name of the node in its flow.
        task: the name of its task.
    """

    __slots__ = ("_creation", "_graph", "_parents", "_policy", "_task", "key", "task")

    def __init__(
        self,
        graph: Graph,
        key: str,
        task: Planned,
        creation: CreateExecutionArgs,
        parents: Mapping[Node[Any], tuple[str, ...]],
        policy: EdgeDependencyPolicy,
    ) -> None:
        self.key = key
        self.task = task.name
        self._graph = graph
        self._task = task
        self._creation = creation
        self._parents = dict(parents)
        self._policy = policy

    def __repr__(self) -> str:
        return f"<Node {self.key!r} of the flow {self._graph.name!r}>"


class Graph:
    """The nodes of a flow, by their keys, in the order in which they were made.

    Args:
        name: the name of the flow.

    Attributes:
        implied: the nodes that a node without parents waits for.
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, "a flow's name")
        self.nodes: dict[str, Node[Any]] = {}
        self.implied: tuple[Node[Any], ...] = ()

    @contextmanager
    def in_order(self, nodes: Sequence[Node[Any]]) -> Iterator[None]:
        """Let nodes without parents that a block adds wait for these nodes; if none, for those of the outer block."""
        former = self.implied
        self.implied = tuple(nodes) or former
        try:
            yield
        finally:
            self.implied = former

    def add(self, node: Node[Any]) -> None:
        """Add a node."""
        self.nodes[node.key] = node

    def key_for(self, wanted: str | None, task: str) -> str:
        """Return the key of a new node: the one that is wanted, or one made of the name of its task.

        Raises:
            ValidationError: `invalid_graph`, another node has the key.
        """
        if wanted is not None:
            if wanted in self.nodes:
                raise ValidationError(
                    "invalid_graph", f"The flow {self.name!r} already has a node with the key {wanted!r}: use another."
                )
            return wanted
        base = task.rpartition(".")[2]
        if base not in self.nodes:
            return base
        number = 2
        while f"{base}-{number}" in self.nodes:
            number += 1
        return f"{base}-{number}"

    def check_own(self, nodes: Iterable[Node[Any]]) -> None:
        """Refuse nodes of other flows.

        Raises:
            ValidationError: `invalid_graph`.
        """
        for node in nodes:
            if node._graph is not self:
                raise ValidationError(
                    "invalid_graph",
                    f"The node {node.key!r} belongs to the flow {node._graph.name!r}, and not to {self.name!r}, which "
                    "is being built: nodes depend on nodes of their own flow.",
                )

    def last_nodes(self) -> list[Node[Any]]:
        """Return the nodes that no other node depends on."""
        parents = {parent for node in self.nodes.values() for parent in node._parents}
        return [node for node in self.nodes.values() if node not in parents]


# The graph that `task.node(...)` adds to.
building: contextvars.ContextVar[Graph | None] = contextvars.ContextVar("flowfabric_flow", default=None)


def graph_being_built() -> Graph:
    """Return the graph of the `with` block around the caller.

    Raises:
        RuntimeError: there is none.
    """
    graph = building.get()
    if graph is None:
        raise RuntimeError("A node belongs to a flow: call node() inside `with worker.flow(name) as flow:`.")
    return graph


def leaves_of(value: Any, where: str) -> Iterator[Node[Any]]:
    """Yield the nodes of a list of nodes, whose items may be such lists.

    Raises:
        TypeError: something else is in the list.
    """
    if isinstance(value, Node):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from leaves_of(each, where)
    else:
        raise TypeError(f"{where} mixes nodes with a {type(value).__name__}: a list holds nodes alone, or none.")
