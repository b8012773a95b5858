"""The completer: sends outcomes to the store; each call has all that were queued during the call before."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import attrs

from flowfabric_worker._runtime.execution_log import ExecutionLog
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.errors import EngineError, NotFoundError, StateError, ValidationError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.attempts import (
    Completion,
    Failure,
    FailureReason,
    RetryScheduled,
    TerminalCancelled,
)
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState

log = log_queue.Log(__name__)

# The errors that refuse an outcome for good; after any other error the outcome is sent again.
_REFUSALS = (StateError, NotFoundError, ValidationError)
# The most queued outcomes; at this number, handler threads wait.
MAX_QUEUED = 1000
# Seconds before outcomes without an answer are sent again: at first, and at most.
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


# Not frozen, because creating a frozen one takes three times as long, and there is one for each execution.
@attrs.define
class _Outcome:
    """The outcome of one attempt: a result, a failure, or another call to the store.

    Attributes:
        answer: the store's, if it is known already: True or an error.
    """

    execution: LeasedExecution
    what: str
    result: bytes | None = None
    failure: Failure | None = None
    call: Callable[[], object] | None = None
    answer: object = None


class _Unanswered:
    """The outcomes that were sent without an answer, for which the outcomes of other partitions do not wait."""

    def __init__(self) -> None:
        self._outcomes: list[_Outcome] = []
        self._due_at = 0.0
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)

    def __bool__(self) -> bool:
        return bool(self._outcomes)

    def due_in(self) -> float | None:
        """Return the seconds until the outcomes are sent again; None if there are none."""
        return max(0.0, self._due_at - now()) if self._outcomes else None

    def take_due(self) -> list[_Outcome]:
        """Take all outcomes if it is time to send them again; otherwise return an empty list."""
        if not self._outcomes or now() < self._due_at:
            return []
        taken, self._outcomes = self._outcomes, []
        return taken

    def add(self, outcomes: Sequence[_Outcome]) -> None:
        """Add outcomes that were not answered; reset the back-off if there are none left."""
        if outcomes and not self._outcomes:
            self._due_at = now() + self._backoff.next()
        self._outcomes += outcomes
        if not self._outcomes:
            self._backoff.reset()


class Completer(OwnedThread):
    """Send outcomes to the store, in one thread.

    An outcome counts once the store has acknowledged it, and its lease is renewed until then. If the connection fails,
    the outcome is sent again until its lease expires.
    """

    def __init__(self, leases: LeaseTable, engine: EngineBackend, hooks: Hooks, execution_log: ExecutionLog) -> None:
        super().__init__("completer")
        self._leases = leases
        self._engine = engine
        self._hooks = hooks
        self._execution_log = execution_log
        self._queue: queue.SimpleQueue[_Outcome | None] = queue.SimpleQueue()
        self._moved = threading.Event()

    def stop(self) -> None:
        """Tell the thread to send everything that is queued, and then end."""
        self._queue.put(None)

    def flush(self) -> None:
        """Send everything that is queued, in the caller's thread; used if the thread was not started."""
        while not self._queue.empty():
            self._send_until_answered(self._gather(0)[0])

    def _send_until_answered(self, batch: Sequence[_Outcome]) -> None:
        while batch := self._send(batch):
            time.sleep(_FIRST_PAUSE)

    # Called by handler threads

    def complete(self, execution: LeasedExecution, result: bytes) -> None:
        self._put(_Outcome(execution, "complete", result=result))

    def fail(
        self,
        execution: LeasedExecution,
        reason: FailureReason,
        classification: FailureClass,
        retry_after: timedelta | None = None,
    ) -> None:
        failure = Failure(
            handle=execution.handle, reason=reason, classification=classification, retry_after=retry_after
        )
        self._put(_Outcome(execution, "fail", failure=failure))

    def run(self, execution: LeasedExecution, what: str, call: Callable[[], object]) -> None:
        """Queue another call to the store; one for "complete" returns whether the execution has completed."""
        self._put(_Outcome(execution, what, call=call))

    def committed(self, execution: LeasedExecution) -> None:
        """Note that an execution has completed in the transaction of its handler."""
        self._put(_Outcome(execution, "complete", call=_nothing, answer=True))

    def refused(self, execution: LeasedExecution, error: EngineError) -> None:
        """Note that the store refused to complete an execution in the transaction of its handler."""
        self._put(_Outcome(execution, "complete", call=_nothing, answer=error))

    def drop(self, execution: LeasedExecution, what: str) -> None:
        """Remove an execution without an outcome, because this worker does not hold it any more."""
        execution.ended = True
        self._execution_log.lost(execution, what)
        self._leases.drop(execution)

    def _put(self, outcome: _Outcome) -> None:
        outcome.execution.ended = True
        while self._queue.qsize() >= MAX_QUEUED:
            self._moved.clear()
            self._moved.wait(0.1)
        self._queue.put(outcome)

    # The thread

    def _work(self) -> None:
        dedicate_thread(self._engine)
        unanswered = _Unanswered()
        ending = False
        while unanswered or not ending:
            batch, last = self._gather(unanswered.due_in())
            ending = ending or last
            unanswered.add(self._send([*unanswered.take_due(), *batch]))
            self._moved.set()

    def _gather(self, timeout: float | None) -> tuple[list[_Outcome], bool]:
        """Wait for an outcome; return what is queued, up to the limit of one call, and True if nothing follows.

        Args:
            timeout: seconds to wait for the first outcome; None to wait without a limit.
        """
        try:
            first = self._queue.get(timeout=timeout)
        except queue.Empty:
            return [], False
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < MAX_BATCH_ITEMS:
            try:
                outcome = self._queue.get_nowait()
            except queue.Empty:
                break
            if outcome is None:
                return batch, True
            batch.append(outcome)
        return batch, False

    def _send(self, batch: Sequence[_Outcome]) -> list[_Outcome]:
        """Send the outcomes that still count; return those that must be sent again."""
        batch = [outcome for outcome in batch if self._counts(outcome)]
        completions = [outcome for outcome in batch if outcome.failure is None and outcome.call is None]
        failures = [outcome for outcome in batch if outcome.failure is not None]
        calls = [outcome for outcome in batch if outcome.call is not None]
        again = [*self._sent(completions, self._complete), *self._sent(failures, self._fail)]
        for outcome in calls:
            again += self._sent([outcome], _call)
        return again

    def _counts(self, outcome: _Outcome) -> bool:
        """Return True if an outcome still counts; drop it if its lease is lost, because another worker continues."""
        execution = outcome.execution
        if outcome.answer is True:
            return True
        if execution.lost is None and now() < execution.lease_until:
            return True
        execution.lose("lease lost")
        self.drop(execution, _describe_uncounted(outcome))
        return False

    def _sent(self, mine: Sequence[_Outcome], send: Callable[[Sequence[_Outcome]], Sequence[object]]) -> list[_Outcome]:
        """Send some outcomes; return those that must be sent again."""
        if not mine:
            return []
        try:
            answers = send(mine)
        except EngineError as error:
            answers = [error] * len(mine)
        again: list[_Outcome] = []
        for outcome, answer in zip(mine, answers, strict=True):
            if len(mine) > 1 and isinstance(answer, EngineError) and not answer.retryable and answers.count(answer) > 1:
                # Retry items individually so that one bad item cannot fail the batch.
                again += self._sent([outcome], send)
            elif self._is_open(outcome, answer):
                again.append(outcome)
        return again

    def _complete(self, mine: Sequence[_Outcome]) -> Sequence[object]:
        return self._engine.complete_many(
            [Completion(handle=outcome.execution.handle, payload=outcome.result) for outcome in mine]
        )

    def _fail(self, mine: Sequence[_Outcome]) -> Sequence[object]:
        return self._engine.fail_many([outcome.failure for outcome in mine if outcome.failure is not None])

    def _is_open(self, outcome: _Outcome, answer: object) -> bool:
        """Handle one answer; return True if the outcome must be sent again."""
        if not isinstance(answer, EngineError):
            self._leases.drop(outcome.execution)
            self._tell(outcome, answer)
            return False
        if not isinstance(answer, _REFUSALS):
            return True
        if isinstance(answer, StateError):
            outcome.execution.lose("lease lost")
        else:
            outcome.execution.lose(str(answer))
        self.drop(outcome.execution, _describe_uncounted(outcome))
        return False

    def _tell(self, outcome: _Outcome, answer: object) -> None:
        """Report what the store has acknowledged to the hooks and the log."""
        execution = outcome.execution
        if outcome.failure is not None:
            reason = outcome.failure.reason
            if isinstance(answer, RetryScheduled):
                self._execution_log.retried(execution, reason, answer.delay_until_ms)
                self._hooks.tell("on_retry", execution, reason.message)
            else:
                self._execution_log.failed(execution, reason)
                self._hooks.tell("on_failure", execution, reason.message)
                cancelled = isinstance(answer, TerminalCancelled)
                self._hooks.ended(execution, PublicState.CANCELLED if cancelled else PublicState.FAILED, reason.message)
        elif outcome.call is None or answer is True:
            self._execution_log.completed(execution)
            self._hooks.tell("on_success", execution)
            self._hooks.ended(execution, PublicState.COMPLETED)
        elif outcome.what == "cancel":
            self._execution_log.cancelled(execution)
            self._hooks.tell("on_failure", execution, "cancelled by its handler")
            self._hooks.ended(execution, PublicState.CANCELLED, "cancelled by its handler")
        elif outcome.what != "complete":
            self._hooks.tell("on_suspend", execution)


def _describe_uncounted(outcome: _Outcome) -> str:
    """Describe the outcome of a handler whose execution this worker does not hold any more."""
    why = "" if outcome.failure is None else f": {outcome.failure.reason.message}"
    return f"ended ({outcome.what}{why}), which does not count"


def _call(mine: Sequence[_Outcome]) -> Sequence[object]:
    return [outcome.answer or (outcome.call is not None and outcome.call()) for outcome in mine]


def _nothing() -> None:
    """Call nothing, because the store has answered."""
