"""A connection that listens on one channel of a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import redis

from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Subscription
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

# The seconds of silence after which a server is pinged, and within which it must answer.
_ASK_AFTER: Final = 2.0


class ValkeySubscription(Subscription):
    """A listening connection, which does not belong to a pool.

    Args:
        pool: the pool of the server to connect to.
        channel: the channel to listen on.
        translated: turns the driver's errors into the engine's; the constructor raises the driver's.
    """

    def __init__(self, pool: ValkeyPool, channel: str, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._translated = translated
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._is_closed = False
        # The moment of the last message from the server.
        self._heard_at = time.monotonic()
        self._asked_at: float | None = None
        try:
            self._connection.connect()
            self._connection.send_command("SUBSCRIBE", channel)
            if not self._connection.can_read(CALL_TIMEOUT):
                raise redis.TimeoutError("no answer to SUBSCRIBE")
            self._connection.read_response()
        except BaseException:
            self._connection.disconnect()
            raise

    def wait(self, timeout: float) -> list[bytes]:
        try:
            with self._translated():
                if not self._connection.can_read(timeout):
                    self._check_alive()
                    return []
                answer = self._connection.read_response()
        except Exception:
            # Ignore any error of a connection that another thread has just closed.
            if self._is_closed:
                return []
            raise
        self._heard_at, self._asked_at = time.monotonic(), None
        # Return this message before reading the next one, because a thread waits for it.
        return [answer[2]] if answer[0] == b"message" else []

    def _check_alive(self) -> None:
        """Ping a server that was silent, and raise if it does not answer in time."""
        moment = time.monotonic()
        if self._asked_at is None:
            if moment - self._heard_at >= _ASK_AFTER:
                self._connection.send_command("PING")
                self._asked_at = moment
        elif moment - self._asked_at >= _ASK_AFTER:
            raise redis.TimeoutError("the subscription does not answer")

    def close(self) -> None:
        self._is_closed = True
        self._connection.disconnect()
