"""Moments: the epoch, and milliseconds since it, in which the store counts time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment_of(milliseconds: int) -> datetime:
    """Return the moment in UTC that lies `milliseconds` after the epoch."""
    return EPOCH + timedelta(milliseconds=milliseconds)
