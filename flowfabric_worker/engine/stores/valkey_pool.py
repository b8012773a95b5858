"""The pool of connections to a Valkey or Redis server, with which the driver's clients work as well."""

from __future__ import annotations

from typing import Any

import redis
from redis.connection import ConnectionPool

from flowfabric_worker.engine.stores.pool import Pool


class ValkeyPool(Pool, ConnectionPool):
    """A pool that is also one of the driver's, whose code for each call it replaces.

    Without the metrics, notifications and caches of the driver, that code takes less than half of the time.

    Args:
        connection_class: the class of the connections.
        settings: the settings of each connection.
        size: the most connections.
        retry_for: how long to wait for a connection when all are in use, in seconds.
    """

    lost = (redis.ConnectionError, redis.TimeoutError, OSError)

    def __init__(self, connection_class: type[Any], settings: dict[str, Any], *, size: int, retry_for: float) -> None:
        Pool.__init__(self, connection_class, settings, size=size, retry_for=retry_for)
        ConnectionPool.__init__(self, connection_class=connection_class, max_connections=size, **settings)
