"""The connections to one server: a pool that costs a call as little as it can.

It is a pool of the driver, so that the driver's own clients work with it, with what every call passes through written
anew: without the measures, notifications and caches of the driver it takes less than half of the time.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Any, Final

import redis
from redis.connection import ConnectionPool

from flowfabric_worker.engine import forking

# A connection that was idle for so many seconds is looked at before it is used.
LOOK_AFTER: Final = 0.5


class NoFreeConnectionError(redis.RedisError):
    """Every connection was in use for as long as anybody may wait for one."""


class Pool(ConnectionPool):
    """Connections that threads share, each used by one thread at a time; the last one used is used next.

    Args:
        connection_class: makes a connection.
        settings: what it is made with.
        size: most connections.
        patience: seconds to wait for a connection when all are in use.
    """

    def __init__(self, connection_class: type[Any], settings: dict[str, Any], *, size: int, patience: float) -> None:
        self.patience = patience
        super().__init__(connection_class=connection_class, max_connections=size, **settings)
        forking.remember(self)

    def reset(self) -> None:
        """Begins anew without connections; those that there were are closed when nobody uses them any more."""
        self._released = threading.Condition(threading.Lock())
        # The last one is the one to use next, and stands beside the moment when it was given back.
        self._idle: list[tuple[Any, float]] = []
        self._used: set[Any] = set()

    # In a forked process: what is closed there says nothing to the server, which goes on with the parent.
    forget_parent = reset

    def get_connection(self, *_: object, **__: object) -> Any:
        """A connection that is ready for a call, for this thread until it is released.

        Raises:
            NoFreeConnectionError: all were in use for too long.
            redis.ConnectionError: the server cannot be reached.
        """
        with self._released:
            if len(self._used) >= self.max_connections and not self._released.wait_for(self._has_room, self.patience):
                raise NoFreeConnectionError(
                    f"all {self.max_connections} connections were in use for {self.patience:g} s"
                )
            if self._idle:
                connection, given_back = self._idle.pop()
            else:
                connection, given_back = self.connection_class(**self.connection_kwargs), math.inf
            self._used.add(connection)
        try:
            connection.connect()
            # One that was used a moment ago is taken to be alive. If it is not, the call fails, and may be sent again.
            if time.monotonic() - given_back > LOOK_AFTER:
                _renew_if_dead(connection)
        except BaseException:
            self.release(connection)
            raise
        return connection

    def release(self, connection: Any) -> None:
        """Gives a connection back."""
        with self._released:
            # Not one that was made before this pool began anew.
            if connection in self._used:
                self._used.remove(connection)
                self._idle.append((connection, time.monotonic()))
                self._released.notify()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Closes every connection, or only those that nobody uses. The pool opens new ones when it is used again."""
        with self._released:
            connections = [connection for connection, _ in self._idle]
            if inuse_connections:
                connections += self._used
        for connection in connections:
            connection.disconnect()

    def _has_room(self) -> bool:
        return len(self._used) < self.max_connections


def _renew_if_dead(connection: Any) -> None:
    """Connects again where the server has hung up, as it does when it restarts: nobody waits for anything else here."""
    try:
        if not connection.can_read(0):
            return
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        pass
    connection.disconnect()
    connection.connect()
