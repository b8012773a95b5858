"""Workers that wait for work: where they are registered, and when they look there again without a wake-up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import attrs

from flowfabric_worker.engine.listener import FALLBACK, Waiter
from flowfabric_worker.engine.types.claiming import ClaimRequest

# The seconds after which a registration expires: a second after the worker should have looked.
_FORGET_AFTER = FALLBACK + 1.0
# The most idle waiters, which each hold a connection: callers that use a new id for each claim must not pile them up.
_MOST_IDLE = 16


@attrs.define(eq=False)
class WaitingWorker:
    """A worker that waits, or that may continue to wait with its next claim; one claim at a time uses it.

    Attributes:
        instance: the instance id of the worker.
        waiter: its name in the store, and the wake-ups that it received.
        request: what it waits for.
        looks: for each partition in which it is registered, the moment at which it looks there again.
        is_used: whether a claim uses it now.
        used: when the last claim ended.
    """

    instance: str
    waiter: Waiter
    request: ClaimRequest | None = None
    looks: dict[int, float] = attrs.field(factory=dict)
    is_used: bool = False
    used: float = 0.0

    def waits_for(self, request: ClaimRequest) -> bool:
        """Return True if `request` asks for what this worker is registered for."""
        return self.request is not None and _asked(self.request) == _asked(request)

    def due(self, partitions: Iterable[int]) -> list[int]:
        """Return the partitions to look at now, because it is time or the worker is not registered there."""
        moment = time.monotonic()
        return [partition for partition in partitions if self.looks.get(partition, 0.0) <= moment]

    def next_look(self) -> float:
        """Return the moment of the next look."""
        return min(self.looks.values(), default=0.0)


class WaitingWorkers:
    """The waiting workers of an engine, which forgets those that do not claim again."""

    def __init__(self, new_waiter: Callable[[], Waiter]) -> None:
        self._new_waiter = new_waiter
        self._lock = threading.Lock()
        self._workers: list[WaitingWorker] = []

    def enter(self, instance: str) -> WaitingWorker:
        """Return a worker with an instance id that no other claim uses now, for one claim."""
        with self._lock:
            for worker in self._workers:
                if worker.instance == instance and not worker.is_used:
                    break
            else:
                self._prune()
                worker = WaitingWorker(instance, self._new_waiter())
                self._workers.append(worker)
            worker.is_used = True
            return worker

    def leave(self, worker: WaitingWorker) -> None:
        """End the claim of a worker."""
        with self._lock:
            worker.is_used = False
            worker.used = time.monotonic()

    def pop(self, instance: str) -> list[WaitingWorker]:
        """Remove and stop the workers of an instance, whose next claim begins with a new one."""
        with self._lock:
            return self._drop(worker for worker in self._workers if worker.instance == instance)

    def _prune(self) -> None:
        """Forget the workers that did not claim again before their registrations expired."""
        until = time.monotonic() - _FORGET_AFTER
        idle = sorted((worker for worker in self._workers if not worker.is_used), key=lambda worker: worker.used)
        surplus = len(idle) - _MOST_IDLE
        self._drop(worker for place, worker in enumerate(idle) if place < surplus or worker.used < until)

    def _drop(self, workers: Iterable[WaitingWorker]) -> list[WaitingWorker]:
        dropped = list(workers)
        for worker in dropped:
            self._workers.remove(worker)
            worker.waiter.stop()
        return dropped


def _asked(request: ClaimRequest) -> object:
    """Return what a claim asks for, independently of the order of its lanes."""
    return frozenset(request.lanes), request.capabilities, request.tasks
