"""`Listing`, what `Client.list` returns, and the reading of listings page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.reads import ExecutionSummary, ListExecutionsPage

T = TypeVar("T")
C = TypeVar("C")


class Listing(Iterator[ExecutionSummary]):
    """Iterate over the executions that match a filter; each page is read when it is needed.

    Attributes:
        looked_at: how many executions the store has looked at so far.
        unindexed: the filters that have no index, among `state`, `task` and `tags`.
    """

    def __init__(self, read: Callable[[ExecutionId | None], ListExecutionsPage]) -> None:
        self.looked_at = 0
        self.unindexed: tuple[str, ...] = ()
        self._read = read
        self._rows = rows_of(self._next_page)

    def __next__(self) -> ExecutionSummary:
        return next(self._rows)

    def _next_page(self, cursor: ExecutionId | None) -> tuple[Sequence[ExecutionSummary], ExecutionId | None]:
        page = self._read(cursor)
        self.looked_at += page.looked_at
        self.unindexed = page.unindexed
        return page.executions, page.next_cursor


def rows_of(read: Callable[[C | None], tuple[Sequence[T], C | None]]) -> Iterator[T]:
    """Yield the rows of every page, from the first page on."""
    cursor: C | None = None
    while True:
        rows, cursor = read(cursor)
        yield from rows
        if cursor is None:
            return
