"""Checks that a function can become a task, and finds its parameter for the context."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Final, Union

from flowfabric_worker._codecs import UNRESOLVED
from flowfabric_worker._codecs.generators import innermost
from flowfabric_worker.context import TaskContext

_UNIONS: Final = (Union, types.UnionType)
_ALONE: Final = re.compile(r"(?:Optional\[)?(?:\w+\.)*TaskContext\]?(?: ?\| ?None)?")


def check_function(function: Callable[..., Any]) -> None:
    """Refuse a function that does not do its work when it is called, or that needs an instance.

    Raises:
        TypeError: it is async, a method or no function; the message says what to do.
    """
    if not callable(function):
        raise TypeError(f"@worker.task decorates a function, not {function!r:.100}.")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    for called in (inner, getattr(inner, "__call__", None)):  # noqa: B004  an object's own __call__ may be async
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                f"{name}() is async, and handlers run in threads: make it a plain function that calls asyncio.run()."
            )
    if _takes_an_instance(inner, name):
        raise TypeError(
            f"{name}() is a method, and a worker has no instance for it: decorate a function, or put @staticmethod "
            "above @worker.task."
        )


def _takes_an_instance(function: Callable[..., Any], name: str) -> bool:
    """Return True if a function is defined in a class and takes an instance."""
    if isinstance(function, classmethod):
        return True
    around = name.rpartition(".")[0]
    if not inspect.isfunction(function) or not around or around.endswith("<locals>"):
        return False
    first = next(iter(inspect.signature(function).parameters), "")
    return first in ("self", "cls")


def find_context_parameter(function: Callable[..., Any]) -> str | None:
    """Return the name of the parameter that is annotated `TaskContext`, optional or not; None if there is none.

    Raises:
        TypeError: there are two.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    found = [each.name for each in parameters if _wants_context(function, each.annotation)]
    if len(found) > 1:
        raise TypeError(f"{' and '.join(found)} are both annotated TaskContext: a run has one context.")
    return found[0] if found else None


def _wants_context(function: Callable[..., Any], annotation: Any) -> bool:
    if isinstance(annotation, str):
        resolved = _resolved(function, annotation)
        # A name that is imported for type checkers alone still says what is wanted.
        return _ALONE.fullmatch(annotation) is not None if resolved is None else _wants_context(function, resolved)
    if typing.get_origin(annotation) is Annotated:
        return _wants_context(function, typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in _UNIONS:
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        return len(members) == 1 and _wants_context(function, members[0])
    return annotation is TaskContext


def _resolved(function: Callable[..., Any], annotation: str) -> Any:
    """Resolve an annotation that is a string; return None if it does not resolve yet."""
    scope = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        hints = typing.get_type_hints(scope, globals_of(function), include_extras=True)
    except UNRESOLVED:
        return None
    return hints["it"]


def globals_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the global names of the module of a function."""
    return getattr(innermost(function), "__globals__", {})
