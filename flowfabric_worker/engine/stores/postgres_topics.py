"""The topics of a process on a Postgres server: one connection listens for all subscriptions.

A thread reads the connection and hands each message to the subscription of its topic. A lost connection ends all
subscriptions of it with an error; the next subscription opens another one.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

import psycopg

from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Subscription
from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection, QueryTimeoutError, ServerError

# After so many seconds of silence the server is asked for a sign of life; it must answer within as many.
_ASK_AFTER: Final = 2.0


# A reader that hears nothing looks after so many seconds, beside the pause before a subscription is opened again.
_DEAF_FOR: Final = 0.05
# Behind a pooler, a message that the process sends to itself must arrive within so many seconds.
_HEARD_WITHIN: Final = 1.0


class DeafError(Exception):
    """The connection leads to a pooler in transaction mode, behind which messages for a session are lost."""


def _key_of(channel: str) -> str:
    """Return the advisory lock that the listeners of a channel share, by which functions see that there are any."""
    return f"pg_catalog.hashtextextended('{channel}', 1)"


class Topics:
    """A listening connection and its subscriptions.

    Args:
        connection: not yet open.
        channel: the name of the channel of a topic.
        translate: turns the driver's errors into the engine's.
        wake: sends a message to a topic over another connection.

    Raises:
        DeafError: no message would arrive.
    """

    def __init__(
        self,
        connection: PostgresConnection,
        channel: Callable[[str], str],
        translate: Callable[[Exception], EngineError],
        wake: Callable[[str, bytes], None],
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._translate = translate
        self._lock = threading.Lock()
        self._subscriptions: dict[str, PostgresSubscription] = {}
        self._commands: queue.SimpleQueue[tuple[str, queue.SimpleQueue[EngineError | None]]] = queue.SimpleQueue()
        self._bell, self._ring = os.pipe()
        self.is_open = True
        self.pid = os.getpid()
        try:
            connection.connect()
            if connection.is_pooled() and not self._hears_itself(wake):
                raise DeafError
        except BaseException:
            connection.disconnect()
            self._close_bell()
            raise
        threading.Thread(target=self._run, name="flowfabric-listen", daemon=True).start()

    def _hears_itself(self, wake: Callable[[str, bytes], None]) -> bool:
        """Return True if messages arrive: a pooler in session mode passes them on, one in transaction mode does not."""
        topic = uuid4().hex
        self._connection.execute(f'LISTEN "{self._channel(topic)}"', timeout=CALL_TIMEOUT)
        wake(topic, b"")
        deadline = time.monotonic() + _HEARD_WITHIN
        pgconn = self._connection.pgconn
        while pgconn.notifies() is None:
            if not self._connection.can_read(max(0.0, deadline - time.monotonic())):
                return False
            pgconn.consume_input()
        self._connection.execute(f'UNLISTEN "{self._channel(topic)}"', timeout=CALL_TIMEOUT)
        return True

    def subscribe(self, topic: str) -> Subscription:
        """Listen on a topic; return when the server has confirmed."""
        channel = self._channel(topic)
        subscription = PostgresSubscription(lambda: self._unsubscribe(channel))
        with self._lock:
            self._subscriptions[channel] = subscription
        self._order(f'LISTEN "{channel}"; SELECT pg_catalog.pg_advisory_lock_shared({_key_of(channel)})')
        return subscription

    def close(self) -> None:
        """End the connection and every subscription."""
        self.is_open = False
        with contextlib.suppress(OSError):
            os.write(self._ring, b".")

    def _unsubscribe(self, channel: str) -> None:
        with self._lock:
            self._subscriptions.pop(channel, None)
        if self.is_open and self.pid == os.getpid():
            with contextlib.suppress(EngineError):
                self._order(f'UNLISTEN "{channel}"; SELECT pg_catalog.pg_advisory_unlock_shared({_key_of(channel)})')

    def _order(self, command: str) -> None:
        """Have the listening thread run a command, and wait until it has."""
        done: queue.SimpleQueue[EngineError | None] = queue.SimpleQueue()
        self._commands.put((command, done))
        try:
            os.write(self._ring, b".")
            problem = done.get(timeout=CALL_TIMEOUT)
        except (OSError, queue.Empty):
            problem = TransportError(backend="postgresql", message="The listening connection does not answer.")
        if problem is not None:
            raise problem

    def _run(self) -> None:
        problem: EngineError = TransportError("engine_closed", backend="postgresql")
        try:
            while self.is_open:
                self._step()
        except (psycopg.Error, QueryTimeoutError, ServerError, OSError) as error:
            problem = self._translate(error)
        self.is_open = False
        self._connection.disconnect()
        with self._lock:
            subscriptions = list(self._subscriptions.values())
        for subscription in subscriptions:
            subscription.put(problem)
        while not self._commands.empty():
            self._commands.get()[1].put(problem)
        self._close_bell()

    def _step(self) -> None:
        """Run the commands that wait, and hand out the messages that arrived."""
        pgconn = self._connection.pgconn
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        heard = dict(poll.poll(_ASK_AFTER * 1000))
        if self._bell in heard:
            os.read(self._bell, 1)
            while not self._commands.empty() and self.is_open:
                command, done = self._commands.get()
                try:
                    self._connection.execute(command, timeout=CALL_TIMEOUT)
                except Exception as error:
                    done.put(self._translate(error))
                    raise
                done.put(None)
        elif not heard:
            self._connection.execute("", timeout=_ASK_AFTER)
        if pgconn.socket in heard:
            pgconn.consume_input()
        while (notify := pgconn.notifies()) is not None:
            with self._lock:
                subscription = self._subscriptions.get(notify.relname.decode())
            if subscription is not None:
                subscription.put(notify.extra)

    def _close_bell(self) -> None:
        for handle in (self._bell, self._ring):
            with contextlib.suppress(OSError):
                os.close(handle)


class DeafSubscription(Subscription):
    """A subscription behind a pooler, which no message reaches; its reader looks for itself again and again.

    Args:
        address: the server in words, without secrets.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._closed = threading.Event()

    def wait(self, timeout: float) -> list[bytes]:
        if self._closed.wait(min(timeout, _DEAF_FOR)) or timeout < _DEAF_FOR:
            return []
        raise TransportError(
            backend="postgresql",
            message=f"{self._address} is behind a pooler in transaction mode, so this process hears nothing and looks "
            "for work itself: name the server",
        )

    def close(self) -> None:
        self._closed.set()


class PostgresSubscription(Subscription):
    """The messages of one topic.

    Args:
        leave: ends listening on the topic.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self._messages: queue.SimpleQueue[bytes | EngineError | None] = queue.SimpleQueue()
        self._leave = leave
        self._is_closed = False

    def put(self, message: bytes | EngineError) -> None:
        """Hand over a message, or the error that ended the connection."""
        self._messages.put(message)

    def wait(self, timeout: float) -> list[bytes]:
        deadline = time.monotonic() + timeout
        messages: list[bytes] = []
        while not self._is_closed:
            try:
                message = self._messages.get(timeout=max(0.0, deadline - time.monotonic()) if not messages else 0)
            except queue.Empty:
                break
            if isinstance(message, EngineError):
                raise message
            if message is not None:
                messages.append(message)
        return messages

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._messages.put(None)
            self._leave()
