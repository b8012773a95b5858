"""The embedded store: a Valkey server that this library starts, with its data in one directory."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import redis
from redis.connection import UnixDomainSocketConnection

from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.embedded_guard import Valkey
from flowfabric_worker.engine.stores.embedded_server import Membership, runs_as_this_user
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool


class OwnServerConnection(UnixDomainSocketConnection):
    """A connection that refuses a server which runs as another user."""

    def _connect(self) -> socket.socket:
        connected: socket.socket = super()._connect()  # type: ignore[no-untyped-call]  # the driver leaves it untyped
        if not runs_as_this_user(connected):
            connected.close()
            raise redis.ConnectionError(f"the server at {self.path} runs as another user")
        return connected


class EmbeddedStore(ValkeyStore):
    """A store on the server of a directory, which the first process that uses it starts, and the last one stops.

    Args:
        directory: the directory of the data; it is created if it does not exist.
        prefix: the beginning of every key and channel.
        pool_size: the most connections.
        settings: the settings of each connection.
    """

    def __init__(self, directory: Path, *, prefix: str, pool_size: int, settings: dict[str, Any]) -> None:
        self._membership = Membership(directory, Valkey)
        pool = ValkeyPool(
            OwnServerConnection,
            {**settings, "path": str(self._membership.socket_path)},
            size=pool_size,
            retry_for=settings["socket_timeout"],
        )
        super().__init__(pool, label="embedded", prefix=prefix, address=f"embedded://{directory}")

    def translate(self, error: Exception) -> EngineError:
        if isinstance(error, redis.ConnectionError):
            self._membership.renew()
        return super().translate(error)

    def close(self) -> None:
        super().close()
        self._membership.end()
