"""Logs that the store is unavailable, and that it works again, without a line for every try."""

from __future__ import annotations

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker.engine.log_queue import Log

# Seconds between two lines about one outage.
LOG_EVERY = 10.0


class OutageLog:
    """Log the outages that one thread notices.

    Args:
        log: the logger.
        what: what the thread does, such as "Claiming".
    """

    def __init__(self, log: Log, what: str) -> None:
        self._log = log
        self._what = what
        self._logged_at: float | None = None

    def note(self, error: Exception) -> None:
        """Note that a call to the store failed; log the first failure, and one every few seconds."""
        if self._logged_at is None or now() - self._logged_at >= LOG_EVERY:
            self._logged_at = now()
            self._log.warning("%s fails; trying again: %s", self._what, error)

    def over(self) -> None:
        """Note that a call to the store succeeded; log it if an outage has ended."""
        if self._logged_at is not None:
            self._logged_at = None
            self._log.warning("%s works again.", self._what)
