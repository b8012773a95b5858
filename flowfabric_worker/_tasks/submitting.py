"""How a submission creates its executions: by calls of its own, or in the transaction of a caller's connection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backend.submission import batches_of
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_BATCH_BYTES, MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.submission import CreateExecutionArgs, CreateExecutionResult


def take_connection(
    function: Callable[..., Any], kwargs: Mapping[str, Any], connection: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Return the connection to submit with, and the arguments that are left for the task.

    Args:
        function: the task's. If it has a parameter `connection`, an argument of that name is the task's.
        kwargs: the named arguments of the submission.
        connection: the one to use if `kwargs` has none.
    """
    if "connection" not in kwargs:
        return connection, kwargs
    parameters = inspect.signature(function).parameters
    if "connection" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return connection, kwargs
    rest = dict(kwargs)
    return rest.pop("connection"), rest


def create(engine: EngineBackend, creation: CreateExecutionArgs, connection: Any) -> CreateExecutionResult:
    """Create an execution, in the transaction of a connection unless that is None."""
    if connection is None:
        return engine.create_execution(creation)
    (result,) = engine.create_in_transaction(connection, [creation])
    if isinstance(result, EngineError):
        raise result
    return result


def create_many(
    engine: EngineBackend, creations: Iterable[CreateExecutionArgs], connection: Any
) -> Iterator[list[CreateExecutionResult | EngineError]]:
    """Create executions in batches, in the transaction of a connection unless that is None."""
    if connection is None:
        return engine.create_in_batches(creations)
    batches = batches_of(creations, MAX_BATCH_ITEMS, MAX_BATCH_BYTES)
    return (engine.create_in_transaction(connection, batch) for batch in batches)
