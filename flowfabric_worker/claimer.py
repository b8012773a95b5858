"""The claimer: fetches work for the handler threads, and waits in the store when there is none."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.held import Held, Holdings, now
from flowfabric_worker.task import Task

log = logging.getLogger(__name__)

# What the recent pace will start within this time is claimed ahead, so that threads do not wait for the store.
AHEAD_SECONDS = 0.05
MAX_AHEAD = 480
MAX_WAIT = timedelta(seconds=60)
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Claimer:
    """One thread that claims."""

    def __init__(
        self,
        holdings: Holdings,
        engine: EngineBackend,
        policy: ClaimPolicy,
        tasks: Mapping[str, Task[..., Any]],
        lanes: Mapping[str, int],
        offers: frozenset[str],
    ) -> None:
        self._holdings = holdings
        self._engine = engine
        self._policy = attrs.evolve(policy, max_wait=MAX_WAIT)
        self._tasks = tasks
        self._names = frozenset(tasks)
        # Each lane goes first as often as its weight says, so none starves.
        self._turns = itertools.cycle([lane for lane, weight in lanes.items() for _ in range(weight)])
        self._lanes = tuple(lanes)
        self._offers = offers
        self._stopping = threading.Event()
        self._pace = _Pace(holdings)
        self._thread = threading.Thread(target=self._work, name="flowfabric-claimer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Claims nothing more, and ends the wait in the store."""
        self._stopping.set()
        self._holdings.space.set()
        try:
            self._engine.stop_waiting(self._policy.worker_instance_id)
        except TransportError as error:
            log.debug("The store was away when this worker stopped waiting: %s", error)

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            room = self._room()
            if room <= 0:
                self._holdings.space.wait(0.05)
                continue
            try:
                asked_at = now()
                claimed = self._engine.claim_many(self._request(room))
            except EngineError as error:
                # A claimer never gives up: the store may be away for an hour.
                log.warning("Claiming failed; trying again: %s", error)
                self._stopping.wait(_BACKOFF[min(failures, len(_BACKOFF) - 1)])
                failures += 1
                continue
            failures = 0
            self._take(claimed, asked_at)

    def _room(self) -> int:
        """How many to claim: for the free threads, and ahead what the pace will start at once."""
        self._holdings.space.clear()
        ahead = min(MAX_AHEAD, int(self._pace.per_second() * AHEAD_SECONDS))
        target = self._holdings.threads + ahead
        room = target - self._holdings.outstanding()
        # Many in one call are cheaper than many calls: with work ahead, wait until half of it is done.
        return room if room >= max(1, ahead // 2) else 0

    def _request(self, room: int) -> ClaimRequest:
        first = next(self._turns)
        lanes: Sequence[str] = (first, *(lane for lane in self._lanes if lane != first))
        return ClaimRequest(
            lanes=tuple(LaneRequest(lane=lane) for lane in lanes),
            policy=self._policy,
            limit=min(room, MAX_BATCH_ITEMS),
            capabilities=self._offers,
            tasks=self._names,
        )

    def _take(self, claimed: Sequence[Claimed], asked_at: float) -> None:
        for each in claimed:
            task = self._tasks[each.task]
            handle = each.handle
            lease = task.options_given.lease
            if lease is not None:
                handle = attrs.evolve(handle, lease_ttl_ms=lease // timedelta(milliseconds=1))
            self._holdings.add(Held(each, task, handle, max(asked_at, now() - 1.0)))


class _Pace:
    """How many handlers end in a second, as it was lately."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._since = now()
        self._finished = 0
        self._rate = 0.0

    def per_second(self) -> float:
        elapsed = now() - self._since
        if elapsed >= 0.01:
            finished = self._holdings.finished_in_all()
            lately = (finished - self._finished) / elapsed
            # Quick to slow down, so that nothing is claimed that a slow task would keep waiting.
            self._rate = min(lately, self._rate) if lately < self._rate / 2 else (self._rate + lately) / 2
            self._since, self._finished = now(), finished
        return self._rate
