"""Moments and durations: the epoch, and the ms in which the store counts time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_DURATION_MS

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment_of(milliseconds: int) -> datetime:
    """Return the moment in UTC that is `milliseconds` after the epoch."""
    return EPOCH + timedelta(milliseconds=milliseconds)


def milliseconds(duration: timedelta, what: str, *, least: int = 0) -> int:
    """Convert a duration to whole ms.

    Raises:
        ValidationError: `invalid_input`, not a timedelta, below `least` ms, or over 100 years; the message names
            `what`.
    """
    if not isinstance(duration, timedelta):
        raise ValidationError("invalid_input", f"{what} must be a timedelta, not {duration!r}.")
    value = duration // timedelta(milliseconds=1)
    if not least <= value <= MAX_DURATION_MS:
        raise ValidationError("invalid_input", f"{what} must be {least} ms to 100 years, not {duration}.")
    return value


def epoch_ms(moment: datetime, what: str) -> int:
    """Convert a moment to ms since 1970.

    Raises:
        ValidationError: not a datetime with a time zone, or before 1970; the message names `what`.
    """
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise ValidationError("invalid_input", f"{what} must be a datetime with a time zone, not {moment!r}.")
    value = (moment - EPOCH) // timedelta(milliseconds=1)
    if value < 0:
        raise ValidationError("invalid_input", f"{what} must not be before 1970.")
    return value
