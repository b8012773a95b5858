"""What a worker process holds: the executions under its leases, from their claim until the store acknowledged their end."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task


class Held:
    """One execution under a lease of this process. Times are of the monotonic clock, in seconds.

    Attributes:
        claimed: what the claim handed out.
        handle: the lease; renewals ask for its task's own time.
        lease_until: when the lease runs out unless it is renewed; a little early, since the clock began at the claim.
        started_at: when its handler began, or None.
        lost: why what its handler returns will not count, or None.
        ended: whether its outcome is on its way to the store.
    """

    __slots__ = ("_event", "claimed", "claimed_at", "ended", "handle", "lease_until", "lost", "started_at", "task")

    def __init__(self, claimed: Claimed, task: Task[..., Any], handle: Handle, asked_at: float) -> None:
        self.claimed = claimed
        self.task = task
        self.handle = handle
        self.claimed_at = asked_at
        self.lease_until = asked_at + claimed.handle.lease_ttl_ms / 1000
        self.started_at: float | None = None
        self.lost: str | None = None
        self.ended = False
        self._event: threading.Event | None = None

    @property
    def cancelled(self) -> threading.Event:
        """Set when `lost` is; made at its first use, since most handlers never ask."""
        if self._event is None:
            self._event = threading.Event()
            if self.lost is not None:
                self._event.set()
        return self._event

    def lose(self, reason: str) -> None:
        """Tells the handler that its result will not count; the first reason stands."""
        if self.lost is None:
            self.lost = reason
        if self._event is not None:
            self._event.set()

    def renewed(self, asked_at: float) -> None:
        """The lease holds for its full time from when its renewal was asked for."""
        self.lease_until = asked_at + self.handle.lease_ttl_ms / 1000


class Holdings:
    """Everything that the threads of a worker share.

    Attributes:
        executions: what is held, by execution id; a dict's single operations need no lock.
        waiting: what waits for a free handler thread; None tells a thread to end.
        space: set when a handler thread found little left to do.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.executions: dict[str, Held] = {}
        self.waiting: queue.SimpleQueue[Held | None] = queue.SimpleQueue()
        self.space = threading.Event()
        self.claimed = 0
        self.released = 0
        # Each handler thread counts for itself, so that no lock is shared per task.
        self.finished = [0] * threads

    def add(self, held: Held) -> None:
        """Takes a claimed execution up; it waits for a thread."""
        self.executions[str(held.handle.execution_id)] = held
        self.claimed += 1
        self.waiting.put(held)

    def outstanding(self) -> int:
        """How many were claimed whose handlers have not ended."""
        return self.claimed - self.released - sum(self.finished)

    def finished_in_all(self) -> int:
        """How many handlers have ended."""
        return sum(self.finished)

    def drop(self, held: Held) -> None:
        """The store knows how it ended, or somebody else holds it now."""
        key = str(held.handle.execution_id)
        if self.executions.get(key) is held:
            del self.executions[key]

    def take_back_waiting(self) -> list[Held]:
        """Everything that no thread has begun; the caller hands it back."""
        taken: list[Held] = []
        while True:
            try:
                held = self.waiting.get_nowait()
            except queue.Empty:
                break
            if held is None:
                # Meant for a handler thread: it must not be lost.
                self.waiting.put(None)
                break
            taken.append(held)
        self.released += len(taken)
        return taken

    def oldest_unstarted(self) -> float | None:
        """Since when the oldest execution waits for a thread; None when none does. Dicts keep the order of claims."""
        if self.waiting.empty():
            return None
        for held in list(self.executions.values()):
            if held.started_at is None and not held.ended:
                return held.claimed_at
        return None

    def running(self) -> list[Held]:
        """The executions whose handlers run now."""
        return [held for held in list(self.executions.values()) if held.started_at is not None and not held.ended]


def now() -> float:
    """The clock of this process."""
    return time.monotonic()
