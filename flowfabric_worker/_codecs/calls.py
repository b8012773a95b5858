"""The calls of a task: checked by Python's own rules, and stored as lists and dicts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from inspect import Parameter
from typing import Any, Final

BY_PLACE: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
BY_NAME: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def binder(function: Callable[..., Any], parameters: Sequence[Parameter]) -> Callable[..., None]:
    """Return a function with the same name and parameters that does nothing; calling it checks a call."""
    bare = [
        parameter.replace(
            annotation=Parameter.empty,
            default=Parameter.empty if parameter.default is Parameter.empty else None,
        )
        for parameter in parameters
    ]
    binder: Callable[..., None] = eval(f"lambda {str(inspect.Signature(bare))[1:-1]}: None")
    # Python's TypeError takes the name of the function from its __qualname__.
    binder.__qualname__ = getattr(function, "__qualname__", type(function).__qualname__)
    return binder


def count_before_skipped(parameters: Sequence[Parameter], skip: Collection[str], name: str) -> int | None:
    """Return how many arguments can stay positional if skipped parameters are passed by keyword; None for all."""
    for count, parameter in enumerate(parameters):
        if parameter.name in skip and parameter.kind is not Parameter.KEYWORD_ONLY:
            followers = {follower.kind for follower in parameters[count:]}
            if parameter.kind not in BY_NAME or Parameter.VAR_POSITIONAL in followers:
                raise TypeError(f"{name} cannot be given {parameter.name!r} by keyword; make it keyword-only.")
            return count
    return None
