"""The claimer: claims work for the handler threads, and waits in the store while there is none."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs

from flowfabric_worker._runtime.execution_log import ExecutionLog
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.outage_log import OutageLog
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker._runtime.suspects import Suspects
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_LEASE_ITEMS
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, EndedByClaim, LaneRequest
from flowfabric_worker.task import Task

log = log_queue.Log(__name__)

# Prefetch the work that will start within this many seconds at the recent throughput, so that no thread waits.
PREFETCH_SECONDS = 0.05
MAX_PREFETCH = 480
MAX_WAIT = timedelta(seconds=60)
# Seconds to wait after a failed claim: at first, and at most.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0
_MS = timedelta(milliseconds=1)


class Claimer(OwnedThread):
    """Claim work for the handler threads, in one thread.

    Args:
        on_reclaimed: called before a reclaimed execution begins; it must not block.
    """

    def __init__(
        self,
        leases: LeaseTable,
        engine: EngineBackend,
        policy: ClaimPolicy,
        tasks: Mapping[str, Task[..., Any]],
        lanes: Mapping[str, int],
        capabilities: frozenset[str],
        hooks: Hooks,
        execution_log: ExecutionLog,
        on_reclaimed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__("claimer")
        self._leases = leases
        self._engine = engine
        self._policy = attrs.evolve(policy, max_wait=MAX_WAIT)
        self._tasks = tasks
        self._names = frozenset(tasks)
        # Put each lane first as often as its weight says, so that no lane starves.
        self._turns = itertools.cycle([lane for lane, weight in lanes.items() for _ in range(weight)])
        self._lanes = tuple(lanes)
        self._capabilities = capabilities
        self._hooks = hooks
        self._execution_log = execution_log
        self._on_reclaimed = on_reclaimed
        self._tells = hooks.wants("on_claim")
        self._on_lost = hooks.lost if hooks.wants_losses else None
        self._outage_log = OutageLog(log, "Claiming")
        self._stopping = threading.Event()
        self._throughput = _ThroughputEstimate(leases)
        self._suspects = Suspects(leases)

    def stop(self) -> None:
        """Stop claiming."""
        self._stopping.set()
        self._leases.space.set()

    def join(self, timeout: float) -> bool:
        """End the wait in the store, and wait for the thread; return True if it has ended.

        It calls the store, so it may take longer than `timeout` seconds. Call it until the thread has ended, because
        the thread may have begun another wait meanwhile.
        """
        if self._thread.is_alive():
            self._end_wait()
        return super().join(timeout)

    def _end_wait(self) -> None:
        try:
            self._engine.stop_waiting(self._policy.worker_instance_id)
        except EngineError as error:
            log.debug("The store was unavailable when this worker stopped waiting: %s", error)

    def _work(self) -> None:
        dedicate_thread(self._engine)
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._leases.open.wait()
        while True:
            self._leases.space.clear()
            if self._stopping.is_set():
                return
            quiet = self._suspects.take_turn()
            capacity = 0 if quiet else self._free_capacity()
            if capacity <= 0:
                self._leases.space.wait(quiet or self._suspects.due_in())
                continue
            try:
                claimed = self._engine.claim_many(self._request(capacity))
            except EngineError as error:
                # Retry without a limit, because an outage may last for hours.
                self._outage_log.note(error)
                self._stopping.wait(backoff.next())
                continue
            backoff.reset()
            self._outage_log.over()
            self._take(claimed)

    def _free_capacity(self) -> int:
        """Return how many executions to claim, for free threads and for the prefetch; 0 to wait."""
        ahead = min(MAX_PREFETCH, int(self._throughput.per_second() * PREFETCH_SECONDS))
        # Wait until a call is worth its cost, but claim one call at a time: handlers begin while the next is made.
        least = max(1, min(ahead // 2, MAX_LEASE_ITEMS))
        self._leases.low_water = max(0, ahead - least)
        capacity = self._leases.threads + ahead - self._leases.outstanding()
        return min(capacity, MAX_LEASE_ITEMS) if capacity >= least else 0

    def _request(self, capacity: int) -> ClaimRequest:
        first = next(self._turns)
        policy, due_in = self._policy, self._suspects.due_in()
        if due_in is not None:
            policy = attrs.evolve(policy, max_wait=timedelta(seconds=due_in))
        lanes: Sequence[str] = (first, *(lane for lane in self._lanes if lane != first))
        return ClaimRequest(
            lanes=tuple(LaneRequest(lane=lane) for lane in lanes),
            policy=policy,
            limit=capacity,
            capabilities=self._capabilities,
            tasks=self._names,
            on_ended=self._tell_ended,
        )

    def _tell_ended(self, ended: EndedByClaim) -> None:
        self._execution_log.ended_by_claim(ended)
        self._hooks.ended_by_claim(ended)

    def _take(self, claimed: Sequence[Claimed]) -> None:
        moment = now()
        taken = [hold(each, self._tasks[each.task], moment, self._on_lost) for each in claimed]
        for execution in taken:
            self._leases.hold(execution)
        if self._tells:
            # Queue the hooks of the claims before any handler begins, so that no end is reported before its claim.
            for execution in taken:
                self._hooks.tell("on_claim", execution)
        if self._on_reclaimed is not None and any(each.reclaim_count for each in claimed):
            self._on_reclaimed()
        for execution in taken:
            self._leases.queue(execution)
        if self._leases.outstanding() <= self._leases.threads:
            # Let the waiting handler thread run before the next claim.
            time.sleep(0)


def hold(
    claimed: Claimed, task: Task[..., Any], moment: float, on_lost: Callable[[LeasedExecution], None] | None = None
) -> LeasedExecution:
    """Return a claimed execution as an entry of the lease table, whose renewals ask for the lease of its task."""
    handle, lease = claimed.handle, task.options_given.lease
    if lease is not None:
        handle = attrs.evolve(handle, lease_ttl_ms=lease // _MS)
    return LeasedExecution(claimed, task, handle, moment, on_lost)


class _ThroughputEstimate:
    """Estimate how many handlers end per second, from the recent past."""

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._since = now()
        self._finished = 0
        self._rate = 0.0

    def per_second(self) -> float:
        elapsed = now() - self._since
        if elapsed >= 0.01:
            finished = self._leases.finished_in_all()
            lately = (finished - self._finished) / elapsed
            # Let the estimate fall quickly, so that nothing is prefetched to wait behind a slow execution.
            self._rate = min(lately, self._rate) if lately < self._rate / 2 else (self._rate + lately) / 2
            self._since, self._finished = now(), finished
        return self._rate
