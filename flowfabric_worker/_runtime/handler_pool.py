"""The handler threads: each runs one execution after the other, and is replaced if it gets stuck."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.wording import counted

log = log_queue.Log(__name__)


class HandlerThread:
    """One thread that runs handlers.

    A thread cannot be ended from outside. If a handler runs on although its result does not count, its thread counts
    as stuck: another thread replaces it, and the stuck thread ends when its handler does.
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
        """Whether the thread has ended because of a defect; a stuck thread may also end before it is replaced."""
        return not self._thread.is_alive() and not self._lost

    def overdue(self, seconds: float) -> LeasedExecution | None:
        """Return the execution that was lost more than `seconds` ago while its handler still runs; None if none was."""
        execution = self._execution
        return execution if execution is not None and now() - execution.lost_at > seconds else None

    def give_up(self, execution: LeasedExecution) -> bool:
        """Count the thread as stuck; return False if its handler has just ended."""
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
            # Free the execution before waiting, so that its payload does not stay in memory.
            del execution
            if not self._finish():
                return
            if waiting.qsize() <= leases.low_water and not space.is_set():
                space.set()

    def _finish(self) -> bool:
        """Count a handler as ended; return False if the thread was replaced meanwhile."""
        with self._lock:
            self._execution = None
            if not self._lost:
                self._leases.finished[self.number] += 1
            return not self._lost


class HandlerPool:
    """The handler threads of a worker.

    Args:
        interrupt_grace: seconds for which a handler may run after it was told that its result will not count.
        max_stuck_threads: the number of stuck threads at which the process needs a restart.
        on_restart_required: called with the reason while that many threads are stuck.
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
        """Whether all threads run."""
        return not any(thread.fallen for thread in self._threads)

    @property
    def lost(self) -> int:
        """The number of stuck threads, whose handlers are still running although their results do not count."""
        self._lost = [thread for thread in self._lost if thread.alive]
        return len(self._lost)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell each thread to end after its present handler."""
        for _ in self._threads:
            self._leases.waiting.put(None)

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the threads that are not stuck; return True if all have ended."""
        deadline = now() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - now()))
        return not any(thread.alive for thread in self._threads)

    def replace_lost(self) -> None:
        """Replace the threads that are stuck. One thread calls this."""
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
                "%s of %s is still running although its result does not count (%s); its stuck thread is replaced. "
                "Stuck threads: %s.",
                execution.task.name, execution.key, execution.lost, self.lost, extra=execution.fields,
            )  # fmt: skip
        if self._lost and self.lost >= self._max_stuck_threads:
            self._on_restart_required(f"{counted(self.lost, 'thread')} stuck in handlers that do not end")
