"""Connections that belong to one thread, so that it can call even if all others are in use, or the server is full."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any


class Kept:
    """The connections of one thread, at most one of each pool, which are closed when the thread ends.

    Args:
        is_vital: whether leases are lost if the thread gets no connection; see `Pool`.
    """

    def __init__(self, *, is_vital: bool = False) -> None:
        self.is_vital = is_vital
        self.connections: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


kept: ContextVar[Kept | None] = ContextVar("flowfabric_kept_connections", default=None)


def keep_connections(*, is_vital: bool = False) -> None:
    """Give the calling thread connections of its own from now on, one per server that it calls.

    They stay open between calls, and do not count against the size of a pool. A pool that saves connections gives them
    to vital threads alone.
    """
    kept.set(Kept(is_vital=is_vital))
