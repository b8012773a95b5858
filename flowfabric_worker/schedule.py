"""Schedules compute when a task is submitted; they use neither a clock nor a store.

`croniter` reads cron expressions and finds the next local time. This module decides what happens when the clocks of a
time zone change, because croniter runs a local time that occurs twice two times.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import attrs

from flowfabric_worker.engine.limits import MAX_DURATION_MS
from flowfabric_worker.engine.moments import EPOCH
from flowfabric_worker.engine.types.schedules import MAX_TICKS

Missed: TypeAlias = Literal["latest", "all", "none"]
"""Which missed ticks run: only the latest one, all of them, or none."""

# A tick that is late by less than this still runs: the worker was only busy, or restarting.
ON_TIME: Final = timedelta(seconds=30)
# The most missed ticks of a cron expression that are counted, because they are counted one by one.
MAX_COUNTED: Final = 100


_SECOND: Final = timedelta(seconds=1)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LONGEST: Final = timedelta(milliseconds=MAX_DURATION_MS)
_DAY_SECONDS: Final = 86400
_LONGEST_CRON: Final = 150
_ALIAS: Final = re.compile(r"@[a-z]+")
# Fields that croniter fills at random, so that two workers would disagree.
_DRAWN: Final = re.compile(r"(?<![a-z])[hr](?![a-z])", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Due:
    """The ticks of a schedule that are due.

    Attributes:
        ticks: the ticks to submit, oldest first; at most `MAX_TICKS`.
        missed: how many earlier ticks are skipped because they are too late; for a cron expression at most
            `MAX_COUNTED`, even if there were more.
        missed_until: the last missed tick; None if there is none.
    """

    ticks: tuple[datetime, ...] = ()
    missed: int = 0
    missed_until: datetime | None = None

    def __bool__(self) -> bool:
        return bool(self.ticks or self.missed)


class _Rule(Protocol):
    """Find the ticks of a schedule."""

    def next_after(self, moment: datetime) -> datetime: ...


def _tidy(cron: str | None) -> str | None:
    return " ".join(cron.split()) if isinstance(cron, str) else cron


@attrs.frozen(kw_only=True)
class Schedule:
    """The times at which a task is submitted: at an interval, or by a cron expression in a time zone.

    Intervals are counted from 1970-01-01 00:00 UTC, so that all workers agree without communication.

    A cron expression for every hour, such as `*/5 * * * *`, runs by elapsed time, also through an hour that occurs
    twice. An expression that names hours, such as `30 2 * * *` or `0 */2 * * *`, runs once at each local time that it
    names: a local time that is skipped runs right after the skip, and one that occurs twice runs the first time.

    Attributes:
        every: the time between two ticks, in whole milliseconds, from a second to a century.
        cron: minute, hour, day of month, month, day of week; or a word such as `@daily`.
        timezone: the time zone of `cron`, such as "Europe/Berlin".

    Raises:
        TypeError: neither or both of `every` and `cron` are given, or a time zone without `cron`.
        ValueError: the interval is too short or too long, the time zone does not exist, or the expression is not
            valid or never matches.
    """

    every: timedelta | None = None
    cron: str | None = attrs.field(default=None, converter=_tidy)
    timezone: str = "UTC"
    _rule: _Rule = attrs.field(init=False, repr=False, eq=False)

    @_rule.default
    def _find_rule(self) -> _Rule:
        if (self.every is None) == (self.cron is None):
            raise TypeError("A schedule takes either every= or cron=.")
        if self.cron is not None:
            return _cron_rule(self.cron, _zone(self.timezone))
        if self.timezone != "UTC":
            raise TypeError("timezone= belongs to cron=: an interval is counted in UTC.")
        return _Interval(self.every)

    @property
    def spec(self) -> str:
        """The schedule as text, such as `every 5m` or `cron */5 * * * * Europe/Berlin`."""
        if self.every is not None:
            return f"every {_spoken(self.every)}"
        return f"cron {self.cron} {self.timezone}"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first tick after a moment with a time zone, in UTC."""
        return self._rule.next_after(moment.astimezone(UTC))

    def due(self, last: datetime, now: datetime, missed: Missed = "latest") -> Due:
        """Return the ticks to submit, and the number of missed ticks.

        A tick is missed when it is more than `ON_TIME` late. Ticks that are on time always run.

        Args:
            last: the last tick that was handled.
            now: the time of the store's clock.
            missed: which missed ticks run; with "latest" one of them runs, unless a tick that is on time does.

        Returns:
            The ticks; if more than `MAX_TICKS` are due, the first ones, and the next call continues after them.
        """
        if missed == "all":
            return Due(ticks=tuple(islice(self._ticks(last, now), MAX_TICKS)))
        too_late = now - ON_TIME - _MILLISECOND
        late = self._latest(last, too_late)
        ticks = tuple(self._ticks(max(last, too_late), now))
        if late is None:
            return Due(ticks=ticks)
        count = self._count(last, late)
        if missed == "latest" and not ticks:
            return Due(ticks=(late,), missed=count - 1)
        return Due(ticks=ticks, missed=count, missed_until=late)

    def _ticks(self, last: datetime, now: datetime) -> Iterator[datetime]:
        while (last := self.next_after(last)) <= now:
            yield last

    def _count(self, last: datetime, end: datetime) -> int:
        """Count the ticks after `last` up to and including `end`."""
        if self.every is not None:
            return (end - EPOCH) // self.every - (last - EPOCH) // self.every
        return sum(1 for _ in islice(self._ticks(last, end), MAX_COUNTED))

    def _latest(self, last: datetime, now: datetime) -> datetime | None:
        """Return the last tick up to `now`; None if there is none. It bisects, because there may be very many ticks."""
        tick = self.next_after(last)
        if tick > now:
            return None
        end = now
        while end - tick > _SECOND:
            middle = tick + (end - tick) / 2
            found = self.next_after(middle)
            if found <= now:
                tick = found
            else:
                end = middle
        while (found := self.next_after(tick)) <= now:
            tick = found
        return tick


def schedule_of(every: timedelta | None, cron: str | None, timezone: str, missed: str) -> Schedule | None:
    """Return the schedule of a task's options; None if they have none.

    Raises:
        TypeError, ValueError: see `Schedule`; or `timezone` or `missed` is given without a schedule.
    """
    if missed not in get_args(Missed):
        raise ValueError(f"missed= must be one of {', '.join(get_args(Missed))}, not {missed!r}.")
    if every is None and cron is None:
        if timezone != "UTC" or missed != "latest":
            raise TypeError("timezone= and missed= need a schedule: give every= or cron= too.")
        return None
    return Schedule(every=every, cron=cron, timezone=timezone)


def check_needs_nothing(function: Callable[..., Any], given: Collection[str]) -> None:
    """Check that a function can be called without arguments, except for the parameters in `given`.

    Raises:
        TypeError: a parameter has no default; the message names it.
    """
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty and parameter.kind not in optional and parameter.name not in given
    ]
    if needed:
        raise TypeError(f"A schedule calls its task without arguments: give {', '.join(needed)} a default.")


# Intervals


class _Interval:
    def __init__(self, every: timedelta | None) -> None:
        if not isinstance(every, timedelta) or not _SECOND <= every <= _LONGEST or every.microseconds % 1000:
            raise ValueError(
                f"every= must be a timedelta of whole milliseconds, from a second to a century, not {every!r}."
            )
        self._every = every

    def next_after(self, moment: datetime) -> datetime:
        return EPOCH + ((moment - EPOCH) // self._every + 1) * self._every


def _spoken(duration: timedelta) -> str:
    """Format a duration, such as `1h30m`."""
    rest = duration / timedelta(milliseconds=1)
    words = []
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)):
        count, rest = divmod(rest, size)
        if count:
            words.append(f"{count:.0f}{unit}")
    if rest:
        words.append(f"{rest / 1000:.6g}s")
    return "".join(words)


# Cron


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"There is no time zone {name!r}: use a name such as Europe/Berlin.") from error


def _cron_rule(cron: str, zone: ZoneInfo) -> _Rule:
    if not isinstance(cron, str) or len(cron) > _LONGEST_CRON:
        raise ValueError(f"cron= must be a text of at most {_LONGEST_CRON} characters.")
    if _ALIAS.fullmatch(cron) is None and (len(cron.split(" ")) != 5 or _DRAWN.search(cron)):
        raise ValueError(f"{cron!r} is not a cron expression: it must have 5 fields, such as */5 * * * *.")
    # Import croniter here, so that only applications with cron expressions load it.
    from croniter import croniter

    try:
        hours = croniter.expand(cron)[0][1]
        rule = _EveryHour(cron, zone) if hours == ["*"] or len(set(hours)) == 24 else _NamedHours(cron, zone)
        rule.next_after(EPOCH)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{cron!r} is not a cron expression that ever matches: {str(error).rstrip('.')}.") from error
    return rule


class _Cron:
    """Find local times that match an expression; a local time is a datetime without a zone."""

    def __init__(self, cron: str, zone: ZoneInfo) -> None:
        self._cron = cron
        self._zone = zone

    def _shown_at(self, moment: datetime) -> datetime:
        """Return the local time of the zone at a moment."""
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _next_time(self, time: datetime) -> datetime:
        from croniter import croniter

        found: datetime = croniter(self._cron, time.replace(microsecond=0, fold=0)).get_next(datetime)
        return found


class _EveryHour(_Cron):
    """Tick at every moment whose local time matches, also at the second occurrence of a local time."""

    def next_after(self, moment: datetime) -> datetime:
        shown = start = self._shown_at(moment)
        while True:
            time = self._next_time(start)
            wanted = moment + (time - shown)
            changed = _first_change(self._zone, moment, wanted)
            if changed is None:
                return wanted
            # The clocks change before that local time: search again from the change on, including it.
            moment, shown = changed, self._shown_at(changed)
            start = shown - _SECOND


class _NamedHours(_Cron):
    """Tick once at every local time that matches."""

    def next_after(self, moment: datetime) -> datetime:
        time = self._shown_at(moment)
        while True:
            time = self._next_time(time)
            tick = self._moment_of(time)
            # The moment may be past during the second occurrence of a local time, whose first one has run.
            if tick > moment:
                return tick

    def _moment_of(self, time: datetime) -> datetime:
        """Return the first moment of a local time; if the time is skipped, the moment right after the skip."""
        moment = time.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
        if self._shown_at(moment) == time:
            return moment
        before = time.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return _first_change(self._zone, before, moment) or moment


def _first_change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return the first change of a zone's clocks after `start` and up to `end`; None if they do not change."""
    first, last = int(start.timestamp()), int(end.timestamp())
    before = _offset(zone, first)
    while first < last:
        # No zone changes its clocks twice within a day.
        later = min(first + _DAY_SECONDS, last)
        if _offset(zone, later) != before:
            return _halve(zone, first, later)
        first = later
    return None


def _halve(zone: ZoneInfo, before: int, after: int) -> datetime:
    """Return the second at which the clocks change, by bisection: after `before`, and not after `after`."""
    offset = _offset(zone, before)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(zone, middle) == offset:
            before = middle
        else:
            after = middle
    return datetime.fromtimestamp(after, UTC)


def _offset(zone: ZoneInfo, second: int) -> timedelta | None:
    return datetime.fromtimestamp(second, zone).utcoffset()
