"""A pool of the connections to one server, which costs a call as little time as possible.

It knows no driver, so that a process loads only the driver of its store.

Only connections that are open and have no reply outstanding are kept for the next call. An exception may reach a thread
between any two lines here (Ctrl-C, a signal handler, an interrupted handler); the connection that it used is then
closed or left to the garbage collector, and never used again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import weakref
from typing import Any, ClassVar, Final

from flowfabric_worker.engine import forks as forking
from flowfabric_worker.engine.stores.dedicated_connections import Kept
from flowfabric_worker.engine.stores.dedicated_connections import kept as kept_by_thread

# A connection that was idle for longer than this, in seconds, is checked before it is used.
LOOK_AFTER: Final = 0.5


class NoFreeConnectionError(OSError):
    """Every connection was in use for as long as a call may wait for one."""


class Pool:
    """Connections that threads share, each used by one thread at a time; the last one released is used next.

    Args:
        connection_class: the class of the connections.
        settings: the settings of each connection.
        size: the most connections.
        retry_for: how long to wait for a connection when all are in use, in seconds.
        saves: whether only vital threads have connections of their own, because a server takes few.
    """

    # What the driver raises when a connection is lost.
    lost: ClassVar[tuple[type[Exception], ...]] = (OSError,)

    def __init__(
        self,
        connection_class: type[Any],
        settings: dict[str, Any],
        *,
        size: int,
        retry_for: float,
        saves: bool = False,
    ) -> None:
        self.connection_class = connection_class
        self.connection_kwargs = settings
        self.max_connections = size
        self.retry_for = retry_for
        self._saves = saves
        self.reset()
        forking.remember(self)

    def reset(self) -> None:
        """Start over without connections; the present ones are closed when their last user drops them."""
        # This lock is used only by `with`, in which no exception can occur between taking the lock and the block.
        self._mutex = threading.Lock()
        self._released = threading.Condition(self._mutex)
        # The idle connections, each with the moment of its release; the last one is used next.
        self._idle: list[tuple[Any, float]] = []
        # A weak set, so that a connection whose user was interrupted does not count for ever.
        self._used: weakref.WeakSet[Any] = weakref.WeakSet()
        self._owned: weakref.WeakSet[Any] = weakref.WeakSet()
        self._failed_at = 0.0

    # Closing a connection in a forked child sends nothing to the server, which continues with the parent.
    reset_after_fork = reset

    def get_connection(self, *_: object, **__: object) -> Any:
        """Return a connection that is ready for a call, and that this thread uses until it releases or discards it.

        Raises:
            NoFreeConnectionError: all connections were in use for too long.
            Exception: the driver's, because the server cannot be reached.
        """
        kept = self._kept()
        connection = self._take() if kept is None else self._take_own(kept)
        try:
            connection.connect()
        except BaseException:
            # The handshake may be incomplete, such as the password without the database.
            self.discard(connection)
            raise
        return connection

    def is_ready(self) -> bool:
        """Return True if an open connection is free for this thread."""
        kept = self._kept()
        return bool(self._idle) if kept is None else self in kept.connections

    def has_spare(self) -> bool:
        """Return True if fewer than half of the connections are in use, so that a thread may hold one and use more."""
        return self._kept() is not None or 2 * len(self._used) + 1 < self.max_connections

    def release(self, connection: Any) -> None:
        """Take back a connection on which no reply is outstanding."""
        kept = self._kept()
        if kept is not None and connection in self._owned:
            kept.connections[self] = connection
            return
        with self._mutex:
            # Keep only connections that were opened after the last reset.
            if connection in self._used:
                self._used.discard(connection)
                self._idle.append((connection, time.monotonic()))
                self._released.notify()

    def discard(self, connection: Any) -> None:
        """Close a connection that failed, or whose state is unknown."""
        with self._mutex:
            self._used.discard(connection)
            self._owned.discard(connection)
            self._failed_at = time.monotonic()
            self._released.notify()
        connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close every connection, or only the idle ones; the pool opens new ones when it is used again.

        A call of another thread that waits for its reply ends with an error, and that thread closes its connection.
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

    def _kept(self) -> Kept | None:
        """Return the connections of this thread; None if it shares those of the pool."""
        kept = kept_by_thread.get()
        return None if self._saves and kept is not None and not kept.is_vital else kept

    def _take(self) -> Any:
        """Return an idle connection that is alive, or a new one, which is not connected yet."""
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
            # Assume that a connection is alive if it was used a moment ago, and no other connection has failed since.
            recent = max(self._failed_at, time.monotonic() - LOOK_AFTER)
            if given_back > recent or self._is_alive(connection):
                return connection
            self.discard(connection)

    def _take_own(self, kept: Kept) -> Any:
        connection = kept.connections.pop(self, None)
        if connection is not None and connection in self._owned:
            if self._is_alive(connection):
                return connection
            self.discard(connection)
        connection = self.connection_class(**self.connection_kwargs)
        self._owned.add(connection)
        return connection

    def _has_free(self) -> bool:
        return len(self._used) < self.max_connections

    def _is_alive(self, connection: Any) -> bool:
        """Return False if the server hung up, or sent something that no call asked for."""
        try:
            return not connection.can_read(0)
        except self.lost:
            return False


def _hang_up(connection: Any) -> None:
    """Shut a connection down, and leave closing its socket to the thread that uses it.

    If the socket were closed here, a new connection could get its number, and that thread would read its replies.
    """
    used = connection._sock
    if isinstance(used, socket.socket):
        with contextlib.suppress(OSError):
            # Bypass the method of a TLS socket, which would remove the state that the other thread reads with.
            socket.socket.shutdown(used, socket.SHUT_RDWR)
