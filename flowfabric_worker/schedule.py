"""When a task runs by itself: arithmetic alone, without a clock and without a store.

`croniter` reads cron expressions and finds the next time on a clock that is never changed. What happens where people do
change their clocks is decided here, because zones are more than it knows: it runs a time that comes twice two times.
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
"""What becomes of ticks that were missed: the latest one runs, all of them do, or none."""

# A tick that is no older was not missed: the worker was only busy, or restarting.
ON_TIME: Final = timedelta(seconds=30)
# Missed ticks of a cron expression are counted one by one, and no further than this.
MAX_COUNTED: Final = 100


_SECOND: Final = timedelta(seconds=1)
_MILLISECOND: Final = timedelta(milliseconds=1)
_LONGEST: Final = timedelta(milliseconds=MAX_DURATION_MS)
_DAY_SECONDS: Final = 86400
_LONGEST_CRON: Final = 150
_ALIAS: Final = re.compile(r"@[a-z]+")
# croniter draws such a field at random, so two workers would disagree.
_DRAWN: Final = re.compile(r"(?<![a-z])[hr](?![a-z])", re.IGNORECASE)


@attrs.frozen(kw_only=True)
class Due:
    """What is due of a schedule.

    Attributes:
        ticks: the ticks to submit, oldest first; at most `MAX_TICKS`.
        missed: how many ticks before these do not run because they are too late; of a cron expression at most
            `MAX_COUNTED`, even if there were more.
        missed_until: the last of those that are missed.
    """

    ticks: tuple[datetime, ...] = ()
    missed: int = 0
    missed_until: datetime | None = None

    def __bool__(self) -> bool:
        return bool(self.ticks or self.missed)


class _Rule(Protocol):
    """Where the ticks lie."""

    def next_after(self, moment: datetime) -> datetime: ...


def _tidy(cron: str | None) -> str | None:
    return " ".join(cron.split()) if isinstance(cron, str) else cron


@attrs.frozen(kw_only=True)
class Schedule:
    """When a task runs by itself: `every` so long, or at the times of a `cron` expression in a time zone.

    Intervals are counted from the beginning of 1970 in UTC, so that all workers agree without talking.

    A cron expression for every hour, such as `*/5 * * * *`, runs by elapsed time, also through an hour that the clocks
    show twice. One that names hours, such as `30 2 * * *` or `0 */2 * * *`, runs once at each time it names: a time
    that the clocks jump over runs right behind the jump, and of one that they show twice the first one counts.

    Attributes:
        every: the time from one tick to the next, whole milliseconds, a second to a century.
        cron: minute, hour, day of month, month, day of week; or a word such as `@daily`.
        timezone: whose clocks `cron` speaks of, such as "Europe/Berlin".

    Raises:
        TypeError: neither or both of `every` and `cron`, or a time zone without `cron`.
        ValueError: an interval that is too short or too long, no such zone, or an expression that is not valid or
            never fits.
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
        """The schedule in words, such as `every 5m` or `cron */5 * * * * Europe/Berlin`."""
        if self.every is not None:
            return f"every {_spoken(self.every)}"
        return f"cron {self.cron} {self.timezone}"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first tick after a moment with a time zone; in UTC."""
        return self._rule.next_after(moment.astimezone(UTC))

    def due(self, last: datetime, now: datetime, missed: Missed = "latest") -> Due:
        """Tell which ticks to submit, and how many are left out because they were missed.

        A tick is missed when it is more than `ON_TIME` late. Those that are on time run whatever `missed` says.

        Args:
            last: up to where ticks are done with.
            now: the store's clock.
            missed: what becomes of missed ticks: with "latest" one of them runs, unless one that is on time does.

        Returns:
            The ticks; of more than `MAX_TICKS` the first ones, and the next call goes on behind them.
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
        """Count the ticks behind `last` and until `end`."""
        if self.every is not None:
            return (end - EPOCH) // self.every - (last - EPOCH) // self.every
        return sum(1 for _ in islice(self._ticks(last, end), MAX_COUNTED))

    def _latest(self, last: datetime, now: datetime) -> datetime | None:
        """Find the last tick that is due by halving the time, since there may have been very many."""
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
    """Return the schedule that the options of a task tell of; None when they tell of none.

    Raises:
        TypeError, ValueError: see `Schedule`; or options of a schedule where there is none.
    """
    if missed not in get_args(Missed):
        raise ValueError(f"missed= is one of {', '.join(get_args(Missed))}, not {missed!r}.")
    if every is None and cron is None:
        if timezone != "UTC" or missed != "latest":
            raise TypeError("timezone= and missed= belong to a schedule: give every= or cron= too.")
        return None
    return Schedule(every=every, cron=cron, timezone=timezone)


def check_needs_nothing(function: Callable[..., Any], given: Collection[str]) -> None:
    """Check that a function can be called without arguments, beside the parameters that are `given`.

    Raises:
        TypeError: it cannot; the message names what is missing.
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
            raise ValueError(f"every= is a timedelta of whole milliseconds, a second to a century, not {every!r}.")
        self._every = every

    def next_after(self, moment: datetime) -> datetime:
        return EPOCH + ((moment - EPOCH) // self._every + 1) * self._every


def _spoken(duration: timedelta) -> str:
    """Return a duration in short, such as `1h30m`."""
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
        raise ValueError(f"There is no time zone {name!r}; one is named like Europe/Berlin.") from error


def _cron_rule(cron: str, zone: ZoneInfo) -> _Rule:
    if not isinstance(cron, str) or len(cron) > _LONGEST_CRON:
        raise ValueError(f"cron= is a text of at most {_LONGEST_CRON} characters.")
    if _ALIAS.fullmatch(cron) is None and (len(cron.split(" ")) != 5 or _DRAWN.search(cron)):
        raise ValueError(f"{cron!r} is no cron expression: it has 5 fields, such as */5 * * * *.")
    # The import stands here, so that only applications with cron expressions load croniter.
    from croniter import croniter

    try:
        hours = croniter.expand(cron)[0][1]
        rule = _EveryHour(cron, zone) if hours == ["*"] or len(set(hours)) == 24 else _NamedHours(cron, zone)
        rule.next_after(EPOCH)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{cron!r} is no cron expression that ever fits: {str(error).rstrip('.')}.") from error
    return rule


class _Cron:
    """Finds times on a clock that is never changed; a time is a datetime without a zone."""

    def __init__(self, cron: str, zone: ZoneInfo) -> None:
        self._cron = cron
        self._zone = zone

    def _shown_at(self, moment: datetime) -> datetime:
        """Return what the clocks of the zone show."""
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _next_time(self, time: datetime) -> datetime:
        from croniter import croniter

        found: datetime = croniter(self._cron, time.replace(microsecond=0, fold=0)).get_next(datetime)
        return found


class _EveryHour(_Cron):
    """Each moment at which the clocks show a time that fits, whether they show it for the first time or again."""

    def next_after(self, moment: datetime) -> datetime:
        shown = start = self._shown_at(moment)
        while True:
            time = self._next_time(start)
            wanted = moment + (time - shown)
            changed = _first_change(self._zone, moment, wanted)
            if changed is None:
                return wanted
            # The clocks are changed before they show it: look again from the change on, itself included.
            moment, shown = changed, self._shown_at(changed)
            start = shown - _SECOND


class _NamedHours(_Cron):
    """Each time that fits once."""

    def next_after(self, moment: datetime) -> datetime:
        time = self._shown_at(moment)
        while True:
            time = self._next_time(time)
            tick = self._moment_of(time)
            # Not so while the clocks show for the second time what has run already.
            if tick > moment:
                return tick

    def _moment_of(self, time: datetime) -> datetime:
        """Return when the clocks show a time first; of one that they jump over, when they have jumped."""
        moment = time.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
        if self._shown_at(moment) == time:
            return moment
        before = time.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        return _first_change(self._zone, before, moment) or moment


def _first_change(zone: ZoneInfo, start: datetime, end: datetime) -> datetime | None:
    """Return when the clocks of a zone are changed first, behind `start` and until `end`; None if they are not."""
    first, last = int(start.timestamp()), int(end.timestamp())
    before = _offset(zone, first)
    while first < last:
        # Clocks are not changed and changed back within a day.
        later = min(first + _DAY_SECONDS, last)
        if _offset(zone, later) != before:
            return _halve(zone, first, later)
        first = later
    return None


def _halve(zone: ZoneInfo, before: int, after: int) -> datetime:
    """Return the second at which the clocks are changed: after `before`, and not after `after`."""
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
