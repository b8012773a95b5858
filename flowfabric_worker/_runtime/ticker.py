"""The ticker: submits the ticks of schedules."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import attrs

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker._runtime.outage_log import OutageLog
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.call_retries import disable_call_retries
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.moments import EPOCH, moment_of
from flowfabric_worker.engine.types.schedules import Paused, Ticked, TickScheduleArgs, TickScheduleResult
from flowfabric_worker.schedule import MAX_COUNTED, Due, Missed, Schedule
from flowfabric_worker.task import Task, creation_of

log = log_queue.Log(__name__)

# How long a process leads without renewal, which is much less than the time after which a tick counts as missed.
LEADS_FOR: Final = timedelta(seconds=6)
# The most seconds between two calls by which the leader renews its leadership.
_RENEW_EVERY: Final = 2.0
# Seconds to wait after an error: at first, and at most.
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0
# The pause after which a schedule that the store refused is sent again.
_RETRY_AFTER: Final = timedelta(seconds=1)
# Followers spread their calls over this many seconds.
_SPREAD: Final = 0.5
# The most schedules in one call, so that the first ones need not wait for all.
_BATCH: Final = 100


@attrs.define(kw_only=True)
class _Scheduled:
    """A task with its schedule.

    Attributes:
        last: the last tick that the store has handled; None if it is not known.
        following: when to serve the schedule next: at the first tick after `last`, or later after an error.
    """

    task: Task[..., Any]
    schedule: Schedule
    missed: Missed
    last: datetime | None = None
    following: datetime = EPOCH

    def due(self, moment: datetime) -> Due | None:
        """Return the ticks to submit; None if none is due, and an empty `Due` if `last` has to be read first."""
        if self.following > moment:
            return None
        return Due() if self.last is None else self.schedule.due(self.last, moment, self.missed) or None


class Ticker(OwnedThread):
    """Submit ticks when they are due by the store's clock, in one thread. It runs no code of users.

    Any number of workers may have a ticker for the same tasks. One of them leads and submits. The others are followers,
    and one of them takes over when the leader is silent. Each tick is submitted once, even if two tickers lead.

    Args:
        engine: the engine that submits.
        tasks: the tasks of the worker; those without a schedule are ignored.
    """

    def __init__(self, engine: EngineBackend, tasks: Iterable[Task[..., Any]]) -> None:
        self._engine = engine
        self._scheduled = [
            _Scheduled(task=task, schedule=task.schedule, missed=task.options_given.missed)
            for task in tasks
            if task.schedule is not None
        ]
        self._group = _group_of(self._scheduled)
        self._process = uuid4().hex
        self._outage_log = OutageLog(log, "Serving schedules")
        self._stopping = threading.Event()
        super().__init__("ticker", needed=bool(self._scheduled))

    def stop(self) -> None:
        """Tell the thread to end after its present call."""
        self._stopping.set()

    def tick(self) -> float | None:
        """Submit every tick that is due, in this thread, even if another process leads.

        Returns:
            The seconds until the next tick, by the store's clock; None if no task has a schedule.

        Raises:
            EngineError: the store cannot be reached, or refused a schedule; the other schedules were served.
        """
        if not self._scheduled:
            return None
        moment = moment_of(self._engine.server_time())
        error = self._serve(moment)
        if error is not None:
            raise error
        return self._until_next(moment)

    # The thread

    def _work(self) -> None:
        disable_call_retries()
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        wait = 0.0
        leading = False
        while not self._stopping.wait(wait):
            wait, leading, error = self._round(leading)
            if error is None:
                backoff.reset()
                self._outage_log.over()
            else:
                self._outage_log.note(error)
                wait = min(wait, backoff.next())
        if leading:
            self._resign()

    def _round(self, led: bool) -> tuple[float, bool, EngineError | None]:
        """Serve every schedule if this process leads.

        Returns:
            The seconds until the next round, True if this process leads, and the first error.
        """
        unled: EngineError | None = None
        try:
            leadership = self._engine.lead_schedules(self._group, self._process, LEADS_FOR)
            moment = moment_of(leadership.now_ms)
            if not leadership.leads:
                self._forget_progress()
                lasts = (leadership.until_ms - leadership.now_ms) / 1000
                return min(LEADS_FOR.total_seconds(), lasts) + random.uniform(0.001, _SPREAD), False, None
        except EngineError as error:
            # Serve the schedules anyway: their partitions may be available, and each tick is submitted only once.
            unled = error
            try:
                moment = moment_of(self._engine.server_time())
            except EngineError:
                return _LONGEST_PAUSE, led, error
        asked_at = now()
        failed = self._serve(moment)
        # Subtract the time that serving took.
        wait = self._until_next(moment) - (now() - asked_at)
        return min(_RENEW_EVERY, max(0.0, wait)), True, unled or failed

    def _forget_progress(self) -> None:
        """Forget the last ticks, which another leader changes, so that they are read again when this process leads."""
        for each in self._scheduled:
            each.last, each.following = None, EPOCH

    def _resign(self) -> None:
        try:
            self._engine.resign_schedules(self._group, self._process)
        except EngineError as error:
            log.debug("Another process leads in %s s: %s", LEADS_FOR.total_seconds(), error)

    def _until_next(self, moment: datetime) -> float:
        """Return the seconds from a moment to the next tick of any schedule."""
        return max(0.0, (min(each.following for each in self._scheduled) - moment).total_seconds())

    # Serving

    def _serve(self, moment: datetime) -> EngineError | None:
        """Submit the ticks that are due at a moment; return the first error."""
        failed: EngineError | None = None
        open_ = self._scheduled
        while open_ and not self._stopping.is_set():
            asked = [(each, due) for each in open_ if (due := each.due(moment)) is not None]
            # Continue with schedules that may have more due ticks: those read for the first time, or far behind.
            open_ = []
            for first in range(0, len(asked), _BATCH):
                batch = asked[first : first + _BATCH]
                if self._stopping.is_set():
                    return failed
                try:
                    answers = self._engine.tick_schedules([_args(each, due, moment) for each, due in batch])
                except EngineError as error:
                    # Stop here, because the other schedules are in the same store.
                    return error
                for (each, due), answer in zip(batch, answers, strict=True):
                    if isinstance(answer, EngineError):
                        each.following = moment + _RETRY_AFTER
                        failed = failed or answer
                    elif self._note(each, due, answer):
                        open_.append(each)
        return failed

    @staticmethod
    def _note(each: _Scheduled, due: Due, answer: TickScheduleResult) -> bool:
        """Record the last tick of a schedule; return True if more of its ticks may be due."""
        if isinstance(answer, Paused):
            # Read the last tick again after the pause, whose ticks are skipped.
            each.last = None
            return False
        if isinstance(answer, Ticked):
            each.last = due.ticks[-1] if due.ticks else due.missed_until
            _tell(each, due)
        else:
            each.last = moment_of(answer.last_tick_ms)
        assert each.last is not None, "ticks that were submitted or missed have a last one"
        each.following = each.schedule.next_after(each.last)
        return True


def _args(each: _Scheduled, due: Due, moment: datetime) -> TickScheduleArgs:
    """Return the arguments of the call for one schedule."""
    each.following = each.schedule.next_after(moment)
    return TickScheduleArgs(
        name=each.task.name,
        spec=each.schedule.spec,
        creation=creation_of(each.task),
        expected=each.last if due else None,
        ticks=due.ticks,
        missed=due.missed,
        missed_until=due.missed_until,
        next_tick=each.following,
    )


def _tell(each: _Scheduled, due: Due) -> None:
    if due.missed:
        more = "or more " if each.schedule.cron is not None and due.missed >= MAX_COUNTED else ""
        then = f"the one of {due.ticks[-1]:%Y-%m-%d %H:%M:%S} runs" if due.ticks else "none of them runs now"
        log.warning(
            "%s missed %s %stick(s), because no worker ran within 30 s of them; %s (missed=%r).",
            each.task.name, due.missed, more, then, each.missed,
        )  # fmt: skip
    else:
        log.debug("The schedule of %s submitted %s tick(s).", each.task.name, len(due.ticks))


def _group_of(scheduled: Sequence[_Scheduled]) -> str:
    """Return a name for the group of processes with exactly these schedules, one of which serves them."""
    text = "\n".join(sorted(f"{each.task.name}\0{each.schedule.spec}\0{each.missed}" for each in scheduled))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
