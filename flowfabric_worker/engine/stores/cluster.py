"""A Valkey or Redis cluster: each partition is in one slot, and this store calls the server of the slot directly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import redis
from redis.crc import key_slot

from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.partitions import DEFAULT_CLUSTER_PARTITIONS, partition_key
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply, StoreInfo, Subscription
from flowfabric_worker.engine.stores.parallel_calls import as_they_end
from flowfabric_worker.engine.stores.subscription import ValkeySubscription
from flowfabric_worker.engine.stores.valkey import Command, ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

T = TypeVar("T")
_Range: TypeAlias = tuple[int, int, ValkeyPool]


class ClusterStore(ValkeyStore):
    """A store on a cluster. Calls to a partition go straight to the primary of its slot.

    Args:
        seeds: connections to some nodes, which tell the other nodes.
        prefix: the beginning of every key and channel.
        address: the cluster in words, without secrets.
        replicas: how many replicas of a primary must have what a call wrote before it returns.
    """

    default_partitions = DEFAULT_CLUSTER_PARTITIONS
    counts_listeners = False

    def __init__(
        self, seeds: Sequence[ValkeyPool], *, prefix: str = "ff", address: str = "", replicas: int = 0
    ) -> None:
        super().__init__(seeds[0], label="valkey+cluster", prefix=prefix, address=address, replicas=replicas)
        self._seeds = list(seeds)
        self._topology = threading.Lock()
        self._nodes: dict[tuple[str, int], ValkeyPool] = {}
        self._ranges: list[_Range] = []
        self._refreshes = 0
        self._problem: EngineError | None = None
        self._asked: set[ValkeyPool] = set()
        # The index of the primary to which this store listens; it changes after a failure.
        self._heard = 0

    def pool_of(self, partition: int) -> ValkeyPool:
        slot = key_slot(partition_key(partition).encode())
        for first, last, pool in self._known_ranges():
            if first <= slot <= last:
                return pool
        self.refresh()
        for first, last, pool in self._ranges:
            if first <= slot <= last:
                return pool
        raise TransportError("store_busy", f"No primary of {self.address} serves slot {slot}.", backend=self.label)

    def primaries(self) -> list[ValkeyPool]:
        return list({id(pool): pool for _, _, pool in self._known_ranges()}.values())

    def install(self) -> bool:
        # Find the primaries first: one that took over slots lacks the functions, because moving slots does not copy
        # them.
        self.refresh()
        return super().install()

    def info(self) -> StoreInfo:
        self.refresh()
        return super().info()

    def subscribe(self, topic: str) -> Subscription:
        return self._by_any(lambda pool: _NodeSubscription(self, pool, self.channel(topic)))

    def wake(self, topic: str, message: bytes) -> None:
        # Call one node, which passes the message on to all others.
        self._by_any(lambda pool: self.execute(pool, "PUBLISH", self.channel(topic), message))

    def _by_any(self, ask: Callable[[ValkeyPool], T]) -> T:
        """Ask one primary, and another one if it fails; the one that answers is asked first the next time."""
        primaries = self.primaries()
        problem: EngineError | None = None
        for _ in primaries:
            try:
                with self.translated():
                    return ask(primaries[self._heard % len(primaries)])
            except TransportError as error:
                problem = error
                self._heard += 1
        self.refresh_quietly()
        raise problem or TransportError(backend=self.label)

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        try:
            return super().call(function, partition, arguments, timeout)
        except TransportError as error:
            self.refresh_quietly()
            if not _moved(error):
                raise
        return super().call(function, partition, arguments, timeout)

    def begin_many(
        self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT
    ) -> Callable[[], list[Reply | EngineError]]:
        begun = super().begin_many(calls, timeout)
        return lambda: self._follow_moves(calls, begun(), timeout)

    def _follow_moves(
        self, calls: Sequence[Call], replies: list[Reply | EngineError], timeout: float
    ) -> list[Reply | EngineError]:
        """Make the calls again whose partitions have moved to another node; return the replies of all."""
        if any(isinstance(reply, TransportError) for reply in replies):
            self.refresh_quietly()
        moved = [i for i, reply in enumerate(replies) if _moved(reply)]
        for i, reply in zip(moved, super().begin_many([calls[i] for i in moved], timeout)(), strict=True):
            replies[i] = reply
        return replies

    def translate(self, error: Exception) -> EngineError:
        translated = super().translate(error)
        if isinstance(error, redis.exceptions.MovedError | redis.exceptions.AskError):
            translated = TransportError("store_busy", f"A slot of {self.address} moved.", backend=self.label)
            translated.__cause__ = error
        return translated

    def refresh(self) -> None:
        """Read again which primary serves which slots. Concurrent callers share one answer.

        Raises:
            TransportError: no node answers.
        """
        seen = self._refreshes
        with self._topology:
            if self._refreshes == seen:
                try:
                    self._ranges, self._problem = self._ask_nodes(), None
                except EngineError as error:
                    self._problem = error
                self._refreshes += 1
                self._forget_nodes()
            if self._problem is not None:
                raise self._problem

    def _ask_nodes(self) -> list[_Range]:
        """Ask all nodes in parallel, and return the first answer of a node that sees a working cluster."""
        nodes = [pool for pool in dict.fromkeys([*self._nodes.values(), *self._seeds]) if pool not in self._asked]
        fallback: list[_Range] = []
        problem: EngineError = TransportError("store_busy", f"No node of {self.address} answers.", backend=self.label)
        for _, answer in as_they_end([partial(self._ask_node, pool) for pool in nodes]):
            if isinstance(answer, EngineError):
                problem = answer
                continue
            is_whole, ranges = answer
            if is_whole:
                return ranges
            fallback = fallback or ranges
        if not fallback:
            raise problem
        return fallback

    def _ask_node(self, pool: ValkeyPool) -> tuple[bool, list[_Range]]:
        """Return True if a node sees a working cluster, and which primaries it sees for the slots."""
        # Do not ask a node again before it has answered, because a node that is down may never answer.
        self._asked.add(pool)
        try:
            with self.translated():
                commands: list[Command] = [("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")]
                state, slots = self._exchange(pool, commands, CALL_TIMEOUT, keep_errors=True)
                if isinstance(slots, redis.RedisError):
                    raise slots
        finally:
            self._asked.discard(pool)
        # Accept the node's view of the slots if the user lacks the right to read the state.
        is_whole = isinstance(state, redis.RedisError) or b"cluster_state:ok" in state
        return is_whole, self._ranges_in(slots, pool)

    def _forget_nodes(self) -> None:
        """Drop the connections to nodes that no longer serve slots."""
        serving = {pool for _, _, pool in self._ranges}
        for place, pool in list(self._nodes.items()):
            if pool not in serving:
                del self._nodes[place]
                pool.disconnect(inuse_connections=False)

    def refresh_quietly(self) -> None:
        """Read the slots again; ignore an error, because the error before it says more."""
        with contextlib.suppress(TransportError):
            self.refresh()

    def close(self) -> None:
        for pool in [*self._nodes.values(), *self._seeds]:
            pool.disconnect()

    def _known_ranges(self) -> list[_Range]:
        if not self._ranges:
            self.refresh()
        return self._ranges

    def _ranges_in(self, slots: Reply, asked: ValkeyPool) -> list[_Range]:
        asked_host = asked.connection_kwargs.get("host", "localhost")
        ranges = []
        for first, last, (host, port, *_), *_ in slots:
            # A node that does not know its own name leaves it empty: take the name by which it was called.
            name = host.decode() if host else asked_host
            ranges.append((int(first), int(last), self._node(name, int(port))))
        if not ranges:
            raise TransportError("store_busy", f"{self.address} serves no slots yet.", backend=self.label)
        return ranges

    def _node(self, host: str, port: int) -> ValkeyPool:
        pool = self._nodes.get((host, port))
        if pool is None:
            seed = self._seeds[0]
            settings: dict[str, Any] = {**seed.connection_kwargs, "host": host, "port": port}
            pool = ValkeyPool(seed.connection_class, settings, size=seed.max_connections, retry_for=seed.retry_for)
            self._nodes[host, port] = pool
        return pool


class _NodeSubscription(ValkeySubscription):
    """A subscription that ends when its node no longer serves slots, because messages may not reach it then."""

    def __init__(self, store: ClusterStore, pool: ValkeyPool, channel: str) -> None:
        self._store = store
        self._pool = pool
        super().__init__(pool, channel, store.translated)

    def wait(self, timeout: float) -> list[bytes]:
        messages = super().wait(timeout)
        if self._pool not in self._store.primaries():
            raise TransportError("store_busy", "The node no longer serves slots.", backend=self._store.label)
        return messages


def _moved(answer: Reply | EngineError) -> bool:
    """Return True if a call was refused because its slot moved; it did not run, and may be sent again."""
    return isinstance(answer, TransportError) and isinstance(answer.__cause__, redis.exceptions.MovedError)
