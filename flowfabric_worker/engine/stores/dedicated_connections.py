"""Connections that a thread keeps, so that it can call when all others are in use or the server takes no more."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import Any


class Kept:
    """The connections that one thread keeps: at most one of each pool, closed when the thread ends."""

    def __init__(self) -> None:
        self.connections: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


kept: ContextVar[Kept | None] = ContextVar("flowfabric_kept_connections", default=None)


def keep_connections() -> None:
    """Give the calling thread its own connections from now on, one per server that it calls.

    They stay open between calls, and do not count against the size of a pool.
    """
    kept.set(Kept())
