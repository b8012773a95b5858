"""The results of children, as `gather` returns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from flowfabric_worker._flows.children import Child, GatherEnd
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.outcomes import ChildFailed, DurableCallError, ResultError
from flowfabric_worker.run import result_error


def gathered(
    children: Sequence[Child[Any]],
    end: GatherEnd,
    outcome_of: Callable[[Child[Any]], ExecutionOutcome | None],
    *,
    settle: bool,
) -> list[Any]:
    """Return the results of children as they were when their gather ended.

    Args:
        children: the children, in the order of the results.
        end: which of them had succeeded, and which had not.
        outcome_of: reads how a child has ended; None if it has not.
        settle: True to return the failures too.

    Raises:
        ChildFailed: a child did not succeed, and `settle` is False.
        DecodingError: a result is not of the annotated type.
        DurableCallError: a child that had ended runs again.
    """
    results: dict[str, Any] = {}
    failures: dict[str, ResultError] = {}
    for child in children:
        if child.name in results or child.name not in end.succeeded | end.failed:
            continue
        outcome = outcome_of(child)
        if outcome is None:
            raise DurableCallError(f"The child {child.name!r} had ended, and runs again: a replay has begun it.")
        if child.name in end.succeeded:
            results[child.name] = forks.confined(child.result_of, outcome)
        else:
            failures[child.name] = result_error(outcome)
    if failures and not settle:
        name, failure = next(iter(failures.items()))
        running = [child.name for child in children if child.name not in end.succeeded | end.failed]
        raise ChildFailed(name, failure, results, running) from failure
    return [results[child.name] if child.name in results else failures[child.name] for child in children]
