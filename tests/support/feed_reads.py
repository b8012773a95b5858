"""Short ways to end executions and to read the feed, for the conformance suite."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.feed import CompletionEvent
from tests.support.executions import running


def told(engine: Engine, cursor: str | None = None, **arguments: Any) -> list[CompletionEvent]:
    """Return every end that is in the feed now."""
    return list(engine.subscribe_completions(cursor, timeout=timedelta(), **arguments))


def ended(engine: Engine, **changes: Any) -> Any:
    """Return the id of an execution that was completed."""
    claimed = running(engine, **changes)
    engine.complete(claimed.handle)
    return claimed.execution_id
