"""Workers that wait for work: where each is registered, and when it looks there again by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import attrs

from flowfabric_worker.engine.listener import FALLBACK, Waiter
from flowfabric_worker.engine.types.claiming import ClaimRequest

# A registration ends in the store a second after the worker would have looked.
_FORGET_AFTER = FALLBACK + 1.0


@attrs.define(eq=False)
class WaitingWorker:
    """One worker instance that waits, or may go on waiting with its next claim.

    Attributes:
        waiter: its name in the store, and the wake-ups that it got.
        request: what it waits for.
        looks: the partitions in which it is registered, and the moment at which it looks there again.
        users: how many claims of this instance are under way.
        used: when the last of them ended.
    """

    waiter: Waiter
    request: ClaimRequest | None = None
    looks: dict[int, float] = attrs.field(factory=dict)
    users: int = 0
    used: float = 0.0

    def waits_for(self, request: ClaimRequest) -> bool:
        """Return True if `request` asks for what this worker is registered for."""
        return self.request is not None and _asked(self.request) == _asked(request)

    def due(self, partitions: Iterable[int]) -> list[int]:
        """Return the partitions to look at now: it is time, or the worker is not registered there."""
        moment = time.monotonic()
        return [partition for partition in partitions if self.looks.get(partition, 0.0) <= moment]

    def next_look(self) -> float:
        """Return the moment of the first look that is to come."""
        return min(self.looks.values(), default=0.0)


class WaitingWorkers:
    """The waiting workers of an engine by their instance ids; one that does not come back is forgotten."""

    def __init__(self, new_waiter: Callable[[], Waiter], forget: Callable[[Waiter], None]) -> None:
        self._new_waiter = new_waiter
        self._forget = forget
        self._lock = threading.Lock()
        self._workers: dict[str, WaitingWorker] = {}

    def enter(self, instance: str) -> WaitingWorker:
        """Return the worker of an instance id, for one claim."""
        with self._lock:
            worker = self._workers.get(instance)
            if worker is None:
                self._prune()
                worker = self._workers[instance] = WaitingWorker(self._new_waiter())
            worker.users += 1
            return worker

    def leave(self, worker: WaitingWorker) -> None:
        """End one claim of a worker."""
        with self._lock:
            worker.users -= 1
            worker.used = time.monotonic()

    def pop(self, instance: str) -> WaitingWorker | None:
        """Take a worker out; its next claim begins as a new one."""
        with self._lock:
            worker = self._workers.get(instance)
            if worker is not None:
                self._drop(instance, worker)
            return worker

    def _prune(self) -> None:
        """Forget the workers that did not come back while they were registered."""
        until = time.monotonic() - _FORGET_AFTER
        for instance, worker in list(self._workers.items()):
            if not worker.users and worker.used < until:
                self._drop(instance, worker)

    def _drop(self, instance: str, worker: WaitingWorker) -> None:
        if self._workers.get(instance) is worker:
            del self._workers[instance]
        self._forget(worker.waiter)


def _asked(request: ClaimRequest) -> object:
    """Return what a claim asks for, whatever the order of its lanes."""
    return frozenset(request.lanes), request.capabilities, request.tasks
