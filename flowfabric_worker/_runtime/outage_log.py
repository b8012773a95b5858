"""Telling operators that the store is away, and that it is back, without a line for every try."""

from __future__ import annotations

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker.engine.log_queue import Log

SAY_AGAIN = 10.0


class OutageLog:
    """The times when one thread cannot use the store.

    Args:
        log: where to say so.
        what: what the thread does, as in "Claiming".
    """

    def __init__(self, log: Log, what: str) -> None:
        self._log = log
        self._what = what
        self._said_at: float | None = None

    def note(self, error: Exception) -> None:
        """The store could not be used; said at first, and again every few seconds."""
        if self._said_at is None or now() - self._said_at >= SAY_AGAIN:
            self._said_at = now()
            self._log.warning("%s fails; trying again: %s", self._what, error)

    def over(self) -> None:
        """The store could be used; said if it was away."""
        if self._said_at is not None:
            self._said_at = None
            self._log.warning("%s works again.", self._what)
