"""The connections to one server: a pool that costs a call as little as it can.

It is a pool of the driver, so that the driver's own clients work with it. What every call passes through is written
again here: without the measures, notifications and caches of the driver it takes less than half of the time.

Only connections that are connected, and on which no reply is outstanding, are kept for the next call. An exception may
reach a thread between any two lines here (Ctrl-C, a signal handler, a handler that is stopped): a connection that it
catches in between is closed or left to the garbage collector, and never used again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from typing import Any, Final

import redis
from redis.connection import ConnectionPool

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.stores.dedicated_connections import Kept
from flowfabric_worker.engine.stores.dedicated_connections import kept as kept_by_thread

# A connection that was idle for so many seconds is looked at before it is used.
LOOK_AFTER: Final = 0.5


class NoFreeConnectionError(redis.RedisError):
    """Every connection was in use for as long as a call may wait for one."""


class Pool(ConnectionPool):
    """Connections that threads share, each used by one thread at a time; the last one used is used next.

    Args:
        connection_class: makes a connection.
        settings: what it is made with.
        size: most connections.
        retry_for: seconds to wait for a connection when all are in use.
    """

    def __init__(self, connection_class: type[Any], settings: dict[str, Any], *, size: int, retry_for: float) -> None:
        self.retry_for = retry_for
        super().__init__(connection_class=connection_class, max_connections=size, **settings)
        forking.remember(self)

    def reset(self) -> None:
        """Start again without connections; those that there were are closed when their last user drops them."""
        # Entered directly, never through the condition: an exception cannot come between taking it and its block.
        self._mutex = threading.Lock()
        self._released = threading.Condition(self._mutex)
        # The last one is the one to use next, and stands beside the moment when it was given back.
        self._idle: list[tuple[Any, float]] = []
        # Weak, so that a connection whose user was interrupted does not count for ever.
        self._used: weakref.WeakSet[Any] = weakref.WeakSet()
        self._owned: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failed_at = 0.0

    # In a forked process: what is closed there says nothing to the server, which goes on with the parent.
    reset_after_fork = reset

    def get_connection(self, *_: object, **__: object) -> Any:
        """Return a connection that is ready for a call, for this thread until it is released or discarded.

        Raises:
            NoFreeConnectionError: all were in use for too long.
            redis.ConnectionError: the server cannot be reached.
        """
        kept = kept_by_thread.get()
        connection = self._take() if kept is None else self._take_own(kept)
        try:
            connection.connect()
        except BaseException:
            # Half of what a new connection has to say may be said: the password and not yet the database.
            self.discard(connection)
            raise
        return connection

    def is_ready(self) -> bool:
        """Return True if a connection is open that this thread may use at once."""
        kept = kept_by_thread.get()
        return bool(self._idle) if kept is None else self in kept.connections

    def has_spare(self) -> bool:
        """Return True if a thread may hold a connection and call over others meanwhile: fewer than half are in use."""
        return kept_by_thread.get() is not None or 2 * len(self._used) + 1 < self.max_connections

    def release(self, connection: Any) -> None:
        """Take back a connection on which no reply is outstanding."""
        kept = kept_by_thread.get()
        if kept is not None and connection in self._owned:
            kept.connections[self] = connection
            return
        with self._mutex:
            # Not one that was made before this pool started again.
            if connection in self._used:
                self._used.discard(connection)
                self._idle.append((connection, time.monotonic()))
                self._released.notify()

    def discard(self, connection: Any) -> None:
        """Close a connection that failed, or whose state is not known."""
        with self._mutex:
            self._used.discard(connection)
            self._owned.discard(connection)
            self._failed_at = time.monotonic()
            self._released.notify()
        connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close every connection, or only those that are idle. The pool opens new ones when it is used again.

        A call that another thread waits for ends with an error; that thread closes its connection.
        """
        with self._mutex:
            idle = [connection for connection, _ in self._idle]
            self._idle.clear()
            used = [*self._used, *self._owned] if inuse_connections else []
            if inuse_connections:
                self._used.clear()
                self._owned.clear()
        for connection in idle:
            connection.disconnect()
        for connection in used:
            _hang_up(connection)

    def _take(self) -> Any:
        """Return an idle connection that lives, else a new one that is not connected yet."""
        while True:
            with self._mutex:
                if len(self._used) >= self.max_connections and not self._released.wait_for(
                    self._has_free, self.retry_for
                ):
                    raise NoFreeConnectionError(
                        f"all {self.max_connections} connections were in use for {self.retry_for:g} s"
                    )
                if not self._idle:
                    connection = self.connection_class(**self.connection_kwargs)
                    self._used.add(connection)
                    return connection
                connection, given_back = self._idle.pop()
                self._used.add(connection)
            # One that was used a moment ago is taken to be alive, unless another one has failed since.
            recent = max(self._failed_at, time.monotonic() - LOOK_AFTER)
            if given_back > recent or _is_alive(connection):
                return connection
            self.discard(connection)

    def _take_own(self, kept: Kept) -> Any:
        connection = kept.connections.pop(self, None)
        if connection is not None and connection in self._owned:
            if _is_alive(connection):
                return connection
            self.discard(connection)
        connection = self.connection_class(**self.connection_kwargs)
        self._owned.add(connection)
        return connection

    def _has_free(self) -> bool:
        return len(self._used) < self.max_connections


def _hang_up(connection: Any) -> None:
    """End the conversation with the server, and leave the socket to the thread that uses it.

    Closed under that thread, the number of the socket would be given to the next connection, whose replies it reads.
    """
    used = connection._sock
    if isinstance(used, socket.socket):
        with contextlib.suppress(OSError):
            # The method of a TLS socket takes away what the other thread reads with.
            socket.socket.shutdown(used, socket.SHUT_RDWR)


def _is_alive(connection: Any) -> bool:
    """Return False if the server hung up, or sent something that no call has asked for."""
    try:
        return not connection.can_read(0)
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        return False
