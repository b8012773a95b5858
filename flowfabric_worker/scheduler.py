"""The scheduler: submits the ticks of tasks that run by themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs

from flowfabric_worker.engine import reporting
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.types.schedules import Paused, Ticked, TickScheduleArgs
from flowfabric_worker.outages import Outage
from flowfabric_worker.schedule import Missed, Schedule
from flowfabric_worker.task import Task

log = reporting.Log(__name__)

# The store's clock is read anew at least this often, seconds: it may be set, and ours may go wrong.
_LONGEST_SLEEP: Final = 60.0
# How long it waits after something went wrong, seconds; twice as long each time, up to the longest.
_BACKOFF: Final = 0.2
_LONGEST_BACKOFF: Final = 2.0

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.define(kw_only=True)
class _Scheduled:
    """A task with its schedule.

    Attributes:
        last: up to where the store has its ticks done with; None while it was not asked.
    """

    task: Task[..., Any]
    schedule: Schedule
    missed: Missed
    last: datetime | None = None


class Scheduler:
    """One thread that submits ticks when they are due by the store's clock. It runs no code of users.

    Any number of workers may have one for the same tasks: each tick is submitted once.

    Args:
        engine: where to submit.
        tasks: those without a schedule are left alone.
    """

    def __init__(self, engine: EngineBackend, tasks: Iterable[Task[..., Any]]) -> None:
        self._engine = engine
        self._scheduled = [
            _Scheduled(task=task, schedule=task.schedule, missed=task.options_given.missed)
            for task in tasks
            if task.schedule is not None
        ]
        self._outage = Outage(log, "A schedule cannot be served")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flowfabric-scheduler", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread runs, or nothing is there for it to do."""
        return not self._scheduled or self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread, if a task has a schedule."""
        if self._scheduled:
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Waits for the thread, if it was started; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def tick(self) -> float | None:
        """Submits every tick that is due, in this thread.

        Returns:
            The seconds until the next one, by the store's clock; None when no task has a schedule.

        Raises:
            EngineError: the store cannot be reached, or refused a schedule; the others were served all the same.
        """
        seconds, error = self._round()
        if error is not None:
            raise error
        return seconds

    def _work(self) -> None:
        backoff = _BACKOFF
        wait = 0.0
        while not self._stopping.wait(wait):
            seconds, error = self._round()
            wait = min(_LONGEST_SLEEP, _LONGEST_SLEEP if seconds is None else seconds)
            if error is None:
                backoff = _BACKOFF
                self._outage.over()
            else:
                self._outage.note(error)
                wait = min(wait, backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF)

    def _round(self) -> tuple[float | None, EngineError | None]:
        """Serves every schedule; the seconds until the next tick, and the first error."""
        if not self._scheduled:
            return None, None
        failed: EngineError | None = None
        try:
            now = _moment(self._engine.server_time())
        except EngineError as error:
            return None, error
        following = []
        for each in self._scheduled:
            try:
                following.append(self._serve(each, now))
            except TransportError as error:
                # The others would have to wait for the same store, one after another.
                return None, error
            except EngineError as error:
                failed = failed or error
        seconds = max(0.0, (min(following) - now).total_seconds()) if following else None
        return seconds, failed

    def _serve(self, scheduled: _Scheduled, now: datetime) -> datetime:
        """Submits what is due of a schedule; returns its next tick."""
        following = scheduled.schedule.next_after(now)
        if scheduled.last is None and not self._submit(scheduled, (), following):
            return following
        while not self._stopping.is_set():
            assert scheduled.last is not None, "the store was asked"
            ticks = scheduled.schedule.due(scheduled.last, now, scheduled.missed)
            if not ticks or not self._submit(scheduled, ticks, following):
                break
        return following

    def _submit(self, scheduled: _Scheduled, ticks: tuple[datetime, ...], following: datetime) -> bool:
        """Offers ticks to the store, or only asks it; learns how far it is. False if the schedule is paused."""
        task = scheduled.task
        answer = self._engine.tick_schedule(
            TickScheduleArgs(
                name=task.name,
                spec=scheduled.schedule.spec,
                creation=task.creation(),
                expected=scheduled.last if ticks else None,
                ticks=ticks,
                next_tick=following,
            )
        )
        if isinstance(answer, Paused):
            # How far it is shows when it goes on: what would have been due meanwhile is skipped.
            scheduled.last = None
            return False
        if isinstance(answer, Ticked):
            scheduled.last = ticks[-1]
            log.info("%s runs by itself: %s tick(s), the last one of %s.", task.name, len(ticks), ticks[-1])
        else:
            scheduled.last = _moment(answer.last_tick_ms)
        return True


def _moment(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)
