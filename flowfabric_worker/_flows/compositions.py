"""`chain`, `group` and `chord`: parts of a flow that are put together before their arguments are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from flowfabric_worker._flows.nodes import Node, graph_being_built, leaves_of


class _Placeable(Protocol):
    def node(self, *args: Any, **kwargs: Any) -> Any: ...


Part: TypeAlias = _Placeable | Node[Any] | Callable[..., Any]
"""A task, a task with options, a composition; a node; or a function that returns a node for the results that it gets,
such as `functools.partial(task.node, table="prices")`."""


class Composition:
    """A part of a flow that consists of parts. `node(...)` adds it to the flow of the `with` block.

    `chain`, `group` and `chord` create it.
    """

    def __init__(self, kind: str, parts: Sequence[Part], build: Callable[..., Any]) -> None:
        self._kind = kind
        self._parts = parts
        self._build = build

    def __repr__(self) -> str:
        return f"{self._kind}({', '.join(map(repr, self._parts))})"

    def node(self, *args: Any, **kwargs: Any) -> Any:
        """Add the nodes of the parts to the flow, and return the last node, or a list of the last nodes of a group.

        Args:
            args: the arguments of the first part, or of each part of a group.
            kwargs: the named ones.

        Raises:
            RuntimeError, TypeError, ValidationError, EncodingError: see `Task.node`.
        """
        return self._build(self._parts, args, kwargs)


def chain(*parts: Part) -> Composition:
    """Compose parts that run one after the other; each gets the result of the one before as its first argument.

    Raises:
        TypeError: there are no parts, or one cannot be a part.
    """
    if not parts:
        raise TypeError("chain() needs at least one part.")
    return Composition("chain", _checked(parts), _chain)


def group(*parts: Part | Iterable[Part]) -> Composition:
    """Compose parts that run side by side, with the same arguments; the result is the list of their results.

    The parts are given one by one, or as one iterable.

    Raises:
        TypeError: something cannot be a part.
    """
    only = parts[0] if len(parts) == 1 else None
    if isinstance(only, Iterable) and not hasattr(only, "node"):
        parts = tuple(only)
    return Composition("group", _checked(parts), _group)


def chord(parts: Part | Iterable[Part], then: Part) -> Composition:
    """Compose a group, and a part that runs after it and gets the list of its results.

    Args:
        parts: a group, or the parts of one.
        then: the part that gets the list.

    Raises:
        TypeError: something cannot be a part.
    """
    return chain(parts if isinstance(parts, Composition) else group(parts), then)


def _checked(parts: Sequence[Any]) -> tuple[Part, ...]:
    for part in parts:
        if not callable(part) and not isinstance(part, Node) and not hasattr(part, "node"):
            raise TypeError(f"A part of a flow is a task, a composition, a node or a function, not {part!r:.100}.")
    return tuple(parts)


def _chain(parts: Sequence[Part], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    first, *rest = parts
    result = _place(first, args, kwargs)
    before: list[Node[Any]] = []
    for part in rest:
        # What follows an empty group still follows what is before the group.
        before = list(leaves_of(result, "A chain")) or before
        with graph_being_built().in_order(before):
            result = _place(part, (result,), {})
    return result


def _group(parts: Sequence[Part], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    return [_place(part, args, kwargs) for part in parts]


def _place(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(part, Node):
        if args or kwargs:
            raise TypeError(
                f"The node {part.key!r} has its arguments already, and cannot take results: pass its task, or "
                "functools.partial(task.node, ...)."
            )
        return part
    result = part.node(*args, **kwargs) if hasattr(part, "node") else part(*args, **kwargs)
    for _ in leaves_of(result, f"The part {part!r}"):
        """Every result is a node, or a list of nodes."""
    return result
