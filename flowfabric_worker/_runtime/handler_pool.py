"""Handler threads: each runs one execution after the other, and is replaced when it does not come back."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker.engine import log_queue

log = log_queue.Log(__name__)


class HandlerThread:
    """One thread that runs handlers.

    A thread cannot be ended from outside. One whose handler goes on although nobody wants its result is counted as
    lost: another takes its place, and it ends itself when the handler does.
    """

    def __init__(self, number: int, leases: LeaseTable, attempt_runner: AttemptRunner) -> None:
        self.number = number
        self._leases = leases
        self._attempt_runner = attempt_runner
        self._lock = threading.Lock()
        self._execution: LeasedExecution | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._work, name=f"flowfabric-handler-{number}", daemon=True)
        self.start = self._thread.start
        self.join = self._thread.join

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def fallen(self) -> bool:
        """Whether the thread has ended by itself. One that was given up may end before it is replaced."""
        return not self._thread.is_alive() and not self._lost

    def overdue(self, seconds: float) -> LeasedExecution | None:
        """Return the execution that was lost more than `seconds` ago while its handler still runs; None if none was."""
        execution = self._execution
        return execution if execution is not None and now() - execution.lost_at > seconds else None

    def give_up(self, execution: LeasedExecution) -> bool:
        """Count the thread as lost; False if its handler has just ended."""
        with self._lock:
            if self._execution is not execution:
                return False
            self._lost = True
            self._leases.finished[self.number] += 1
            return True

    def _work(self) -> None:
        leases = self._leases
        waiting, space = leases.waiting, leases.space
        while True:
            execution = waiting.get()
            if execution is None:
                return
            self._execution = execution
            self._attempt_runner.run(execution)
            # While this thread waits for the next one, nothing of this one is kept.
            del execution
            if not self._finish():
                return
            if waiting.qsize() <= leases.low_water and not space.is_set():
                space.set()

    def _finish(self) -> bool:
        """Count a handler as ended; False if the thread was given up meanwhile and another works in its place."""
        with self._lock:
            self._execution = None
            if not self._lost:
                self._leases.finished[self.number] += 1
            return not self._lost


class HandlerPool:
    """The handler threads of a worker.

    Args:
        interrupt_grace: seconds for which a handler may go on after it was told that its result will not count.
        on_worn: called, each time, when so many threads are lost that the process had better be replaced.
        max_stuck_threads: how many those are.
    """

    def __init__(
        self,
        leases: LeaseTable,
        attempt_runner: AttemptRunner,
        interrupt_grace: float,
        max_stuck_threads: int,
        on_restart_required: Callable[[str], None],
    ) -> None:
        self._leases = leases
        self._attempt_runner = attempt_runner
        self._interrupt_grace = interrupt_grace
        self._max_stuck_threads = max_stuck_threads
        self._on_restart_required = on_restart_required
        self._threads = [HandlerThread(number, leases, attempt_runner) for number in range(leases.threads)]
        self._lost: list[HandlerThread] = []

    @property
    def alive(self) -> bool:
        """Whether all of its threads run."""
        return not any(thread.fallen for thread in self._threads)

    @property
    def lost(self) -> int:
        """How many threads are lost at this moment: their handlers go on, and nobody wants their results."""
        self._lost = [thread for thread in self._lost if thread.alive]
        return len(self._lost)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell each thread to end after what it runs now."""
        for _ in self._threads:
            self._leases.waiting.put(None)

    def join(self, timeout: float) -> bool:
        """Wait for the threads that are not lost, at most `timeout` seconds in all; whether all have ended."""
        deadline = now() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - now()))
        return not any(thread.alive for thread in self._threads)

    def replace_lost(self) -> None:
        """Put new threads in the place of those whose handlers do not come back. Called by one thread."""
        for place, thread in enumerate(self._threads):
            execution = thread.overdue(self._interrupt_grace)
            if execution is None or not thread.give_up(execution):
                continue
            self._lost.append(thread)
            successor = HandlerThread(thread.number, self._leases, self._attempt_runner)
            successor.start()
            self._threads[place] = successor
            self._leases.space.set()
            log.error(
                "%s of %s goes on although its result does not count (%s); its thread is lost, and replaced. "
                "%s threads are lost.",
                execution.task.name, execution.key, execution.lost, self.lost, extra=execution.fields,
            )  # fmt: skip
        if self._lost and self.lost >= self._max_stuck_threads:
            self._on_restart_required(f"{self.lost} threads are lost to handlers that do not end")
