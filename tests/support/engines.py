"""Engines for the length of a block, engines on empty stores, and the connections that they have."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.stores.base import Store
from tests.support.operations import START
from tests.support.servers import ValkeyServer


@contextmanager
def opened(url: str, retry_for: float = 5.0) -> Iterator[Engine]:
    """Provide an engine for the length of a block; it sends a call again for so many seconds."""
    engine = open_engine(url, retry_for=retry_for)
    try:
        yield engine
    finally:
        engine.close()


def empty_engine(store: Store) -> Engine:
    """Return an engine on an empty store beside another one, whose clock stands."""
    beside: Any = copy.copy(store)
    beside.prefix = f"t{uuid4().hex[:12]}"
    engine = Engine(lambda: (beside, 1), retry_for=0)
    engine.prepare(testing=True)
    engine.set_clock(START)
    return engine


def connections_to(server: ValkeyServer) -> int:
    """Return how many connections a server has, but for the one that asks."""
    return len(server.client().client_list()) - 1
