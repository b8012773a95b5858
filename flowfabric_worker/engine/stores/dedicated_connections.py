"""Connections that belong to one thread, so that it can call even if all others are in use, or the server is full."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any


class Kept:
    """The connections of one thread, at most one of each pool, which are closed when the thread ends."""

    def __init__(self) -> None:
        self.connections: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


kept: ContextVar[Kept | None] = ContextVar("flowfabric_kept_connections", default=None)


def keep_connections() -> None:
    """Give the calling thread connections of its own from now on, one per server that it calls.

    They stay open between calls, and do not count against the size of a pool.
    """
    kept.set(Kept())
