"""A primary and its replicas under the watch of sentinels, which tell this store the present primary.

The sentinels are asked at the first call, after a call that failed, and about once a second while calls are made,
because a primary that was cut off may still answer for a while. The newest answer counts, by the number of its
failover; a sentinel that was cut off too gives an older answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import redis

from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.stores.base import Subscription
from flowfabric_worker.engine.stores.parallel_calls import side_by_side
from flowfabric_worker.engine.stores.subscription import ValkeySubscription
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

LOOK_EVERY = 1.0
# The seconds to wait for the answer of a sentinel: a slow one must not delay calls, because there are others.
ANSWER_TIMEOUT = 1.0
# The seconds for which a sentinel that did not answer is not asked again, because each question may delay a call.
_LEFT_OUT = 10.0


@attrs.frozen(kw_only=True, order=True)
class _Primary:
    """The answer of a sentinel; the greater of two answers counts.

    Attributes:
        epoch: the number of the failover that promoted the primary.
        settled: whether the failover has ended; until then its leading sentinel still names the old address.
    """

    epoch: int
    settled: bool
    host: str
    port: int

    def is_at(self, other: _Primary) -> bool:
        return (self.host, self.port) == (other.host, other.port)


@attrs.define(eq=False)
class _Sentinel:
    """A sentinel, and until when it is not asked."""

    pool: ValkeyPool
    left_out_until: float = 0.0

    def __str__(self) -> str:
        settings = self.pool.connection_kwargs
        return f"{settings['host']}:{settings['port']}"


class SentinelStore(ValkeyStore):
    """A store on the primary of a service.

    Args:
        sentinels: connections to the sentinels that the URL names.
        service: the name of the primary and its replicas.
        pool_to: creates the connections to a primary at a host and port.
        prefix: the beginning of every key and channel.
        address: sentinels and service in words, without secrets.
        replicas: how many replicas must have what a call wrote before the call returns.
        user: the user that calls the primary.
    """

    def __init__(
        self,
        sentinels: Sequence[ValkeyPool],
        service: str,
        pool_to: Callable[[str, int], ValkeyPool],
        *,
        prefix: str = "ff",
        address: str = "",
        replicas: int = 0,
        user: str = "default",
    ) -> None:
        super().__init__(sentinels[0], label="valkey+sentinel", prefix=prefix, address=address, replicas=replicas)
        self._user = user
        self._sentinels = [_Sentinel(pool) for pool in sentinels]
        self._service = service
        self._pool_to = pool_to
        self._looking = threading.Lock()
        self._look_at = 0.0
        # True after a failed call, because another server may be the primary.
        self._doubted = True
        self._primary: _Primary | None = None
        self._current: ValkeyPool | None = None

    def pool_of(self, partition: int) -> ValkeyPool:  # noqa: ARG002  a cluster asks
        if self._doubted:
            with self._looking:
                # Ask only once, even if many calls have failed at the same time.
                if self._doubted:
                    self._look(doubted=True)
                    self._doubted = False
        elif time.monotonic() >= self._look_at and self._looking.acquire(blocking=False):
            try:
                self._look(doubted=False)
            finally:
                self._looking.release()
        if self._current is None:
            raise TransportError(
                "store_busy", f"The sentinels of {self.address} did not tell where the primary is.", backend=self.label
            )
        return self._current

    def primaries(self) -> list[ValkeyPool]:
        return [self.pool_of(0)]

    def subscribe(self, topic: str) -> Subscription:
        with self.translated():
            return _PrimarySubscription(self, self.pool_of(0), self.channel(topic))

    def translate(self, error: Exception) -> EngineError:
        translated = super().translate(error)
        if isinstance(translated, TransportError) and translated.retryable:
            self._doubted = True
        return translated

    def close(self) -> None:
        for sentinel in self._sentinels:
            sentinel.pool.disconnect()
        if self._current is not None:
            self._current.disconnect()

    def _look(self, *, doubted: bool) -> None:
        """Ask the sentinels in parallel, and follow the newest answer; the caller holds the lock.

        Without an answer the known primary is kept, because the sentinels may be down while the primary works.

        Raises:
            TransportError: no sentinel answers, and no primary is known.
        """
        now = time.monotonic()
        self._look_at = now + LOOK_EVERY
        answers: list[_Primary] = []
        problem: EngineError | None = None
        asked = [each for each in self._sentinels if each.left_out_until <= now] or self._sentinels
        for sentinel, answer in zip(asked, side_by_side([partial(self._ask, each) for each in asked]), strict=True):
            if isinstance(answer, EngineError):
                sentinel.left_out_until = time.monotonic() + _LEFT_OUT
                problem = answer
            else:
                answers.append(answer)
                sentinel.left_out_until = 0.0
        if answers:
            self._consider(max(answers), doubted=doubted)
        elif problem is not None and self._current is None:
            raise problem

    def _ask(self, sentinel: _Sentinel) -> _Primary:
        try:
            (fields,) = self._exchange(sentinel.pool, [("SENTINEL", "MASTER", self._service)], ANSWER_TIMEOUT)
        except (redis.RedisError, OSError) as error:
            code, text = super().translate(error).code, str(error)
            if "No such master" in text:
                code, text = "transport", f"it watches no service {self._service!r}"
            raise TransportError(
                code,
                f"The sentinel {sentinel} does not tell where the primary is: {text}.",
                backend=self.label,
            ) from error
        told: dict[bytes, bytes] = dict(zip(fields[::2], fields[1::2], strict=True))
        return _Primary(
            epoch=int(told[b"config-epoch"]),
            settled=b"failover_in_progress" not in told[b"flags"],
            host=told[b"ip"].decode(),
            port=int(told[b"port"]),
        )

    def _consider(self, said: _Primary, *, doubted: bool) -> None:
        """Switch to another primary; while the known one works, switch only to a newer one."""
        known = self._primary
        if known is not None and (said.is_at(known) or (not doubted and said.epoch <= known.epoch)):
            return
        old, self._current = self._current, self._pool_to(said.host, said.port)
        self._primary = said
        if old is not None:
            # Close only idle connections, because calls that are in flight end by themselves.
            old.disconnect(inuse_connections=False)


class _PrimarySubscription(ValkeySubscription):
    """A subscription that ends when another server is the primary, because messages are sent to that one."""

    def __init__(self, store: SentinelStore, pool: ValkeyPool, channel: str) -> None:
        self._store = store
        self._pool = pool
        super().__init__(pool, channel, store.translated)

    def wait(self, timeout: float) -> list[bytes]:
        messages = super().wait(timeout)
        if self._store.pool_of(0) is not self._pool:
            raise TransportError("store_busy", "Another server is the primary now.", backend=self._store.label)
        return messages
