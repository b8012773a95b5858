"""The keeper: renews leases, says that the worker is alive, and handles what time brings about."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import RENEWALS_PER_LEASE, LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.outage_log import OutageLog
from flowfabric_worker.engine import log_queue as reporting
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.errors import EngineError, NotFoundError, StateError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.attempts import TerminalFailed
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication

log = reporting.Log(__name__)

UPKEEP_EVERY = 5.0
# How long the keeper handles what is due before it looks at its leases again.
UPKEEP_TURN = 0.1
HEARTBEAT_EVERY = 20.0
PUBLISH_EVERY = 24 * 3600.0
ALIVE_FOR = timedelta(seconds=60)
# What waits longer than this for a thread of this worker is better off with another one.
RELEASE_UNSTARTED_AFTER = 0.25
# With less nobody needs to bother.
LATE = 1.0
# How long it waits after the store could not be reached.
_BACKOFF = 0.2


class LeaseKeeper:
    """One thread that keeps what the worker holds. It runs no code of users.

    Args:
        lease: the shortest lease that the worker claims under; the keeper looks around several times within it.
        watches: called each time that it looks around; they are quick, and ask nothing of the store.
        publications: how the worker's tasks are submitted.
    """

    def __init__(
        self,
        holdings: LeaseTable,
        engine: EngineBackend,
        worker: RegisterWorkerArgs,
        lease: timedelta,
        hooks: Hooks,
        watches: Sequence[Callable[[], None]] = (),
        publications: Sequence[TaskPublication] = (),
    ) -> None:
        self._holdings = holdings
        self._engine = engine
        self._worker = worker
        self._hooks = hooks
        self._watches = watches
        self._publications = publications
        self._pause = min(RELEASE_UNSTARTED_AFTER, lease.total_seconds() / RENEWALS_PER_LEASE) / 2
        self._stopping = threading.Event()
        self._next_upkeep = now() + UPKEEP_EVERY / 2
        self._next_heartbeat = now() + HEARTBEAT_EVERY
        self._next_publication = now() + PUBLISH_EVERY
        # A stop hands back what is offered, and must not do so while an offer is under way.
        self._offering = threading.Lock()
        self._offered: list[LeasedExecution] = []
        self._offered_at = -math.inf
        self._outage = OutageLog(log, "Keeping leases")
        self._thread = threading.Thread(target=self._work, name="flowfabric-keeper", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def release_waiting(self) -> list[LeasedExecution]:
        """Hand back everything that no thread has begun, ready at once; return what the store acknowledged."""
        with self._offering:
            taken = [*self._offered, *self._holdings.take_back_waiting()]
            self._offered = []
        return self.release(taken)

    def release(self, some: Sequence[LeasedExecution], lost: str | None = None) -> list[LeasedExecution]:
        """Hand executions back: same place, same attempt, no retry used; return what the store acknowledged.

        Args:
            lost: why their runs are lost, if that is to count as a reclaim.
        """
        acknowledged: list[LeasedExecution] = []
        for first in range(0, len(some), MAX_BATCH_ITEMS):
            batch = some[first : first + MAX_BATCH_ITEMS]
            try:
                answers = self._engine.release_many([held.handle for held in batch], lost=lost)
            except EngineError as error:
                log.warning("%s executions could not be handed back: %s", len(batch), error)
                continue
            for held, answer in zip(batch, answers, strict=True):
                self._holdings.drop(held)
                if isinstance(answer, EngineError):
                    log.warning("%s of %s is not handed back: %s", held.task.name, held.key, answer, extra=held.fields)
                    continue
                acknowledged.append(held)
                if isinstance(answer, TerminalFailed):
                    self._hooks.ended(held, PublicState.FAILED, f"reclaims_exhausted: its worker {lost}")
                    log.error(
                        "%s of %s ended failed (reclaims_exhausted): its worker %s.",
                        held.task.name, held.key, lost, extra=held.fields,
                    )  # fmt: skip
        return acknowledged

    def _work(self) -> None:
        dedicate_thread(self._engine)
        while not self._rest():
            for watch in self._watches:
                watch()
            try:
                self._renew()
                with self._offering:
                    self._release_unstarted()
                self._heartbeat()
                self._keep_up()
            except EngineError as error:
                # A keeper never gives up: the store may be away for an hour.
                self._outage.note(error)
                self._stopping.wait(_BACKOFF)
            else:
                self._outage.over()

    def _rest(self) -> bool:
        """Wait a little; whether to end."""
        wanted = now() + self._pause
        stopping = self._stopping.wait(self._pause)
        late = now() - wanted
        if late > LATE:
            # The guilty one may have ended by now; it is held until the store has heard of that.
            held_now = list(self._holdings.executions.values())
            running = sorted({held.task.name for held in held_now if held.started_at is not None})
            log.warning(
                "Renewals are %.1f s late. If a task keeps Python's interpreter to itself, give it a longer lease: %s.",
                late,
                ", ".join(running) or "none runs",
            )
        return stopping

    def _renew(self) -> None:
        """Renew every lease of which a third has passed."""
        asked_at = now()
        due = [held for held in list(self._holdings.executions.values()) if self._is_due(held, asked_at)]
        for first in range(0, len(due), MAX_BATCH_ITEMS):
            batch = due[first : first + MAX_BATCH_ITEMS]
            for held, answer in zip(batch, self._engine.renew_many([held.handle for held in batch]), strict=True):
                self._renewed(held, answer, asked_at)

    def _is_due(self, held: LeasedExecution, moment: float) -> bool:
        if held.lost is not None or moment < held.renew_at:
            return False
        if moment >= held.lease_until:
            held.lose("lease lost")
            log.warning("%s of %s is lost: its lease ran out.", held.task.name, held.key, extra=held.fields)
            return False
        return True

    def _renewed(self, held: LeasedExecution, answer: object, asked_at: float) -> None:
        if not isinstance(answer, EngineError):
            held.renewed(asked_at)
        elif not isinstance(answer, StateError | NotFoundError):
            held.renew_again()
            log.warning("The lease of %s could not be renewed: %s", held.key, answer, extra=held.fields)
        elif not held.ended:
            # Of what has ended the committer learns what became of it.
            held.lose("lease lost")
            log.warning("%s of %s is lost: %s", held.task.name, held.key, answer, extra=held.fields)

    def _release_unstarted(self) -> None:
        """Hand back what has waited for a thread, if another worker waits for such work."""
        if not self._offered and self._should_offer():
            self._offered = self._holdings.take_back_waiting()
        while self._offered:
            batch = self._offered[:MAX_BATCH_ITEMS]
            # After a failure the same ones are offered again: only then is it known who holds them.
            answers = self._engine.release_many([held.handle for held in batch], if_wanted=True)
            del self._offered[: len(batch)]
            self._offered_at = now()
            self._take_answers(batch, answers)

    def _should_offer(self) -> bool:
        """Return whether something has waited for long, and was not offered a moment ago."""
        oldest = self._holdings.oldest_unstarted()
        return oldest is not None and now() - max(oldest, self._offered_at) > RELEASE_UNSTARTED_AFTER

    def _take_answers(self, batch: Sequence[LeasedExecution], answers: Sequence[object]) -> None:
        for held, answer in zip(batch, answers, strict=True):
            if answer is True:
                self._holdings.hand_over(held)
            else:
                # Of a lost lease the thread learns that comes to it in its turn.
                self._holdings.put_back(held)
        log.debug("Handed %s of %s executions over that no thread was free for.", answers.count(True), len(batch))

    def _heartbeat(self) -> None:
        if now() < self._next_heartbeat:
            return
        # Registering anew is a heartbeat too, and brings back an entry that was lost.
        self._engine.register_worker(self._worker)
        self._next_heartbeat = now() + HEARTBEAT_EVERY
        if now() >= self._next_publication:
            self._next_publication = now() + PUBLISH_EVERY
            self._engine.publish_tasks(self._publications)

    def _keep_up(self) -> None:
        """Handle what is due, every few seconds, and at once when a running handler's time is over."""
        moment = now()
        if moment < self._next_upkeep and all(held.ends_at > moment for held in self._holdings.running()):
            return
        # Leases are renewed between two of these turns, so a turn ends in time.
        while (result := self._engine.run_upkeep()).more and now() < moment + UPKEEP_TURN:
            pass
        self._next_upkeep = now() + (0 if result.more else UPKEEP_EVERY)
