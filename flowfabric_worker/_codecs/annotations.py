"""Reads annotations: their labels, the types that they wrap, and the fields of a class."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Final, NewType, NotRequired, Required, TypeVar

import attrs

# The errors that evaluating an annotation may raise: annotations are code, and may use undefined names.
UNRESOLVED: Final = (AttributeError, NameError, RecursionError, SyntaxError, TypeError)

_WRAPPERS: Final = (Annotated, typing.Final, NotRequired, Required)


def strip(annotation: Any) -> Any:
    """Return the annotation without its wrappers, such as `Annotated`, `NewType` and type aliases."""
    while True:
        if annotation is None:
            return NoneType
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        elif typing.get_origin(annotation) in _WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # a `type` statement
            annotation = annotation.__value__
        else:
            return annotation


def label_of(annotation: Any) -> str:
    """Return the annotation without the modules of the classes that it names."""
    return re.sub(r"[\w<>.]+\.(?=\w)", "", inspect.formatannotation(annotation)).replace("NoneType", "None")


def is_typed_dict(kind: type) -> bool:
    """Return True if a class is a TypedDict, of `typing` or of `typing_extensions`."""
    return issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def field_hints(annotation: Any, kind: Any, *, init: bool = True) -> dict[str, Any]:
    """Return the types of a class's fields, where `Box[int]` fills the type variables of `Box`.

    Forward references, also inside of lists, are resolved in the class itself too, because cattrs reads it there.

    Args:
        annotation: the annotation, such as `Box[int]`.
        kind: the class.
        init: True for the fields that `__init__` takes, False for the others.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    if attrs.has(kind):
        attrs.resolve_types(kind)
        hints = {field.name: field.type or Any for field in attrs.fields(kind) if field.init is init}
    elif dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            field.type = hints[field.name]
        hints = {field.name: field.type for field in dataclasses.fields(kind) if field.init is init}
    filled = dict(zip(getattr(kind, "__parameters__", ()), typing.get_args(annotation), strict=False))
    return {name: _fill(hint, filled) for name, hint in hints.items()}


def _fill(hint: Any, filled: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return filled.get(hint, hint)
    if isinstance(hint, type):
        # A generic class without arguments stays one.
        return hint
    parameters = getattr(hint, "__parameters__", ())
    return hint[tuple(filled.get(parameter, parameter) for parameter in parameters)] if parameters else hint
