"""The executions that a worker process has leased, from their claim until the store knows their outcome."""

from __future__ import annotations

import collections
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from flowfabric_worker._runtime.frame_buffer import FrameBuffer
from flowfabric_worker._runtime.interruption import Interruption
from flowfabric_worker.context import log_fields
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task

RENEWALS_PER_LEASE = 3
# After this many lost workers, the execution itself may be what kills its processes.
SUSPECT_AFTER = 2
# Guards that a loss is reported once, though several threads may notice it. One lock serves all executions, because
# few are lost.
_losing = threading.Lock()
# A handler is near its end after this part of its time.
_NEARLY = 0.9
# The most seconds by which this process may see a timeout earlier or later than the store.
_CLOCK_TOLERANCE = 0.1


def now() -> float:
    """Return the monotonic clock of this process, in seconds."""
    return time.monotonic()


class LeasedExecution:
    """One execution under a lease of this process. Times are seconds of `now()`.

    Attributes:
        claimed: what the store returned for the claim.
        handle: the lease; renewals ask for the task's own lease time.
        key: the execution's id, as text.
        claimed_at: when the claim was answered.
        lease_until: when the lease expires unless it is renewed.
        renew_at: when to renew the lease.
        ends_at: when the store ends the attempt: its timeout or the deadline.
        started_at: when the handler began; None before.
        ended_at: when the handler ended; None before.
        lost: why the result of the handler will not count; None if it counts.
        lost_at: when the execution was lost; infinity if it was not.
        ended: True if the outcome is queued for the store, or dropped.
        counted: True if the execution counts as outstanding; see `LeaseTable`.
        frames: the frames that the handler has emitted; None before the first one.
        interruption: interrupts the handler; None unless the task has `interrupt=True`.
        on_lost: called when the execution is lost.
    """

    __slots__ = (
        "_event", "_start", "claimed", "claimed_at", "counted", "ended", "ended_at", "ends_at", "frames",
        "handle", "interruption", "key", "lease_until", "lost", "lost_at", "on_lost", "renew_at", "started_at", "task",
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
        self.frames: FrameBuffer | None = None
        self.interruption = Interruption() if task.options_given.interrupt else None
        self.on_lost = on_lost
        self.counted = False
        self._event: threading.Event | None = None
        # Two threads may decide whether the handler begins: the one that removes this item.
        self._start = [True]

    def begin(self) -> bool:
        """Begin the handler; return False if another thread has withheld it."""
        if not self.withhold():
            return False
        self.started_at = now()
        return True

    def withhold(self) -> bool:
        """Prevent the handler from beginning; return False if it has begun."""
        try:
            return self._start.pop()
        except IndexError:
            return False

    def is_near_its_end(self) -> bool:
        """Return True if the handler has used nearly all of its time."""
        if self.started_at is None or self.ends_at == math.inf:
            return False
        return now() - self.started_at > _NEARLY * (self.ends_at - self.started_at)

    @property
    def is_suspect(self) -> bool:
        """Whether so many of its workers were lost that the execution may be what kills its processes."""
        return self.claimed.reclaim_count >= SUSPECT_AFTER

    @property
    def claimed_at_ms(self) -> int:
        """The time of the claim, in ms of the store's clock."""
        return self.claimed.lease_expires_at_ms - self.claimed.handle.lease_ttl_ms

    @property
    def cancelled(self) -> threading.Event:
        """The event that is set when the execution is lost; created at its first use, because few handlers read it."""
        if self._event is None:
            self._event = threading.Event()
            if self.lost is not None:
                self._event.set()
        return self._event

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a log record about this execution."""
        handle = self.handle
        return log_fields(self.task.name, handle.lane, handle.attempt_index, self.key)

    def lose(self, reason: str, told: Callable[[], None] | None = None) -> None:
        """Tell the handler that its result will not count; only the first reason is kept.

        Args:
            reason: why; if the time of the attempt is over, the reason is "timeout", whatever the caller gives.
            told: called in place of `on_lost` if this is the first reason.
        """
        with _losing:
            first = self.lost is None
            if first:
                self.lost = "timeout" if now() >= self.ends_at - _CLOCK_TOLERANCE else reason
                self.lost_at = now()
        if self._event is not None:
            self._event.set()
        # The handler may end at this moment, and drop its buffer.
        frames = self.frames
        if frames is not None:
            frames.wake()
        if first and told is not None:
            told()
        elif first and self.on_lost is not None:
            self.on_lost(self)
        # Interrupt last, because in the handler's own thread this call raises.
        if self.interruption is not None:
            self.interruption.interrupt()

    def shield(self) -> AbstractContextManager[None]:
        """Defer the interruption of the handler to the end of a block."""
        return nullcontext() if self.interruption is None else self.interruption.shield()

    def renewed(self, asked_at: float) -> None:
        """Note a renewal: the lease lasts for its full time from `asked_at`, when the renewal was sent."""
        lease = self.handle.lease_ttl_ms / 1000
        self.lease_until = asked_at + lease
        self.renew_at = asked_at + lease / RENEWALS_PER_LEASE

    def renew_again(self) -> None:
        """Schedule another renewal after a failed one, so that there are several tries before the lease expires."""
        self.renew_at = now() + self.handle.lease_ttl_ms / 1000 / RENEWALS_PER_LEASE**2

    def _here(self, *moments_ms: int | None) -> float:
        """Convert the earliest of some times of the store's clock, in ms, to `now()`; infinity if all are None."""
        known = [moment for moment in moments_ms if moment is not None]
        return self.claimed_at + (min(known) - self.claimed_at_ms) / 1000 if known else math.inf


class LeaseTable:
    """The leased executions of a worker process, which its threads share.

    An execution counts as outstanding from `queue` until its handler has ended, or another worker has it. Each
    execution knows whether it was counted, so that it is subtracted only once.

    Attributes:
        executions: the leased executions by id; single operations of a dict need no lock.
        waiting: the executions that wait for a free handler thread; None tells a thread to end.
        suspects: the executions that wait to run isolated from other work.
        suspects_isolated: True if suspects run in another process, False if they take turns in this one.
        low_water: the number of waiting executions at which the claimer is woken.
        space: set when the claimer may claim more.
        unsettled: how many counted executions were offered to other workers without an answer.
        open: set when handlers may begin. Before, the worker could not tell which process sent a signal.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.executions: dict[str, LeasedExecution] = {}
        self.waiting: queue.SimpleQueue[LeasedExecution | None] = queue.SimpleQueue()
        self.suspects: collections.deque[LeasedExecution] = collections.deque()
        self.suspects_isolated = False
        self.low_water = 0
        self.space = threading.Event()
        self.open = threading.Event()
        self.claimed = 0
        self.released = 0
        self.unsettled = 0
        # Each handler thread has its own counter, so that the threads share no lock.
        self.finished = [0] * threads

    def hold(self, execution: LeasedExecution) -> None:
        """Add a claimed execution; from now on its lease is renewed."""
        former = self.executions.get(execution.key)
        if former is not None and not former.ended:
            # The former lease has ended, or the store would not have handed the execution out again. If its handler has
            # ended too, the retry has arrived before the answer to the outcome, which the completer handles.
            former.lose("lease lost")
        self.executions[execution.key] = execution

    def queue(self, execution: LeasedExecution) -> None:
        """Queue a claimed execution for a handler thread, or a suspect for isolation. Only the claimer calls this."""
        if execution.is_suspect:
            self.suspects.append(execution)
        else:
            self.begin(execution)

    def begin(self, execution: LeasedExecution) -> None:
        """Queue an execution for the handler threads. Only the thread that claims calls this."""
        execution.counted = True
        self.claimed += 1
        self.waiting.put(execution)

    def outstanding(self) -> int:
        """Return the number of claimed executions whose handlers have not ended."""
        return self.claimed - self.released - sum(self.finished) - self.unsettled

    def finished_in_all(self) -> int:
        """Return the number of handlers that have ended."""
        return sum(self.finished)

    def holds_reclaimed(self) -> bool:
        """Return True if the former worker of a leased execution was lost."""
        return any(execution.claimed.reclaim_count for execution in list(self.executions.values()))

    def holds(self, execution: LeasedExecution) -> bool:
        """Return True if the table holds this lease of the execution, and not a later one."""
        return self.executions.get(execution.key) is execution

    def drop(self, execution: LeasedExecution) -> None:
        """Remove an execution, because the store knows its outcome or another worker holds it."""
        if self.holds(execution):
            del self.executions[execution.key]

    def take_back_waiting(self) -> list[LeasedExecution]:
        """Take the executions that no thread has begun, which count as outstanding until they are handed over."""
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
            # Keep the items that tell handler threads to end.
            self.waiting.put(None)
        while self.suspects:
            with contextlib.suppress(IndexError):
                taken.append(self.suspects.popleft())
        return taken

    def put_back(self, execution: LeasedExecution) -> None:
        """Queue an execution again after it was taken back."""
        if execution.counted:
            self.waiting.put(execution)
        else:
            self.suspects.append(execution)
            self.space.set()

    def hand_over(self, execution: LeasedExecution) -> None:
        """Remove an execution that was taken back, because another worker may claim it now."""
        self.drop(execution)
        if execution.counted:
            self.released += 1
            self.space.set()

    def oldest_unstarted(self) -> float | None:
        """Return when the oldest waiting execution was claimed, by `now()`; None if none waits."""
        if self.waiting.empty() and not self.suspects:
            return None
        for execution in list(self.executions.values()):
            if execution.started_at is None and not execution.ended:
                return execution.claimed_at
        return None

    def unfinished(self) -> list[LeasedExecution]:
        """Return the executions that have no outcome yet and are not lost."""
        return [
            execution for execution in list(self.executions.values()) if not execution.ended and execution.lost is None
        ]

    def unacknowledged(self) -> list[LeasedExecution]:
        """Return the executions whose outcomes the store has not acknowledged."""
        return [each for each in list(self.executions.values()) if each.ended and each.lost is None]

    def running(self) -> list[LeasedExecution]:
        """Return the executions whose handlers run now and are not lost."""
        return [execution for execution in self.unfinished() if execution.started_at is not None]
