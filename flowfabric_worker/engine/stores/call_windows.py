"""How many calls are sent before the first of their replies is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowfabric_worker.engine.stores.base import Call

# Enough to keep a server busy, and few enough that replies come in time and other clients are served in between.
_WINDOW_CALLS = 16
_WINDOW_BYTES = 1024 * 1024


def windows(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Cut calls into what may be under way at once."""
    first = size = 0
    for place, call in enumerate(calls):
        added = sum(len(argument) for argument in call.arguments if isinstance(argument, bytes | str))
        if place > first and (place - first >= _WINDOW_CALLS or size + added > _WINDOW_BYTES):
            yield calls[first:place]
            first, size = place, 0
        size += added
    if first < len(calls):
        yield calls[first:]
