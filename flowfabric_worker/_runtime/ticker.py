"""The scheduler: submits the ticks of tasks that run by themselves."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import attrs

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker._runtime.outage_log import OutageLog
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.call_retries import disable_call_retries
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.schedules import Paused, Ticked, TickScheduleArgs, TickScheduleResult
from flowfabric_worker.schedule import MAX_COUNTED, Due, Missed, Schedule
from flowfabric_worker.task import Task, creation_of

log = log_queue.Log(__name__)

# How long a process leads unless it renews that. Another one takes over within this time, long before a tick is missed.
LEADS_FOR: Final = timedelta(seconds=6)
# The leader asks for the store's time, and renews, at least so often, in seconds.
_RENEW_EVERY: Final = 2.0
# How long it waits after something went wrong, seconds; twice as long each time, up to the longest.
_BACKOFF: Final = 0.2
_LONGEST_BACKOFF: Final = 2.0
# A schedule that the store refused is offered again after this.
_RETRY_AFTER: Final = timedelta(seconds=1)
# Followers spread their questions over so many seconds.
_SPREAD: Final = 0.5
# Schedules that are written down for the store before they are sent, so that the first ones start early.
_PORTION: Final = 100

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@attrs.define(kw_only=True)
class _Scheduled:
    """A task with its schedule.

    Attributes:
        last: up to where the store has its ticks done with; None while that is to be asked.
        following: when to look at it next: at the first tick behind `last`, or later after an error.
    """

    task: Task[..., Any]
    schedule: Schedule
    missed: Missed
    last: datetime | None = None
    following: datetime = _EPOCH

    def due(self, moment: datetime) -> Due | None:
        """Return what to submit: None if nothing is due; nothing where the store has to be asked first."""
        if self.following > moment:
            return None
        return Due() if self.last is None else self.schedule.due(self.last, moment, self.missed) or None


class Ticker(OwnedThread):
    """Submit ticks when they are due by the store's clock, in one thread. It runs no code of users.

    Any number of workers may have one for the same tasks. One of them leads and submits; the others stand by, and one
    takes over when the leader has not been heard of. Each tick is submitted once even if two of them lead.

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
        self._group = _group_of(self._scheduled)
        self._process = uuid4().hex
        self._outage_log = OutageLog(log, "Serving schedules")
        self._stopping = threading.Event()
        super().__init__("ticker", needed=bool(self._scheduled))

    def stop(self) -> None:
        """Tell the thread to end after the call that it waits for."""
        self._stopping.set()

    def tick(self) -> float | None:
        """Submit every tick that is due, in this thread, whichever process leads.

        Returns:
            The seconds until the next one, by the store's clock; None when no task has a schedule.

        Raises:
            EngineError: the store cannot be reached, or refused a schedule; the others were served all the same.
        """
        if not self._scheduled:
            return None
        moment = _moment(self._engine.server_time())
        error = self._serve(moment)
        if error is not None:
            raise error
        return self._until_next(moment)

    # The thread

    def _work(self) -> None:
        disable_call_retries()
        backoff = _BACKOFF
        wait = 0.0
        leading = False
        while not self._stopping.wait(wait):
            wait, leading, error = self._round(leading)
            if error is None:
                backoff = _BACKOFF
                self._outage_log.over()
            else:
                self._outage_log.note(error)
                wait = min(wait, backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF)
        if leading:
            self._resign()

    def _round(self, led: bool) -> tuple[float, bool, EngineError | None]:
        """Serve every schedule if this process leads.

        Returns how many seconds to wait before the next round, whether this process leads, and what went wrong.
        """
        unled: EngineError | None = None
        try:
            leadership = self._engine.lead_schedules(self._group, self._process, LEADS_FOR)
            moment = _moment(leadership.now_ms)
            if not leadership.leads:
                self._forget_progress()
                lasts = (leadership.until_ms - leadership.now_ms) / 1000
                return min(LEADS_FOR.total_seconds(), lasts) + random.uniform(0.001, _SPREAD), False, None
        except EngineError as error:
            # The other partitions may be there, and each tick is submitted once in any case.
            unled = error
            try:
                moment = _moment(self._engine.server_time())
            except EngineError:
                return _LONGEST_BACKOFF, led, error
        asked_at = now()
        failed = self._serve(moment)
        # What serving took is no part of the wait.
        wait = self._until_next(moment) - (now() - asked_at)
        return min(_RENEW_EVERY, max(0.0, wait)), True, unled or failed

    def _forget_progress(self) -> None:
        """Ask the store again how far each schedule is when this process leads: another one does meanwhile."""
        for each in self._scheduled:
            each.last, each.following = None, _EPOCH

    def _resign(self) -> None:
        try:
            self._engine.resign_schedules(self._group, self._process)
        except EngineError as error:
            log.debug("Another process leads in %s s: %s", LEADS_FOR.total_seconds(), error)

    def _until_next(self, moment: datetime) -> float:
        """Return the seconds from a moment to the first tick behind it."""
        return max(0.0, (min(each.following for each in self._scheduled) - moment).total_seconds())

    # Serving

    def _serve(self, moment: datetime) -> EngineError | None:
        """Submit what is due at a moment; return the first error."""
        failed: EngineError | None = None
        open_ = self._scheduled
        while open_ and not self._stopping.is_set():
            asked = [(each, due) for each in open_ if (due := each.due(moment)) is not None]
            # What was asked for the first time, or is far behind, has more that is due.
            open_ = []
            for first in range(0, len(asked), _PORTION):
                portion = asked[first : first + _PORTION]
                if self._stopping.is_set():
                    return failed
                try:
                    answers = self._engine.tick_schedules([_args(each, due, moment) for each, due in portion])
                except EngineError as error:
                    # The others would have to wait for the same store.
                    return error
                for (each, due), answer in zip(portion, answers, strict=True):
                    if isinstance(answer, EngineError):
                        each.following = moment + _RETRY_AFTER
                        failed = failed or answer
                    elif self._note(each, due, answer):
                        open_.append(each)
        return failed

    @staticmethod
    def _note(each: _Scheduled, due: Due, answer: TickScheduleResult) -> bool:
        """Learn how far a schedule is; return whether more of it may be due."""
        if isinstance(answer, Paused):
            # How far it is shows when it goes on: what would have been due meanwhile is skipped.
            each.last = None
            return False
        if isinstance(answer, Ticked):
            each.last = due.ticks[-1] if due.ticks else due.missed_until
            _tell(each, due)
        else:
            each.last = _moment(answer.last_tick_ms)
        assert each.last is not None, "what was submitted or missed has a last tick"
        each.following = each.schedule.next_after(each.last)
        return True


def _args(each: _Scheduled, due: Due, moment: datetime) -> TickScheduleArgs:
    """Return what to ask of the store."""
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
        then = f"the one of {due.ticks[-1]:%Y-%m-%d %H:%M:%S} runs" if due.ticks else "none of them runs"
        log.warning(
            "%s missed %s %stick(s), which no worker was there for within 30 s; %s (missed=%r).",
            each.task.name, due.missed, more, then, each.missed,
        )  # fmt: skip
    else:
        log.debug("%s is submitted by its schedule: %s tick(s).", each.task.name, len(due.ticks))


def _group_of(scheduled: Sequence[_Scheduled]) -> str:
    """Name the processes that have these very schedules: one of them can serve for all."""
    text = "\n".join(sorted(f"{each.task.name}\0{each.schedule.spec}\0{each.missed}" for each in scheduled))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _moment(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)
