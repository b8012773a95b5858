"""The embedded store: a Valkey server that this library starts, with its data in one directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis.connection import BlockingConnectionPool, UnixDomainSocketConnection

from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer
from flowfabric_worker.engine.stores.valkey import ValkeyStore


class EmbeddedStore(ValkeyStore):
    """A store on the server of a directory: the first to name it starts the server, the last to leave stops it.

    Args:
        directory: where the data lies; made if it is missing.
        prefix: begins every key and channel.
        pool_size: most connections.
        settings: of each connection.
    """

    def __init__(self, directory: Path, *, prefix: str, pool_size: int, settings: dict[str, Any]) -> None:
        self._server = EmbeddedServer.join(directory)
        pool = BlockingConnectionPool(
            connection_class=UnixDomainSocketConnection,
            max_connections=pool_size,
            path=str(self._server.socket_path),
            **settings,
        )
        super().__init__(pool, label="embedded", prefix=prefix, address=f"embedded://{directory}")

    def close(self) -> None:
        super().close()
        self._server.leave()
