"""A runtime without threads, which runs what is due in the caller's thread."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.completer import Completer
from flowfabric_worker._runtime.execution_log import ExecutionLog
from flowfabric_worker._runtime.frame_appender import InlineAppender
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.context import TaskContext
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.limits import MAX_LANES_PER_CLAIM, MAX_LEASE_MS, MAX_PAGE_SIZE, Limits
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, EndedByClaim, LaneRequest
from flowfabric_worker.listing import rows_of
from flowfabric_worker.middleware import Around, Middleware, arounds_of
from flowfabric_worker.task import Task

INSTANCE: Final = "inline"
# Take the longest lease, because this runtime renews none.
_POLICY: Final = ClaimPolicy(
    worker_id=INSTANCE, worker_instance_id=INSTANCE, lease=timedelta(milliseconds=MAX_LEASE_MS)
)


class InlineRuntime:
    """Run the tasks of a worker in the caller's thread.

    Args:
        engine: the engine on the store of the executions.
        limits: the sizes that an operator allows.
        tasks: the tasks by name; each claim reads them again.
        middleware: the middleware of the worker.
        capabilities: capabilities in addition to those that the tasks require.
        schedules: True to submit the ticks of schedules too.
    """

    def __init__(
        self,
        engine: EngineBackend,
        limits: Limits,
        tasks: Mapping[str, Task[..., Any]],
        middleware: tuple[Middleware | Around, ...],
        capabilities: Collection[str],
        *,
        schedules: bool = False,
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._given_capabilities = frozenset(capabilities)
        self._interrupt: KeyboardInterrupt | None = None
        self._ticker = Ticker(engine, tasks.values() if schedules else ())
        self._hooks = Hooks(middleware, engine)
        self._execution_log = ExecutionLog()
        self._completer = Completer(LeaseTable(1), engine, self._hooks, self._execution_log)
        arounds = (self._note_interrupt, *arounds_of(middleware))
        self._attempt_runner = AttemptRunner(
            self._completer, InlineAppender(engine), engine, limits, self._hooks, arounds
        )

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that claims name."""
        return self._given_capabilities.union(*(task.options_given.requires for task in self._tasks.values()))

    def run_until_idle(self, most: float = math.inf) -> int:
        """Run everything that is due, including what the handlers submit; return how many times a handler ran.

        Args:
            most: the number of handler runs after which to stop.
        """
        count = 0
        while count < most and (claimed := self._next()):
            for each in claimed:
                self._run(each)
                count += 1
        return count

    def _next(self) -> list[Claimed]:
        """Claim the next executions; return an empty list if no execution is due any more."""
        while True:
            self._ticker.tick()
            # Claim again after the timers: a claim handles only some of those that are due.
            claimed = self._claim()
            if claimed or not self._handle_due():
                return claimed

    def _handle_due(self) -> bool:
        """Handle the timers that are due; return True if there was one."""
        return self._engine.run_upkeep().handled > 0

    def _claim(self) -> list[Claimed]:
        lanes = [LaneRequest(lane=lane) for lane in self._lanes()]
        for first in range(0, len(lanes), MAX_LANES_PER_CLAIM):
            request = ClaimRequest(
                lanes=lanes[first : first + MAX_LANES_PER_CLAIM],
                policy=_POLICY,
                capabilities=self.capabilities,
                tasks=frozenset(self._tasks),
                on_ended=self._tell_ended,
            )
            claimed = self._engine.claim_many(request)
            if claimed:
                return claimed
        return []

    def _tell_ended(self, ended: EndedByClaim) -> None:
        self._execution_log.ended_by_claim(ended)
        self._hooks.ended_by_claim(ended)

    def _lanes(self) -> Iterator[str]:
        """Read every lane of the store by name, because a handler may have submitted to a new one."""

        def read(cursor: str | None) -> tuple[list[str], str | None]:
            page = self._engine.list_lanes(cursor, MAX_PAGE_SIZE)
            return [each.lane for each in page.lanes], page.next_cursor

        return rows_of(read)

    def _run(self, claimed: Claimed) -> None:
        execution = hold(claimed, self._tasks[claimed.task], now(), self._hooks.lost)
        self._hooks.tell("on_claim", execution)
        with self._watched(execution):
            self._attempt_runner.run(execution)
        if execution.ends_at < math.inf:
            # Let a timeout that passed while the handler ran end the execution before its outcome is sent.
            self._handle_due()
        self._completer.flush()
        self._execution_log.flush()
        self._hooks.flush()
        interrupt, self._interrupt = self._interrupt, None
        if interrupt is not None:
            raise interrupt

    @contextmanager
    def _watched(self, execution: LeasedExecution) -> Iterator[None]:
        """Tell the handler when its time is over, as the lease keeper of a worker does."""
        if execution.ends_at == math.inf:
            yield
            return
        timer = threading.Timer(max(0.0, execution.ends_at - now()), self._end_if_over, (execution,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_if_over(self, execution: LeasedExecution) -> None:
        """Lose the execution if its time is over by the store's clock, which may stand still in tests."""
        moments = [execution.claimed.timeout_at_ms, execution.claimed.deadline_at_ms]
        if self._engine.server_time() >= min(moment for moment in moments if moment is not None):
            execution.lose("timeout")

    @contextmanager
    def _note_interrupt(self, _context: TaskContext) -> Iterator[None]:
        """Note a Ctrl-C during a handler, so that it is raised in the caller too."""
        try:
            yield
        except KeyboardInterrupt as interrupt:
            self._interrupt = interrupt
            raise
