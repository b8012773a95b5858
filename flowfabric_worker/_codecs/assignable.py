"""Tells whether the values of one annotation can be read by another, as the result of a parent by its child."""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable, MutableSequence, Sequence
from types import NoneType, UnionType
from typing import Any, Final, Literal, Never, NoReturn, Union

from flowfabric_worker._codecs.annotations import strip
from flowfabric_worker._codecs.mappings import MAPPINGS

# The annotations of parameters that take a list of results.
LISTS: Final = (list, MutableSequence, Sequence, Collection, Iterable)
_UNTYPED: Final = (Any, object, Never, NoReturn)
_NUMBERS: Final = {float: (int, bool), int: (bool,)}


def accepts(parameter: Any, result: Any) -> bool:
    """Return True if a parameter of one annotation can take a result of another.

    Nothing is known of a value without an annotation, so it fits everywhere, and everything fits a parameter without
    one.
    """
    parameter, result = strip(parameter), strip(result)
    if parameter in _UNTYPED or result in _UNTYPED or parameter == result:
        return True
    if is_union(result):
        return all(accepts(parameter, member) for member in typing.get_args(result))
    if is_union(parameter):
        return any(accepts(member, result) for member in typing.get_args(parameter))
    if typing.get_origin(result) is Literal:
        values = typing.get_args(result)
        if typing.get_origin(parameter) is Literal:
            return set(values) <= set(typing.get_args(parameter))
        return all(accepts(parameter, type(value)) for value in values)
    return _accepts_class(parameter, result)


def _accepts_class(parameter: Any, result: Any) -> bool:
    wanted, given = typing.get_origin(parameter) or parameter, typing.get_origin(result) or result
    if not (isinstance(wanted, type) and isinstance(given, type)):
        return False
    if given in _NUMBERS.get(wanted, ()):
        return True
    items, given_items = typing.get_args(parameter), typing.get_args(result)
    if wanted in MAPPINGS and given in MAPPINGS:
        return issubclass(given, wanted) and _accepts_all(items or (Any, Any), given_items or (Any, Any))
    if wanted in LISTS or wanted is tuple or given is tuple:
        return _accepts_list(wanted, given, items, given_items)
    if items or given_items:
        return issubclass(given, wanted) and _accepts_all(items or (Any,), given_items or (Any,))
    return wanted is not NoneType and wanted not in _NUMBERS and issubclass(given, wanted)


def _accepts_list(wanted: Any, given: Any, items: tuple[Any, ...], given_items: tuple[Any, ...]) -> bool:
    """Compare two collections; a tuple travels as a list does, and is read as what the parameter wants."""
    if wanted is tuple:
        if given is not tuple:
            return False
        if len(items) == len(given_items) and ... not in items and ... not in given_items:
            return all(map(accepts, items, given_items))
        return items[1:] in ((), (...,)) and all(
            accepts(items[0] if items else Any, each) for each in _kept(given_items)
        )
    return issubclass(given, wanted) and all(accepts(items[0] if items else Any, each) for each in _kept(given_items))


def _kept(items: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each for each in items if each is not ...)


def _accepts_all(parameters: Iterable[Any], results: Iterable[Any]) -> bool:
    return all(accepts(*each) for each in zip(parameters, results, strict=False))


def is_untyped(annotation: Any) -> bool:
    """Return True if an annotation says nothing of its values."""
    return strip(annotation) in _UNTYPED


def is_union(annotation: Any) -> bool:
    """Return True if an annotation is a union."""
    return typing.get_origin(annotation) in (Union, UnionType)


def item_of(annotation: Any, index: int) -> Any:
    """Return the annotation of an item of a list, as which a parameter of this annotation takes several results.

    Raises:
        TypeError: the parameter takes no list.
    """
    annotation = strip(annotation)
    if annotation in _UNTYPED:
        return Any
    if is_union(annotation):
        members = [each for each in map(strip, typing.get_args(annotation)) if _takes_list(each)]
        return item_of(members[0], index) if members else _refuse_list()
    if not _takes_list(annotation):
        return _refuse_list()
    items = typing.get_args(annotation)
    if not items:
        return Any
    if typing.get_origin(annotation) is tuple and items[1:] != (...,):
        return items[index] if index < len(items) else _refuse_list(f"takes {len(items)} results")
    return items[0]


def takes_list(annotation: Any) -> bool:
    """Return True if a parameter of this annotation takes several results as a list."""
    annotation = strip(annotation)
    if is_union(annotation):
        return any(map(takes_list, typing.get_args(annotation)))
    return annotation in _UNTYPED or _takes_list(annotation)


def _takes_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return origin in LISTS or origin is tuple


def _refuse_list(why: str = "takes no list") -> Any:
    raise TypeError(why)


def makes_tuple(annotation: Any) -> bool:
    """Return True if a list of results becomes a tuple for a parameter of this annotation."""
    annotation = strip(annotation)
    if is_union(annotation):
        lists = [each for each in map(strip, typing.get_args(annotation)) if _takes_list(each)]
        return bool(lists) and makes_tuple(lists[0])
    return (typing.get_origin(annotation) or annotation) is tuple
