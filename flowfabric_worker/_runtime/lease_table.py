"""What a worker process holds: the executions under its leases, from their claim until the store knows their end."""

from __future__ import annotations

import collections
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from flowfabric_worker._runtime.interruption import Interruption
from flowfabric_worker.context import log_fields
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task

RENEWALS_PER_LEASE = 3
# An execution whose lease was lost so often may be what kills its processes.
SUSPECT_AFTER = 2
# Several threads may learn of a loss at once, and it is told once. A lock of all: few executions are ever lost.
_losing = threading.Lock()
# The part of its time that a handler has nearly used up.
_NEARLY = 0.9
# How much later than the store this process may see a moment come, in seconds.
_CLOCKS_DIFFER = 0.1


def now() -> float:
    """Return the clock of this process, in seconds; it never goes back."""
    return time.monotonic()


class LeasedExecution:
    """One execution under a lease of this process. Times are of `now()`.

    Attributes:
        claimed: what the claim handed out.
        handle: the lease; renewals ask for its task's own time.
        key: the execution's id, as text.
        claimed_at: when the claim's answer came.
        lease_until: when the lease runs out unless it is renewed.
        renew_at: when it is to be renewed.
        ends_at: when the store takes the execution away: its timeout or its deadline.
        started_at: when its handler began, or None.
        ended_at: when its handler ended, or None.
        lost: why what its handler returns will not count, or None.
        lost_at: since when that is so.
        ended: whether its outcome is on its way to the store.
        counted: whether it counts as outstanding; see `LeaseTable`.
        interruption: how its handler is interrupted, if its task wants that.
        on_lost: called when it is lost.
    """

    __slots__ = (
        "_event", "_start", "claimed", "claimed_at", "counted", "ended", "ended_at", "ends_at", "handle",
        "interruption", "key", "lease_until", "lost", "lost_at", "on_lost", "renew_at", "started_at", "task",
    )  # fmt: skip

    def __init__(
        self,
        claimed: Claimed,
        task: Task[..., Any],
        handle: Handle,
        claimed_at: float,
        on_lost: Callable[[LeasedExecution], None] | None = None,
    ) -> None:
        self.claimed = claimed
        self.task = task
        self.handle = handle
        self.key = str(handle.execution_id)
        self.claimed_at = claimed_at
        lease = claimed.handle.lease_ttl_ms / 1000
        self.lease_until = claimed_at + lease
        self.renew_at = claimed_at + lease / RENEWALS_PER_LEASE
        self.ends_at = self._here(claimed.timeout_at_ms, claimed.deadline_at_ms)
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.lost: str | None = None
        self.lost_at = math.inf
        self.ended = False
        self.interruption = Interruption() if task.options_given.interrupt else None
        self.on_lost = on_lost
        self.counted = False
        self._event: threading.Event | None = None
        # Two threads may want to decide whether the handler begins: the one that takes this out does.
        self._start = [True]

    def begin(self) -> bool:
        """Note that the handler begins; return False if another thread has withheld it."""
        if not self.withhold():
            return False
        self.started_at = now()
        return True

    def withhold(self) -> bool:
        """Make sure that the handler does not begin any more; return False if it has begun."""
        try:
            return self._start.pop()
        except IndexError:
            return False

    def is_near_its_end(self) -> bool:
        """Return True if its handler has used nearly all of the time that it may take."""
        if self.started_at is None or self.ends_at == math.inf:
            return False
        return now() - self.started_at > _NEARLY * (self.ends_at - self.started_at)

    @property
    def is_suspect(self) -> bool:
        """Whether its lease was lost so often that it may be what kills its processes."""
        return self.claimed.reclaim_count >= SUSPECT_AFTER

    @property
    def claimed_at_ms(self) -> int:
        """When it was claimed, in ms of the store's clock."""
        return self.claimed.lease_expires_at_ms - self.claimed.handle.lease_ttl_ms

    @property
    def cancelled(self) -> threading.Event:
        """Set when `lost` is; made at its first use, since most handlers never ask."""
        if self._event is None:
            self._event = threading.Event()
            if self.lost is not None:
                self._event.set()
        return self._event

    @property
    def fields(self) -> dict[str, Any]:
        """What a log record about it carries."""
        handle = self.handle
        return log_fields(self.task.name, handle.lane, handle.attempt_index, self.key)

    def lose(self, reason: str) -> None:
        """Tell the handler that its result will not count; the first reason stands.

        When its time is over, that is the reason, whichever thread noticed it.
        """
        with _losing:
            first = self.lost is None
            if first:
                self.lost = "timeout" if now() >= self.ends_at - _CLOCKS_DIFFER else reason
                self.lost_at = now()
        if self._event is not None:
            self._event.set()
        if first and self.on_lost is not None:
            self.on_lost(self)
        # Comes last: in the handler's own thread it raises here.
        if self.interruption is not None:
            self.interruption.interrupt()

    def renewed(self, asked_at: float) -> None:
        """The lease holds for its full time from when its renewal was asked for."""
        lease = self.handle.lease_ttl_ms / 1000
        self.lease_until = asked_at + lease
        self.renew_at = asked_at + lease / RENEWALS_PER_LEASE

    def renew_again(self) -> None:
        """A renewal failed: there are some more tries before the lease runs out."""
        self.renew_at = now() + self.handle.lease_ttl_ms / 1000 / RENEWALS_PER_LEASE**2

    def _here(self, *moments_ms: int | None) -> float:
        """Return the first of some moments of the store's clock by the clock of this process; infinity if there is
        none.
        """
        known = [moment for moment in moments_ms if moment is not None]
        return self.claimed_at + (min(known) - self.claimed_at_ms) / 1000 if known else math.inf


class LeaseTable:
    """Everything that the threads of a worker share.

    What was put into `waiting` counts as outstanding until its handler has ended, or another worker has it. Each
    execution remembers whether it was counted, so that nothing is taken off that was not added.

    Attributes:
        executions: what is held, by execution id; a dict's single operations need no lock.
        waiting: what waits for a free handler thread; None tells a thread to end.
        suspects: what waits to run apart from other work.
        suspects_apart: whether they run in another process, not in turns in this one.
        low_water: with how few waiting the claimer wants to be told that there is space.
        space: set when there is room for more.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.executions: dict[str, LeasedExecution] = {}
        self.waiting: queue.SimpleQueue[LeasedExecution | None] = queue.SimpleQueue()
        self.suspects: collections.deque[LeasedExecution] = collections.deque()
        self.suspects_isolated = False
        self.low_water = 0
        self.space = threading.Event()
        self.claimed = 0
        self.released = 0
        # Each handler thread counts for itself, so that no lock is shared per task.
        self.finished = [0] * threads

    def hold(self, execution: LeasedExecution) -> None:
        """Take up a claimed execution: from now on its lease is renewed."""
        former = self.executions.get(execution.key)
        if former is not None and not former.ended:
            # The store would not hand it out again if the former lease were alive. Of one that has ended the committer
            # learns what became of it: its retry may be here before the answer is.
            former.lose("lease lost")
        self.executions[execution.key] = execution

    def queue(self, execution: LeasedExecution) -> None:
        """Let a claimed execution wait for a thread, or apart if it is a suspect. Called by the claimer alone."""
        if execution.is_suspect:
            self.suspects.append(execution)
        else:
            self.begin(execution)

    def begin(self, execution: LeasedExecution) -> None:
        """Hand an execution to the threads. Called by the claimer alone."""
        execution.counted = True
        self.claimed += 1
        self.waiting.put(execution)

    def outstanding(self) -> int:
        """Return how many were claimed whose handlers have not ended."""
        return self.claimed - self.released - sum(self.finished)

    def finished_in_all(self) -> int:
        """Return how many handlers have ended."""
        return sum(self.finished)

    def holds_reclaimed(self) -> bool:
        """Return True if an execution is held whose worker was lost before."""
        return any(execution.claimed.reclaim_count for execution in list(self.executions.values()))

    def holds(self, execution: LeasedExecution) -> bool:
        """Return True if an execution is held, and was not claimed again since."""
        return self.executions.get(execution.key) is execution

    def drop(self, execution: LeasedExecution) -> None:
        """The store knows how it ended, or somebody else holds it now."""
        if self.holds(execution):
            del self.executions[execution.key]

    def take_back_waiting(self) -> list[LeasedExecution]:
        """Take everything that no thread has begun; until it is handed over it still counts as outstanding."""
        taken: list[LeasedExecution] = []
        ends = 0
        with contextlib.suppress(queue.Empty):
            while True:
                execution = self.waiting.get_nowait()
                if execution is None:
                    ends += 1
                else:
                    taken.append(execution)
        for _ in range(ends):
            # Meant for handler threads: they must not be lost.
            self.waiting.put(None)
        while self.suspects:
            with contextlib.suppress(IndexError):
                taken.append(self.suspects.popleft())
        return taken

    def put_back(self, execution: LeasedExecution) -> None:
        """Let an execution that was taken back wait as it did before."""
        if execution.counted:
            self.waiting.put(execution)
        else:
            self.suspects.append(execution)
            self.space.set()

    def hand_over(self, execution: LeasedExecution) -> None:
        """Note that an execution which was taken back is another worker's now."""
        self.drop(execution)
        if execution.counted:
            self.released += 1
            self.space.set()

    def oldest_unstarted(self) -> float | None:
        """Since when the oldest execution waits to begin; None when none does. Dicts keep the order of claims."""
        if self.waiting.empty() and not self.suspects:
            return None
        for execution in list(self.executions.values()):
            if execution.started_at is None and not execution.ended:
                return execution.claimed_at
        return None

    def unfinished(self) -> list[LeasedExecution]:
        """Return the executions whose results will count, and are not there yet."""
        return [
            execution for execution in list(self.executions.values()) if not execution.ended and execution.lost is None
        ]

    def unacknowledged(self) -> list[LeasedExecution]:
        """Return the executions whose outcomes are on their way to the store."""
        return [each for each in list(self.executions.values()) if each.ended and each.lost is None]

    def running(self) -> list[LeasedExecution]:
        """Return those of them whose handlers run now."""
        return [execution for execution in self.unfinished() if execution.started_at is not None]
