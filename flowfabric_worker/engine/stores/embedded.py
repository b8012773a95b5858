"""The embedded store: a Valkey server that this library starts, with its data in one directory."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import redis
from redis.connection import UnixDomainSocketConnection

from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer
from flowfabric_worker.engine.stores.pool import Pool
from flowfabric_worker.engine.stores.valkey import ValkeyStore

# The process, user and group of the peer of a socket, as the kernel reports them.
_CREDENTIALS = struct.Struct("3i")


class OwnServerConnection(UnixDomainSocketConnection):
    """A connection that refuses a server which runs as another user."""

    def _connect(self) -> socket.socket:
        connected: socket.socket = super()._connect()  # type: ignore[no-untyped-call]  # the driver leaves it untyped
        # Only Linux reports the peer; elsewhere the permissions of the directory must suffice.
        if hasattr(socket, "SO_PEERCRED"):
            told = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, owner, _ = _CREDENTIALS.unpack(told)
            if owner != os.geteuid():
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
        self._directory = directory
        self._joining = threading.Lock()
        self._is_closed = False
        self._server = EmbeddedServer.join(directory)
        pool = Pool(
            OwnServerConnection,
            {**settings, "path": str(self._server.socket_path)},
            size=pool_size,
            retry_for=settings["socket_timeout"],
        )
        super().__init__(pool, label="embedded", prefix=prefix, address=f"embedded://{directory}")

    def translate(self, error: Exception) -> EngineError:
        if isinstance(error, redis.ConnectionError):
            self._rejoin()
        return super().translate(error)

    def _rejoin(self) -> None:
        """Start the server again if it does not run, because its guardian may have died with it."""
        if self._is_closed or not self._joining.acquire(blocking=False):
            return  # It is not needed any more, or another thread is doing it.
        try:
            old, self._server = self._server, EmbeddedServer.join(self._directory)
            old.leave()
        finally:
            self._joining.release()

    def close(self) -> None:
        self._is_closed = True
        super().close()
        self._server.leave()
