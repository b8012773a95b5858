"""A store in this process, for tests: fakeredis runs the same function library as a server."""

from __future__ import annotations

import threading
from typing import Any

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, StoreInfo
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

_MOST_CONNECTIONS = 10_000
_servers: dict[str, Any] = {}
_servers_lock = threading.Lock()


class MemoryStore(ValkeyStore):
    """A store that lives as long as the process.

    Args:
        name: stores with the same name share their data; a store without a name shares it with no other.
        prefix: the beginning of every key and channel.
        partitions: how many partitions a new store gets.
    """

    def __init__(self, name: str = "", *, prefix: str = "ff", partitions: int = 1) -> None:
        try:
            import fakeredis
        except ImportError as error:
            raise UnavailableError(
                "memory",
                "memory:// needs fakeredis: install it with pip install 'flowfabric_worker[memory]'.",
                "store_not_supported",
            ) from error
        with _servers_lock:
            server = _servers.get(name) if name else None
            if server is None:
                server = fakeredis.FakeServer(server_type="valkey")
                if name:
                    _servers[name] = server
        self.default_partitions = partitions
        made = fakeredis.FakeRedis(server=server, protocol=2).connection_pool
        pool = ValkeyPool(made.connection_class, made.connection_kwargs, size=_MOST_CONNECTIONS, retry_for=CALL_TIMEOUT)
        super().__init__(pool, label="memory", prefix=prefix, address=f"memory://{name}")

    def other_releases(self) -> tuple[str, ...]:
        # No other release has used a store that lives only as long as this process.
        return ()

    def info(self) -> StoreInfo:
        return StoreInfo(product="memory", version="1")


def forget_memory(name: str) -> None:
    """Forget the store with a name; it is deleted when the last engine that has it open is closed."""
    with _servers_lock:
        _servers.pop(name, None)
