"""Suspects: executions that may kill their process, and so run in turns, apart from the other work of a process."""

from __future__ import annotations

from typing import Final

from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker.engine import log_queue

log = log_queue.Log(__name__)

# The most seconds that a turn waits for other handlers to end, and for which the suspect then runs isolated.
ISOLATE_WITHIN: Final = 5.0
ISOLATE_FOR: Final = 5.0
# The most seconds that a suspect waits until the log line that names it is written.
LOGGED_WITHIN: Final = 0.5


class Suspects:
    """Run suspects in turns, in a process that also does other work. Only the claimer's thread uses this.

    During a turn no other execution begins: the turn waits until the other handlers have ended, begins one suspect,
    and waits for its end. Each wait is bounded. After a turn other work runs for at least as long as the turn took.
    """

    def __init__(self, leases: LeaseTable) -> None:
        self._leases = leases
        self._running: LeasedExecution | None = None
        self._turn_began = 0.0
        # The end of the present wait of a turn; None between two turns.
        self._until: float | None = None
        self._next_turn = 0.0

    def due_in(self) -> float | None:
        """Return the seconds until the next turn; None if no suspect waits for one."""
        return max(0.0, self._next_turn - now()) if self._waits() else None

    def _waits(self) -> bool:
        """Return True if a suspect waits for a turn in this process."""
        return bool(self._leases.suspects) and not self._leases.suspects_isolated

    def take_turn(self) -> float:
        """Advance a turn, or begin one that is due; return the seconds for which no other execution may begin."""
        moment = now()
        if self._until is None:
            if not self._waits() or moment < self._next_turn:
                return 0.0
            self._turn_began, self._until = moment, moment + ISOLATE_WITHIN
        if self._running is None and not self._begin(moment):
            return self._until - moment if self._leases.suspects else self._end(moment)
        if self._is_over(moment):
            return self._end(moment)
        return self._until - moment

    def _begin(self, moment: float) -> bool:
        """Begin a suspect if no other handler runs or the wait is over; return True if a suspect runs."""
        assert self._until is not None
        if self._leases.outstanding() > 0 and moment < self._until:
            return False
        try:
            execution = self._leases.suspects.popleft()
        except IndexError:
            # The lease keeper has handed the suspect over to a waiting worker.
            return False
        log.warning(
            "%s of %s runs isolated: its worker was lost %s times.",
            execution.task.name, execution.key, execution.claimed.reclaim_count, extra=execution.fields,
        )  # fmt: skip
        # Write the log first, because the suspect may kill this process at once.
        log_queue.flush(LOGGED_WITHIN)
        self._running, self._until = execution, moment + ISOLATE_FOR
        self._leases.begin(execution)
        return True

    def _is_over(self, moment: float) -> bool:
        assert self._running is not None
        assert self._until is not None
        running = self._running
        return moment >= self._until or running.ended or running.lost is not None or not self._leases.holds(running)

    def _end(self, moment: float) -> float:
        """End the turn, so that other work begins again."""
        self._running, self._until = None, None
        self._next_turn = moment + (moment - self._turn_began)
        return 0.0
