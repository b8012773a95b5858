"""Recognizes generator functions, and reads what they yield and return from their annotations."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from collections.abc import Callable
from types import NoneType
from typing import Any, Final

from flowfabric_worker._codecs.annotations import label_of, strip

_ITERATORS: Final = (collections.abc.Iterator, collections.abc.Iterable)
_SENT: Final = (Any, object, NoneType, None)


def innermost(function: Callable[..., Any]) -> Any:
    """Return the function that partials and decorators wrap."""
    inner: Any = inspect.unwrap(function)
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    return inner


def is_generator(function: Callable[..., Any]) -> bool:
    """Return True if a function, or the one that it wraps, yields values."""
    inner = innermost(function)
    called = (inner, getattr(inner, "__call__", None))  # noqa: B004  an object's own __call__ may yield
    return any(inspect.isgeneratorfunction(each) for each in called)


def outputs_of(annotation: Any) -> tuple[Any, Any, str]:
    """Return the annotations of what a generator returns and yields, and why it cannot be a task, or "".

    Args:
        annotation: the return annotation of the generator function.
    """
    annotation = strip(annotation)
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation) or (Any,)
    if origin is Any:
        return Any, Any, ""
    if origin in _ITERATORS:
        return Any, arguments[0], ""
    if origin is not collections.abc.Generator:
        refusal = f"it yields values, so annotate Iterator[T] or Generator[T, None, R] and not {label_of(annotation)}"
        return Any, Any, refusal
    frame, sent, result = (*arguments, NoneType, Any)[:3] if len(arguments) < 3 else arguments
    if sent not in _SENT and NoneType not in typing.get_args(sent):
        return Any, Any, f"it expects {label_of(sent)} from send(), which a worker does not call"
    return result, frame, ""
