"""Sleeps of handlers: under which name the end of one is remembered, and when it is."""

from __future__ import annotations

from datetime import datetime, timedelta

from flowfabric_worker._steps.durable_calls import check_durable_name
from flowfabric_worker.engine.moments import epoch_ms, milliseconds


class Sleeps:
    """Name the sleeps of one run of a handler.

    Sleeps without a name are counted by length, so a new sleep of another length does not rename the others.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def name_of(self, until: timedelta | datetime, name: str | None) -> str:
        """Return the name under which the end of the next sleep is remembered.

        Raises:
            DurableCallError: the name is reserved or too long.
        """
        if name is not None:
            return check_durable_name(name, "sleep")
        kind = "until" if isinstance(until, datetime) else f"{milliseconds(until, 'a sleep')} ms"
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{kind} {count}"


def end_of_sleep(until: timedelta | datetime, now_ms: int) -> int:
    """Return the end of a sleep that begins now, in ms since 1970."""
    return epoch_ms(until, "until") if isinstance(until, datetime) else now_ms + milliseconds(until, "until")
