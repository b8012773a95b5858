"""A connection that listens on one channel of a server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import redis

from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Subscription
from flowfabric_worker.engine.stores.pool import Pool


class ValkeySubscription(Subscription):
    """A connection of its own, beside those of a pool.

    Args:
        pool: knows the server.
        channel: what to listen to.
        translated: turns the driver's errors into the engine's; the constructor raises the driver's.
    """

    def __init__(self, pool: Pool, channel: str, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._translated = translated
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._unanswered_ping = False
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
        with self._translated():
            if not self._connection.can_read(timeout):
                self._check_alive()
                return []
            answer = self._connection.read_response()
        self._unanswered_ping = False
        # A thread waits for this message, so it is passed on before the next one is looked for.
        return [answer[2]] if answer[0] == b"message" else []

    def _check_alive(self) -> None:
        """Silence may be a dead connection: it must have answered the ping of the wait before."""
        if self._unanswered_ping:
            raise redis.TimeoutError("the subscription does not answer")
        self._connection.send_command("PING")
        self._unanswered_ping = True

    def close(self) -> None:
        self._connection.disconnect()
