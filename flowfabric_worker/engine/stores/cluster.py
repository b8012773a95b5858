"""A Valkey or Redis cluster: every partition lies in one slot, and this store finds the slot's server by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.crc import key_slot

from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.partitions import DEFAULT_CLUSTER_PARTITIONS, partition_key
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.stores.pool import Pool
from flowfabric_worker.engine.stores.valkey import ValkeyStore


class ClusterStore(ValkeyStore):
    """A store on a cluster. Calls to a partition go straight to the primary of its slot.

    Args:
        seeds: connections to some nodes; the rest is read from them.
        prefix: begins every key and channel.
        address: the cluster in words, without secrets.
        replicas: how many replicas of a primary must have what a call wrote before the call returns.
    """

    default_partitions = DEFAULT_CLUSTER_PARTITIONS

    def __init__(self, seeds: Sequence[Pool], *, prefix: str = "ff", address: str = "", replicas: int = 0) -> None:
        super().__init__(seeds[0], label="valkey+cluster", prefix=prefix, address=address, replicas=replicas)
        self._seeds = list(seeds)
        self._topology = threading.Lock()
        self._nodes: dict[tuple[str, int], Pool] = {}
        self._ranges: list[tuple[int, int, Pool]] = []

    def pool_of(self, partition: int) -> Pool:
        slot = key_slot(partition_key(partition).encode())
        for first, last, pool in self._known_ranges():
            if first <= slot <= last:
                return pool
        self.refresh()
        for first, last, pool in self._ranges:
            if first <= slot <= last:
                return pool
        raise TransportError("store_busy", f"No primary of {self.address} serves slot {slot}.", backend=self.label)

    def primaries(self) -> list[Pool]:
        return list({id(pool): pool for _, _, pool in self._known_ranges()}.values())

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

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        replies = super().call_many(calls, timeout)
        if any(isinstance(reply, TransportError) for reply in replies):
            self.refresh_quietly()
        moved = [i for i, reply in enumerate(replies) if _moved(reply)]
        for i, reply in zip(moved, super().call_many([calls[i] for i in moved], timeout), strict=True):
            replies[i] = reply
        return replies

    def translate(self, error: Exception) -> EngineError:
        translated = super().translate(error)
        if isinstance(error, redis.exceptions.MovedError | redis.exceptions.AskError):
            translated = TransportError("store_busy", f"A slot of {self.address} moved.", backend=self.label)
            translated.__cause__ = error
        return translated

    def refresh(self) -> None:
        """Reads anew which primary serves which slots, from the first node that answers."""
        with self._topology:
            last: EngineError | None = None
            for pool in [*self._nodes.values(), *self._seeds]:
                try:
                    self._ranges = self._read_slots(pool)
                except EngineError as error:
                    last = error
                else:
                    return
        raise last or TransportError(backend=self.label)

    def refresh_quietly(self) -> None:
        """Reads the slots anew if any node answers; the error that led here says more than one about this."""
        with self._ignoring_transport():
            self.refresh()

    @contextmanager
    def _ignoring_transport(self) -> Iterator[None]:
        try:
            yield
        except TransportError:
            return

    def close(self) -> None:
        for pool in [*self._nodes.values(), *self._seeds]:
            pool.disconnect()

    def _known_ranges(self) -> list[tuple[int, int, Pool]]:
        if not self._ranges:
            self.refresh()
        return self._ranges

    def _read_slots(self, pool: Pool) -> list[tuple[int, int, Pool]]:
        seed_host = pool.connection_kwargs.get("host", "localhost")
        ranges = []
        for first, last, (host, port, *_), *_ in self.execute(pool, "CLUSTER", "SLOTS"):
            # A node that does not know its own name leaves it empty: it is where we asked.
            name = host.decode() if host else seed_host
            ranges.append((int(first), int(last), self._node(name, int(port))))
        if not ranges:
            raise TransportError("store_busy", f"{self.address} serves no slots yet.", backend=self.label)
        return ranges

    def _node(self, host: str, port: int) -> Pool:
        pool = self._nodes.get((host, port))
        if pool is None:
            seed = self._seeds[0]
            settings: dict[str, Any] = {**seed.connection_kwargs, "host": host, "port": port}
            pool = Pool(seed.connection_class, settings, size=seed.max_connections, patience=seed.patience)
            self._nodes[host, port] = pool
        return pool


def _moved(answer: Reply | EngineError) -> bool:
    """Whether a call met a slot that moved: it was not run where it was sent, so it may go to the right place."""
    return isinstance(answer, TransportError) and isinstance(answer.__cause__, redis.exceptions.MovedError)
