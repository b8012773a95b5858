"""The arguments of a call that the results of other executions fill.

A call is stored with the shape of each such argument: None for a single result, or the name of the member of a union as
which it is read; a list for a list of results; `{"first": [...]}` for the first result that there is. A result belongs
to a path, such as `quotes[2]`: the argument, and the indexes in the lists of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Any, Final, TypeAlias

from flowfabric_worker._codecs.assignable import is_untyped, item_of, makes_tuple, takes_list
from flowfabric_worker._codecs.calls import BY_PLACE

Shape: TypeAlias = "str | list[Shape] | dict[str, list[Shape]] | None"
Read: TypeAlias = Callable[[str, Any, str | None], Any]

FIRST: Final = "first"
# Stands for a result that there is none of, because its execution did not succeed.
MISSING: Final = object()


def fill(shape: Shape, path: str, annotation: Any, read: Read) -> Any:
    """Return the value of an argument, or `MISSING`.

    Args:
        shape: the shape of the argument.
        path: the path of the argument.
        annotation: the annotation of the parameter.
        read: returns the result for a path, an annotation and the name of a member of a union; or `MISSING`.

    Raises:
        TypeError: the parameter does not take a list of this shape.
    """
    if isinstance(shape, list):
        items = [fill(each, inner, item_of(annotation, index), read) for index, inner, each in _inside(path, shape)]
        present = [item for item in items if item is not MISSING]
        return tuple(present) if makes_tuple(annotation) else present
    if isinstance(shape, dict):
        values = (fill(each, inner, annotation, read) for _, inner, each in _inside(path, shape[FIRST]))
        return next((value for value in values if value is not MISSING), MISSING)
    return read(path, annotation, shape)


def _inside(path: str, shapes: list[Shape]) -> Iterator[tuple[int, str, Shape]]:
    for index, shape in enumerate(shapes):
        yield index, f"{path}[{index}]", shape


def shapes_of(paths: Iterable[str], holes: Collection[str], port_of: Callable[[str], Any]) -> dict[str, Shape]:
    """Return the shapes of arguments that results fill although the call has no holes for them.

    Args:
        paths: the paths of the results; one result for `name` has the paths `name` and `name[0]`.
        holes: the arguments that have holes.
        port_of: returns the port of an argument.
    """
    counts: dict[str, int] = {}
    for path in paths:
        name, _, index = path.partition("[")
        if name not in holes:
            counts[name] = counts.get(name, 0) + bool(index)
    shapes: dict[str, Shape] = {}
    for name, count in counts.items():
        annotation = port_of(name).annotation
        several: list[Shape] = [None] * count
        if takes_list(annotation) and (count > 1 or not is_untyped(annotation)):
            shapes[name] = several
        else:
            shapes[name] = {FIRST: several} if count > 1 else None
    return shapes


def put(
    values: Mapping[str, Any], args: Sequence[Any], kwargs: dict[str, Any], parameters: Sequence[Parameter]
) -> list[Any]:
    """Put values into a call, and return its positional arguments; a missing value leaves a default in force.

    Args:
        values: the values, or `MISSING`, by the index or the name of their arguments.
        args: the positional arguments.
        kwargs: the named arguments, which are changed.
        parameters: the parameters of the function.

    Raises:
        TypeError: a value is missing, and its parameter has no default.
    """
    placed = list(args)
    for place, value in values.items():
        parameter = parameter_of(place, parameters)
        optional = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        if value is MISSING and parameter.default is Parameter.empty and not optional:
            raise TypeError(f"no result came for the argument {parameter.name!r}, which has no default")
        if place.isdigit():
            placed[int(place)] = parameter.default if value is MISSING and not optional else value
        elif value is MISSING:
            del kwargs[place]
        else:
            kwargs[place] = value
    return [value for value in placed if value is not MISSING]


def parameter_of(place: str, parameters: Sequence[Parameter]) -> Parameter:
    """Return the parameter that takes the argument of an index or a name, which fits the signature."""
    by_kind = {each.kind: each for each in parameters}
    if not place.isdigit():
        named = {each.name: each for each in parameters if each.kind is not Parameter.POSITIONAL_ONLY}
        return named.get(place) or by_kind[Parameter.VAR_KEYWORD]
    positional = [each for each in parameters if each.kind in BY_PLACE]
    return positional[int(place)] if int(place) < len(positional) else by_kind[Parameter.VAR_POSITIONAL]
