"""The keeper: renews leases, says that the worker is alive, and handles what time brings about."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, NotFoundError, StateError, TransportError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from flowfabric_worker.held import Held, Holdings, now

log = logging.getLogger(__name__)

UPKEEP_EVERY = 5.0
HEARTBEAT_EVERY = 20.0
ALIVE_FOR = timedelta(seconds=60)
# What waits longer than this for a thread of this worker is better off with another one.
RELEASE_UNSTARTED_AFTER = 0.25
RENEWALS_PER_LEASE = 3


class Keeper:
    """One thread that keeps what the worker holds. It runs no code of users."""

    def __init__(self, holdings: Holdings, engine: EngineBackend, worker: RegisterWorkerArgs) -> None:
        self._holdings = holdings
        self._engine = engine
        self._worker = worker
        self._stopping = threading.Event()
        self._next_upkeep = now() + UPKEEP_EVERY / 2
        self._next_heartbeat = 0.0
        self._thread = threading.Thread(target=self._work, name="flowfabric-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def release_waiting(self) -> int:
        """Hands back everything that no thread has begun, ready at once; how many."""
        taken = self._holdings.take_back_waiting()
        self.release(taken)
        return len(taken)

    def release(self, some: list[Held]) -> None:
        """Hands executions back: same place, same attempt, no retry used."""
        for first in range(0, len(some), MAX_BATCH_ITEMS):
            batch = some[first : first + MAX_BATCH_ITEMS]
            try:
                self._engine.release_many([held.handle for held in batch])
            except EngineError as error:
                log.warning("%s executions could not be handed back; their leases run out by themselves: %s", len(batch), error)
            for held in batch:
                self._holdings.drop(held)

    def _work(self) -> None:
        while not self._stopping.wait(self._pause()):
            try:
                self._renew()
                self._release_unstarted()
                self._heartbeat()
                self._keep_up()
            except TransportError as error:
                log.warning("The store is away; going on as soon as it is back: %s", error)

    def _pause(self) -> float:
        """Seconds until the next thing to do, at most a quarter."""
        moments = [self._next_upkeep, self._next_heartbeat]
        if self._holdings.executions:
            moments.append(now() + RELEASE_UNSTARTED_AFTER / 2)
        return max(0.0, min(1.0, min(moments) - now()))

    def _renew(self) -> None:
        """Renews every lease of which a third has passed."""
        asked_at = now()
        due = [held for held in list(self._holdings.executions.values()) if self._is_due(held, asked_at)]
        for first in range(0, len(due), MAX_BATCH_ITEMS):
            batch = due[first : first + MAX_BATCH_ITEMS]
            for held, answer in zip(batch, self._engine.renew_many([held.handle for held in batch]), strict=True):
                self._renewed(held, answer, asked_at)

    @staticmethod
    def _is_due(held: Held, moment: float) -> bool:
        if held.lost is not None:
            return False
        lease = held.handle.lease_ttl_ms / 1000
        return held.lease_until - moment <= lease * (1 - 1 / RENEWALS_PER_LEASE)

    def _renewed(self, held: Held, answer: object, asked_at: float) -> None:
        if isinstance(answer, StateError | NotFoundError):
            if not held.ended:
                log.warning("%s is lost: %s", held.handle.execution_id, answer)
            held.lose("lease lost")
        elif isinstance(answer, EngineError):
            log.warning("The lease of %s could not be renewed: %s", held.handle.execution_id, answer)
        else:
            held.renewed(asked_at)

    def _release_unstarted(self) -> None:
        oldest = self._holdings.oldest_unstarted()
        if oldest is not None and now() - oldest > RELEASE_UNSTARTED_AFTER:
            released = self.release_waiting()
            log.debug("Handed %s executions back that no thread was free for.", released)

    def _heartbeat(self) -> None:
        if now() < self._next_heartbeat:
            return
        # Registering anew is a heartbeat too, and brings back an entry that was lost.
        self._engine.register_worker(self._worker)
        self._next_heartbeat = now() + HEARTBEAT_EVERY

    def _keep_up(self) -> None:
        if now() < self._next_upkeep:
            return
        result = self._engine.run_upkeep()
        self._next_upkeep = now() + (0 if result.more else UPKEEP_EVERY)
