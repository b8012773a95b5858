"""The committer: sends outcomes to the store, all that have gathered since its last answer in one call."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta

import attrs

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, StateError, TransportError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.running import Completion, Failure, FailureReason
from flowfabric_worker.held import Held, Holdings, now

log = logging.getLogger(__name__)

# Handler threads wait when the store is so far behind.
MAX_QUEUED = 1000


@attrs.frozen
class _Outcome:
    """What became of one run: a result, a failure, or another call to make."""

    held: Held
    result: bytes | None = None
    failure: Failure | None = None
    call: Callable[[], None] | None = None
    what: str = "complete"


class Committer:
    """One thread that owns the way of outcomes to the store.

    An outcome counts when the store acknowledged it; until then its lease is renewed. It is sent again after a failure
    of the connection for as long as its lease may live.
    """

    def __init__(self, holdings: Holdings, engine: EngineBackend) -> None:
        self._holdings = holdings
        self._engine = engine
        self._queue: queue.SimpleQueue[_Outcome | None] = queue.SimpleQueue()
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flowfabric-committer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread when everything that is queued was sent."""
        self._queue.put(None)

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # Called by handler threads

    def complete(self, held: Held, result: bytes) -> None:
        self._put(_Outcome(held, result=result))

    def fail(
        self, held: Held, reason: FailureReason, classification: FailureClass, retry_after: timedelta | None = None
    ) -> None:
        failure = Failure(handle=held.handle, reason=reason, classification=classification, retry_after=retry_after)
        self._put(_Outcome(held, failure=failure, what="fail"))

    def run(self, held: Held, what: str, call: Callable[[], None]) -> None:
        self._put(_Outcome(held, call=call, what=what))

    def drop(self, held: Held) -> None:
        """Nothing is to be sent: the lease was lost before the handler began."""
        log.warning("%s was not started: %s.", held.handle.execution_id, held.lost)
        self._holdings.drop(held)

    def _put(self, outcome: _Outcome) -> None:
        outcome.held.ended = True
        while self._queue.qsize() >= MAX_QUEUED:
            self._moved.clear()
            self._moved.wait(0.1)
        self._queue.put(outcome)

    # The thread

    def _work(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch, last = self._gather(first)
            self._send(batch)
            self._moved.set()
            if last:
                return

    def _gather(self, first: _Outcome) -> tuple[list[_Outcome], bool]:
        """Everything that waits, up to one call's limit; and whether it was the last."""
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

    def _send(self, batch: Sequence[_Outcome]) -> None:
        """Sends a batch until each outcome has its answer, or its lease cannot live any more."""
        pause = 0.05
        while batch:
            batch = [*self._send_completions(batch), *self._send_failures(batch), *self._send_others(batch)]
            batch = [outcome for outcome in batch if not self._is_over(outcome)]
            if batch:
                threading.Event().wait(pause)
                pause = min(1.0, pause * 2)

    def _send_completions(self, batch: Sequence[_Outcome]) -> list[_Outcome]:
        mine = [outcome for outcome in batch if outcome.failure is None and outcome.call is None]
        completions = [Completion(handle=outcome.held.handle, payload=outcome.result) for outcome in mine]
        return self._sent(mine, lambda: self._engine.complete_many(completions))

    def _send_failures(self, batch: Sequence[_Outcome]) -> list[_Outcome]:
        mine = [outcome for outcome in batch if outcome.failure is not None]
        failures = [outcome.failure for outcome in mine if outcome.failure is not None]
        return self._sent(mine, lambda: self._engine.fail_many(failures))

    def _send_others(self, batch: Sequence[_Outcome]) -> list[_Outcome]:
        again = []
        for outcome in batch:
            if outcome.call is not None:
                call = outcome.call
                again += self._sent([outcome], lambda call=call: [call()])  # type: ignore[misc]
        return again

    def _sent(self, mine: Sequence[_Outcome], send: Callable[[], Sequence[object]]) -> list[_Outcome]:
        """Sends some outcomes; returns those that are worth sending again."""
        if not mine:
            return []
        try:
            answers = send()
        except EngineError as error:
            answers = [error] * len(mine)
        return [outcome for outcome, answer in zip(mine, answers, strict=True) if self._is_open(outcome, answer)]

    def _is_open(self, outcome: _Outcome, answer: object) -> bool:
        """Takes one answer; whether the outcome has to be sent again."""
        if isinstance(answer, TransportError) or (isinstance(answer, EngineError) and answer.code == "again"):
            return True
        if isinstance(answer, StateError):
            outcome.held.lose("lease lost")
            log.warning("The outcome (%s) of %s does not count: %s", outcome.what, outcome.held.handle.execution_id, answer)
        elif isinstance(answer, EngineError):
            log.error("The outcome (%s) of %s was refused: %s", outcome.what, outcome.held.handle.execution_id, answer)
        self._holdings.drop(outcome.held)
        return False

    def _is_over(self, outcome: _Outcome) -> bool:
        """Whether the lease of an unsent outcome has run out: another worker goes on with the execution."""
        if now() < outcome.held.lease_until:
            return False
        outcome.held.lose("lease lost")
        log.error(
            "The outcome (%s) of %s could not be sent while its lease lived; the execution will run again.",
            outcome.what,
            outcome.held.handle.execution_id,
        )
        self._holdings.drop(outcome.held)
        return True
