"""The results of its parents that an execution of a flow gets as arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from flowfabric_worker.codec import DecodingError, ParentResult
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.flows import FlowInput
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.run import result_error

_NONE: Final[Mapping[str, ParentResult]] = {}


def results_of_parents(claimed: Claimed, engine: EngineBackend, limit: int) -> Mapping[str, ParentResult]:
    """Return the results of the parents of an execution by the paths that they fill; empty outside of a flow.

    Args:
        claimed: the execution.
        engine: reads what did not fit into the claim.
        limit: the most bytes of all results.

    Raises:
        DecodingError: the results have more bytes; the message names the edge at which they do.
        EngineError: the results cannot be read.
    """
    if not claimed.inputs:
        return _NONE
    results: dict[str, ParentResult] = {}
    counts = Counter[str]()
    size = 0
    for each in _inputs(claimed, engine):
        size += len(each.outcome.result or b"")
        if size > limit:
            raise DecodingError(
                f"fan_in_too_large: with the edge {each.edge_id!r} for {each.name!r} the results of the parents have "
                f"{size} bytes; at most {limit} are allowed. Store them elsewhere and return their addresses."
            )
        result = _result(each)
        for path in each.name.split(","):
            if path.endswith("]"):
                results[path] = result
            else:
                results[f"{path}[{counts[path]}]"] = result
                results.setdefault(path, result)
                counts[path] += 1
    return results


def _inputs(claimed: Claimed, engine: EngineBackend) -> Iterator[FlowInput]:
    yield from claimed.inputs
    cursor = claimed.inputs_cursor
    while cursor is not None:
        page = engine.read_inputs(claimed.handle, cursor)
        yield from page.inputs
        cursor = page.next_cursor


def _result(given: FlowInput) -> ParentResult:
    outcome = given.outcome
    if outcome.outcome is TerminalOutcome.SUCCESS:
        return ParentResult(codec=outcome.codec, data=outcome.result)
    return ParentResult(error=result_error(outcome))
