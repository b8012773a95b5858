"""The boundary at which an argument that an operation cannot use becomes a typed error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import FlowFabricError, ValidationError

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=type[EngineBackend])

# Errors that say nothing of an argument. An outcome that meets one must not be dropped, as it is for a ValidationError.
_OF_THE_PROCESS = (FlowFabricError, MemoryError, OSError, AssertionError)


def refuses_unusable_arguments(engine: E) -> E:
    """Make each operation of an engine raise a `ValidationError` for an argument on which Python code fails.

    Arguments are checked where they are used. An object of the caller can still fail there in ways that no check
    foresees: it has another type than its class says, cannot be compared or shown, or is nested without end.
    """
    for name in dir(EngineBackend):
        operation = getattr(engine, name)
        if not name.startswith("_") and operation is not getattr(EngineBackend, name):
            setattr(engine, name, guarded(name, operation))
    return engine


def guarded(name: str, function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that raises a `ValidationError` where another one fails for the arguments of an operation."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except _OF_THE_PROCESS:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
                # Such as a thread that cannot be started; the same call may succeed later.
                raise
            # The error's text may show the argument, which may be a payload.
            raise ValidationError(
                "invalid_input", f"{name} cannot use one of its arguments: it raised {type(error).__name__}."
            ) from error

    return call
