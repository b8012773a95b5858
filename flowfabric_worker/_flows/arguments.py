"""The arguments of a node: which of them are results of other nodes, and whether those fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Any

import attrs

from flowfabric_worker._codecs.annotations import label_of, strip
from flowfabric_worker._codecs.assignable import accepts, item_of, takes_list
from flowfabric_worker._codecs.holes import FIRST, Shape, parameter_of
from flowfabric_worker._flows.nodes import Node, Planned, leaves_of
from flowfabric_worker._flows.placement import Placement
from flowfabric_worker.codec import DecodingError, conversions_of
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.outcomes import ResultError


@attrs.frozen(kw_only=True)
class NodeArguments:
    """The arguments of a node.

    Attributes:
        args: the positional arguments, with None where results come.
        kwargs: the named arguments, with None where results come.
        shapes: the shape of each argument that results fill, by index or name.
        parents: the nodes whose results fill them, and the paths of those, in the order of the arguments.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: Mapping[int | str, Shape]
    parents: Mapping[Node[Any], tuple[str, ...]]


def split_arguments(
    task: Planned, args: Sequence[Any], kwargs: Mapping[str, Any], placement: Placement
) -> NodeArguments:
    """Tell the arguments that are values from those that are results of other nodes.

    Raises:
        TypeError: a result does not fit its parameter, or a list mixes nodes with values.
        ValidationError: `invalid_graph`, one result fills too many places.
    """
    args, kwargs = _by_name(task, args, kwargs)
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    holes = {place: value for place, value in given if _holds_nodes(value, str(place))}
    count = len({*placement.after, *(node for value in holes.values() for node in leaves_of(value, ""))})
    reader = _Reader(task, placement, count)
    shapes = {place: reader.shape(str(place), value) for place, value in holes.items()}
    return NodeArguments(
        args=tuple(None if index in holes else value for index, value in enumerate(args)),
        kwargs={name: None if name in holes else value for name, value in kwargs.items()},
        shapes=shapes,
        parents={node: _joined(node, paths) for node, paths in reader.parents.items()},
    )


def _by_name(
    task: Planned, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return a call whose positional arguments are named from the first node on, if the signature allows it."""
    first = next((index for index, value in enumerate(args) if _holds_nodes(value, str(index))), len(args))
    parameters = [each for each in task.codec.parameters if each.kind is not Parameter.KEYWORD_ONLY][first : len(args)]
    if len(parameters) < len(args) - first or any(each.kind is not each.POSITIONAL_OR_KEYWORD for each in parameters):
        return tuple(args), kwargs
    named = {each.name: value for each, value in zip(parameters, args[first:], strict=True)}
    if named.keys() & kwargs.keys():
        # Python's own error tells of the argument that is given twice.
        return tuple(args), kwargs
    return tuple(args[:first]), {**named, **kwargs}


def _holds_nodes(value: Any, place: str) -> bool:
    """Return True if an argument is a node, or a list of nodes.

    Raises:
        TypeError: it mixes nodes with values, or is a dict of nodes.
    """
    if isinstance(value, Node):
        return True
    if isinstance(value, Mapping) and any(_holds_nodes(each, place) for each in value.values()):
        raise TypeError(
            f"The argument {place!r} is a dict with nodes: pass each node as an argument, or a list of nodes."
        )
    if not isinstance(value, list | tuple) or not any(_holds_nodes(each, place) for each in value):
        return False
    for _ in leaves_of(value, f"The argument {place!r}"):
        """Every item is a node, or a list of nodes."""
    return True


def _joined(node: Node[Any], paths: Sequence[str]) -> tuple[str, ...]:
    """Return the paths that the result of a node fills, which an edge carries in one text."""
    try:
        check_name(",".join(paths), "the paths")
    except ValidationError as error:
        raise ValidationError(
            "invalid_graph", f"The result of the node {node.key!r} fills {len(paths)} places of one call: pass it once."
        ) from error
    return tuple(paths)


class _Reader:
    """Reads the arguments of one node that hold other nodes.

    Attributes:
        parents: the nodes, with the paths that their results fill.
    """

    def __init__(self, task: Planned, placement: Placement, count: int) -> None:
        self._task = task
        self._placement = placement
        self._may_miss = placement.may_miss(count)
        self.parents: dict[Node[Any], list[str]] = {}

    def shape(self, place: str, value: Any) -> Shape:
        """Return the shape of an argument."""
        port = self._task.codec.place(place)
        annotation = port.annotation
        if isinstance(value, Node):
            self._check_default(place, value)
        elif isinstance(self._placement.need, int) and not takes_list(annotation):
            if not self._may_miss:
                raise TypeError(f"{port.where} takes no list: lower need=, or pass one node.")
            return {FIRST: self._list(place, value, lambda _: annotation)}
        return self._shape(place, value, annotation)

    def _shape(self, path: str, value: Any, annotation: Any) -> Shape:
        if isinstance(value, Node):
            return self._leaf(path, value, annotation)

        def item(index: int) -> Any:
            try:
                return item_of(annotation, index)
            except TypeError as error:
                raise TypeError(
                    f"The argument {path!r} of {self._task.name}, which is annotated {label_of(annotation)}, {error}."
                ) from None

        return self._list(path, value, item)

    def _list(self, path: str, values: Sequence[Any], annotation_of: Any) -> list[Shape]:
        return [self._shape(f"{path}[{index}]", each, annotation_of(index)) for index, each in enumerate(values)]

    def _leaf(self, path: str, node: Node[Any], annotation: Any) -> str | None:
        self.parents.setdefault(node, []).append(path)
        result = node._task.codec.result_annotation
        where = f"The argument {path!r} of {self._task.name}"
        if not accepts(annotation, result):
            raise TypeError(
                f"{where} is annotated {label_of(annotation)}, and the node {node.key!r} ({node.task}) returns "
                f"{label_of(result)}."
            )
        if self._placement.need == "ended" and not accepts(annotation, ResultError):
            raise TypeError(
                f'{where} is annotated {label_of(annotation)}, and with need="ended" it may be a ResultError: annotate '
                f"{label_of(annotation)} | ResultError."
            )
        try:
            self._task.codec.named(node._creation.codec)
        except DecodingError as error:
            raise TypeError(f"{where} cannot read the result of the node {node.key!r}: {error}") from error
        return self._tag(node, annotation, result)

    def _tag(self, node: Node[Any], annotation: Any, result: Any) -> str | None:
        """Return the member of a union as which a result is read; None for the one that fits."""
        if strip(annotation) == strip(result):
            return None
        conversions = conversions_of(node._task.codec.codec)
        label = conversions.of(result).label
        return label if label in conversions.of(annotation).tags else None

    def _check_default(self, place: str, node: Node[Any]) -> None:
        parameter = parameter_of(place, self._task.codec.parameters)
        if self._may_miss and parameter.default is Parameter.empty and parameter.kind not in _ANY_NUMBER:
            raise TypeError(
                f"{self._task.name} may run without the result of {node.key!r} (need={self._placement.need}): give its "
                f"parameter {parameter.name!r} a default, or pass the nodes as one list."
            )


_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
