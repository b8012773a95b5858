"""The lease keeper: renews leases, sends heartbeats, and runs maintenance."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import RENEWALS_PER_LEASE, LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.outage_log import OutageLog
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.errors import EngineError, NotFoundError, StateError, TransportError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.attempts import TerminalFailed
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from flowfabric_worker.engine.wording import counted

log = log_queue.Log(__name__)

# All times are in seconds.
MAINTENANCE_EVERY = 5.0
# How long one turn of maintenance may take before leases are renewed again.
MAINTENANCE_TURN = 0.1
HEARTBEAT_EVERY = 20.0
PUBLISH_EVERY = 24 * 3600.0
ALIVE_FOR = timedelta(seconds=60)
# Offer an execution to other workers if it has waited longer than this for a thread.
RELEASE_UNSTARTED_AFTER = 0.25
# An offer that got no answer is made again after this time.
_OFFER_AGAIN_AFTER = 1.0
# Do not log renewals that are late by less than this.
LATE = 1.0
# The pause after a failed call, which does not grow, because leases expire meanwhile.
_PAUSE_AFTER_ERROR = 0.2


class LeaseKeeper(OwnedThread):
    """Renew the leases of the worker, in one thread. It runs no code of users.

    Args:
        lease: the shortest lease that the worker claims with; several rounds fit into it.
        watches: called in each round; they must be quick, and must not call the store.
        publications: the options of the worker's tasks, for clients.
    """

    def __init__(
        self,
        leases: LeaseTable,
        engine: EngineBackend,
        worker: RegisterWorkerArgs,
        lease: timedelta,
        hooks: Hooks,
        watches: Sequence[Callable[[], None]] = (),
        publications: Sequence[TaskPublication] = (),
    ) -> None:
        super().__init__("lease-keeper")
        self._leases = leases
        self._engine = engine
        self._worker = worker
        self._hooks = hooks
        self._watches = watches
        self._publications = publications
        self._pause = min(RELEASE_UNSTARTED_AFTER, lease.total_seconds() / RENEWALS_PER_LEASE) / 2
        self._stopping = threading.Event()
        self._next_maintenance = now() + MAINTENANCE_EVERY / 2
        self._next_heartbeat = now() + HEARTBEAT_EVERY
        self._next_publication = now() + PUBLISH_EVERY
        # Held during a call that offers executions, so that a stop does not release them at the same time.
        self._offering = threading.Lock()
        self._offered: list[LeasedExecution] = []
        self._offered_at = -math.inf
        # The executions whose last renewal failed.
        self._unrenewed: set[str] = set()
        self._outage_log = OutageLog(log, "Keeping leases")

    def stop(self) -> None:
        self._stopping.set()

    def release_waiting(self) -> list[LeasedExecution]:
        """Release the executions that no thread has begun; return those whose release the store acknowledged."""
        with self._offering:
            taken = [*self._offered, *self._leases.take_back_waiting()]
            self._offered = []
        return self.release(taken)

    def release(self, some: Sequence[LeasedExecution], lost: str | None = None) -> list[LeasedExecution]:
        """Release executions, which keep their place and use no retry; return those that the store acknowledged.

        Args:
            some: the executions to release.
            lost: how the worker was lost, if the release counts as a reclaim; None if it does not.
        """
        acknowledged: list[LeasedExecution] = []
        for first in range(0, len(some), MAX_BATCH_ITEMS):
            batch = some[first : first + MAX_BATCH_ITEMS]
            try:
                answers = self._engine.release_many([execution.handle for execution in batch], lost=lost)
            except EngineError as error:
                log.warning("The release of %s failed: %s", counted(len(batch), "execution"), error)
                continue
            for execution, answer in zip(batch, answers, strict=True):
                self._leases.drop(execution)
                if isinstance(answer, EngineError):
                    log.warning(
                        "%s of %s was not released: %s",
                        execution.task.name,
                        execution.key,
                        answer,
                        extra=execution.fields,
                    )
                    continue
                acknowledged.append(execution)
                if isinstance(answer, TerminalFailed):
                    self._hooks.ended(execution, PublicState.FAILED, f"reclaims_exhausted: its worker {lost}")
                    log.error(
                        "%s of %s ended failed (reclaims_exhausted): its worker %s.",
                        execution.task.name, execution.key, lost, extra=execution.fields,
                    )  # fmt: skip
        return acknowledged

    def _work(self) -> None:
        dedicate_thread(self._engine, is_vital=True)
        while not self._pause_between_rounds():
            for watch in self._watches:
                watch()
            try:
                self._renew()
                with self._offering:
                    self._release_unstarted()
                self._heartbeat()
                self._run_maintenance()
            except EngineError as error:
                # Retry without a limit, because an outage may last for hours.
                self._outage_log.note(error)
                self._stopping.wait(_PAUSE_AFTER_ERROR)
            else:
                self._unrenewed &= self._leases.executions.keys()
                if not self._unrenewed:
                    self._outage_log.over()

    def _pause_between_rounds(self) -> bool:
        """Wait for the next round; return True if the thread has to end."""
        wanted = now() + self._pause
        stopping = self._stopping.wait(self._pause)
        late = now() - wanted
        if late > LATE:
            # Look at all leased executions: the handler that blocked this thread may have just ended.
            held_now = list(self._leases.executions.values())
            running = sorted({execution.task.name for execution in held_now if execution.started_at is not None})
            log.warning(
                "Renewals are %.1f s late. If a task holds Python's global lock for long, give it a longer lease: %s.",
                late,
                ", ".join(running) or "none runs",
            )
        return stopping

    def _renew(self) -> None:
        """Renew every lease of which a third has passed."""
        asked_at = now()
        due = [execution for execution in list(self._leases.executions.values()) if self._is_due(execution, asked_at)]
        for first in range(0, len(due), MAX_BATCH_ITEMS):
            batch = due[first : first + MAX_BATCH_ITEMS]
            for execution, answer in zip(batch, _answers(self._engine.renew_many, batch), strict=True):
                self._renewed(execution, answer, asked_at)

    def _is_due(self, execution: LeasedExecution, moment: float) -> bool:
        if execution.lost is not None or moment < execution.renew_at:
            return False
        if moment >= execution.lease_until:
            execution.lose("lease lost")
            log.warning(
                "%s of %s is lost: its lease expired.", execution.task.name, execution.key, extra=execution.fields
            )
            return False
        return True

    def _renewed(self, execution: LeasedExecution, answer: object, asked_at: float) -> None:
        self._unrenewed.discard(execution.key)
        if not isinstance(answer, EngineError):
            execution.renewed(asked_at)
        elif answer.retryable:
            # One partition may be away, and the leases in the others are still kept.
            execution.renew_again()
            self._unrenewed.add(execution.key)
            self._outage_log.note(answer)
        elif not isinstance(answer, StateError | NotFoundError):
            execution.renew_again()
            log.warning("The lease of %s could not be renewed: %s", execution.key, answer, extra=execution.fields)
        elif not execution.ended:
            # Report the loss only while the handler runs; after that, the completer gets the store's answer.
            execution.lose("lease lost")
            log.warning("%s of %s is lost: %s", execution.task.name, execution.key, answer, extra=execution.fields)

    def _release_unstarted(self) -> None:
        """Release executions that have waited for a thread, if another worker waits for such work."""
        if self._offered:
            if now() - self._offered_at < _OFFER_AGAIN_AFTER:
                return
        elif self._should_offer():
            self._offered = self._leases.take_back_waiting()
        else:
            return
        offered, unanswered = self._offered, list[LeasedExecution]()
        for first in range(0, len(offered), MAX_BATCH_ITEMS):
            batch = offered[first : first + MAX_BATCH_ITEMS]
            answers = _answers(partial(self._engine.release_many, if_wanted=True), batch)
            unanswered += self._take_answers(batch, answers)
        # Offer these again, to learn which worker holds them. No other work waits for that.
        self._offered, self._offered_at = unanswered, now()
        self._leases.unsettled = sum(execution.counted for execution in unanswered)
        if unanswered:
            self._leases.space.set()

    def _should_offer(self) -> bool:
        """Return True if an execution has waited for too long, and was not offered a moment ago."""
        oldest = self._leases.oldest_unstarted()
        return oldest is not None and now() - max(oldest, self._offered_at) > RELEASE_UNSTARTED_AFTER

    def _take_answers(self, batch: Sequence[LeasedExecution], answers: Sequence[object]) -> list[LeasedExecution]:
        """Hand over what another worker takes, put the rest back, and return what got no answer."""
        unanswered = []
        for execution, answer in zip(batch, answers, strict=True):
            if answer is True:
                self._leases.hand_over(execution)
            elif isinstance(answer, TransportError) and execution.lost is None:
                unanswered.append(execution)
            else:
                # Also put back an execution whose lease is lost: the handler thread notices when it takes it.
                self._leases.put_back(execution)
        log.debug("Handed over %s of %s executions that waited for a thread.", answers.count(True), len(batch))
        return unanswered

    def _heartbeat(self) -> None:
        if now() < self._next_heartbeat:
            return
        # Register again, which is a heartbeat too and restores an entry that was lost.
        self._engine.register_worker(self._worker)
        self._next_heartbeat = now() + HEARTBEAT_EVERY
        if now() >= self._next_publication:
            self._next_publication = now() + PUBLISH_EVERY
            self._engine.publish_tasks(self._publications)

    def _run_maintenance(self) -> None:
        """Run maintenance every few seconds, and at once when the time of a running handler is over."""
        moment = now()
        if moment < self._next_maintenance and all(execution.ends_at > moment for execution in self._leases.running()):
            return
        # Keep a turn short, because leases are renewed between two turns.
        while (result := self._engine.run_upkeep()).more and now() < moment + MAINTENANCE_TURN:
            pass
        self._next_maintenance = now() + (0 if result.more else MAINTENANCE_EVERY)


def _answers(
    call: Callable[[Sequence[Handle]], Sequence[object]], batch: Sequence[LeasedExecution]
) -> Sequence[object]:
    """Call the store for some executions; if the whole call fails, return its error as the answer for each."""
    try:
        return call([execution.handle for execution in batch])
    except EngineError as error:
        return [error] * len(batch)
