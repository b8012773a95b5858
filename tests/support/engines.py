"""Engines for the length of a block, and the connections that they have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.servers import ValkeyServer


@contextmanager
def opened(url: str, retry_for: float = 5.0) -> Iterator[Engine]:
    """Provide an engine for the length of a block; it sends a call again for so many seconds."""
    engine = open_engine(url, retry_for=retry_for)
    try:
        yield engine
    finally:
        engine.close()


def connections_to(server: ValkeyServer) -> int:
    """Return how many connections a server has, but for the one that asks."""
    return len(server.client().client_list()) - 1
