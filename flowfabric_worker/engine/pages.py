"""Pages of listings: their limits, their cursors, and the bounded calls that fill them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_CALL_ROWS, MAX_PAGE_SIZE
from flowfabric_worker.engine.stores.base import Reply

T = TypeVar("T")


def page_size(limit: int, least: int = 0) -> int:
    """Check the limit of a page, `least` to 1000, and return it.

    Raises:
        ValidationError: `invalid_input`.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not least <= limit <= MAX_PAGE_SIZE:
        raise ValidationError(
            "invalid_input", f"The limit of a page must be {least} to {MAX_PAGE_SIZE}, not {limit!r}."
        )
    return limit


def read_cursor(read: Callable[[], T], what: str) -> T:
    """Read the cursor of a listing.

    Args:
        read: checks the cursor, and raises a `ValidationError` if it is not valid.
        what: what a cursor of this listing is, for the message.

    Raises:
        ValidationError: `invalid_cursor`.
    """
    try:
        return read()
    except ValidationError as error:
        raise ValidationError("invalid_cursor", f"The cursor of this listing must be {what}: {error}") from None


def read_rows(call: Callable[[bytes, int], Reply], after: bytes, count: int) -> Iterator[Reply]:
    """Yield up to `count` rows after a place, in several calls if one exceeds its work budget.

    Args:
        call: calls the stored function of a listing with a place and a limit. It replies with `1` if there may be more
            rows, then the rows, each of which begins with its place.
        after: the place to begin after; empty for the beginning.
        count: the most rows to yield.
    """
    while count > 0:
        more, *rows = call(after, min(count, MAX_CALL_ROWS))
        named = [row for row in rows if is_text(row[0])]
        yield from named
        if more != b"1" or not rows:
            return
        count -= len(named)
        after = rows[-1][0]


def is_text(place: bytes) -> bool:
    """Return False for a damaged entry of an index: a listing passes it over, because no record has such a name."""
    try:
        place.decode()
    except UnicodeDecodeError:
        return False
    return True
