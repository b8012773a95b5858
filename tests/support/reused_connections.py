"""Connections to Postgres that the engines of consecutive tests use one after another.

A new connection is a new process of the server, which compiles every function and plans every query again. That takes
longer than most tests of an operation do, and tells them nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest
from psycopg import pq

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.stores import postgres_connection
from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection, QueryTimeoutError, ServerError

# The most connections that wait for their next user; more are used at once in races only.
_MOST_IDLE: Final = 8
# All that DISCARD ALL does, but for DISCARD PLANS.
_RESET: Final = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)
_RESET_WITHIN: Final = 2.0


class _Idle:
    """The open connections of this process that nothing uses, by where they lead."""

    def __init__(self) -> None:
        self.reset_after_fork()
        forking.remember(self)

    def reset_after_fork(self) -> None:
        """Leave the connections to the parent."""
        self._lock = threading.Lock()
        self._connections: list[tuple[str, psycopg.Connection[Any]]] = []

    def take(self, conninfo: str) -> psycopg.Connection[Any] | None:
        """Return the connection that was used last, or None if there is none."""
        with self._lock:
            for place in reversed(range(len(self._connections))):
                if self._connections[place][0] == conninfo:
                    return self._connections.pop(place)[1]
        return None

    def put(self, conninfo: str, connection: psycopg.Connection[Any]) -> None:
        """Keep a connection, and close the one that was not used for the longest time if there are too many."""
        with self._lock:
            self._connections.append((conninfo, connection))
            surplus = self._connections.pop(0)[1] if len(self._connections) > _MOST_IDLE else None
        if surplus is not None:
            surplus.close()

    def clear(self) -> None:
        """Close all of them."""
        with self._lock:
            connections = [connection for _, connection in self._connections]
            self._connections.clear()
        for connection in connections:
            connection.close()


_idle: Final = _Idle()


class ReusedConnection(PostgresConnection):
    """A connection of the product that leaves its session to the next one, as if that were new.

    A session that is lost, that is in a transaction or that has results outstanding ends with its connection.
    """

    def _opened(self) -> psycopg.Connection[Any]:
        while (connection := _idle.take(self._conninfo)) is not None:
            self._connection = connection
            # The server sends nothing to an idle session, unless it ends it.
            if not self.can_read(0):
                return connection
            super().disconnect()
        return super()._opened()

    def disconnect(self) -> None:
        connection = self._connection
        if connection is not None and self._is_reset(connection):
            self._connection = None
            _idle.put(self._conninfo, connection)
        super().disconnect()

    def _is_reset(self, connection: psycopg.Connection[Any]) -> bool:
        """Return True if nothing is left in the session of what its user did."""
        pgconn = connection.pgconn
        if (pgconn.transaction_status, pgconn.pipeline_status) != (pq.TransactionStatus.IDLE, pq.PipelineStatus.OFF):
            return False
        try:
            self.execute(_RESET, timeout=_RESET_WITHIN)
        except (psycopg.Error, QueryTimeoutError, ServerError, OSError):
            return False
        while pgconn.notifies() is not None:
            pass
        return True


@contextlib.contextmanager
def reusing_connections() -> Iterator[None]:
    """Let the stores that are opened in a block leave their connections to later ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_connection, "PostgresConnection", ReusedConnection)
        yield


def close_idle_connections() -> None:
    """Close the connections that no store uses."""
    _idle.clear()
