"""When schedules tick: intervals, cron expressions, and what happens where clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest

from flowfabric_worker.engine.types.schedules import MAX_TICKS
from flowfabric_worker.schedule import MAX_COUNTED, ON_TIME, Due, Missed, Schedule, check_needs_nothing, schedule_of

BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"
NEW_YEAR = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def ticks(schedule: Schedule, after: str, count: int) -> list[str]:
    """Return the next ticks after a moment, in UTC."""
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)
    found = []
    for _ in range(count):
        moment = schedule.next_after(moment)
        found.append(moment.strftime("%m-%d %H:%M"))
    return found


# Where clocks are changed. In 2030 Berlin goes from UTC+1 to UTC+2 on 31 March at 01:00 UTC, and back on 27 October at
# 01:00 UTC. Lord Howe goes from UTC+11 to UTC+10:30 on 6 April at 15:00 UTC (its 7 April, 2:00 to 1:30), and back on
# 5 October at 15:30 UTC (its 6 October, 2:00 to 2:30).

CHANGES: dict[str, tuple[str, str, str, list[str]]] = {
    "a time that Berlin jumps over runs right behind the jump": (
        "30 2 * * *",
        BERLIN,
        "2030-03-30T00:00",
        ["03-30 01:30", "03-31 01:00", "04-01 00:30"],
    ),
    "two times that Berlin jumps over run once": (
        "15,45 2 * * *",
        BERLIN,
        "2030-03-30T01:45",
        ["03-31 01:00", "04-01 00:15"],
    ),
    "a time that is jumped over and one right behind the jump run once": (
        "0 2,3 * * *",
        BERLIN,
        "2030-03-30T02:00",
        ["03-31 01:00", "04-01 00:00", "04-01 01:00"],
    ),
    "a time that Berlin shows twice runs the first time": (
        "30 2 * * *",
        BERLIN,
        "2030-10-26T00:00",
        ["10-26 00:30", "10-27 00:30", "10-28 01:30"],
    ),
    "a time that has run does not run again when it is shown again": (
        "45 2 * * *",
        BERLIN,
        "2030-10-27T01:15",
        ["10-28 01:45"],
    ),
    "every hour through spring on Lord Howe, by the minute that is shown": (
        "0 * * * *",
        LORD_HOWE,
        "2030-10-05T14:00",
        ["10-05 14:30", "10-05 16:00", "10-05 17:00"],
    ),
    "every hour through autumn on Lord Howe, by the minute that is shown": (
        "0 * * * *",
        LORD_HOWE,
        "2030-04-06T13:30",
        ["04-06 14:00", "04-06 15:30", "04-06 16:30"],
    ),
    "every fifteen minutes through spring in Berlin": (
        "*/15 * * * *",
        BERLIN,
        "2030-03-31T00:30",
        ["03-31 00:45", "03-31 01:00", "03-31 01:15"],
    ),
    "every fifteen minutes through autumn in Berlin": (
        "*/15 * * * *",
        BERLIN,
        "2030-10-27T00:30",
        ["10-27 00:45", "10-27 01:00", "10-27 01:15", "10-27 01:30", "10-27 01:45", "10-27 02:00", "10-27 02:15"],
    ),
    "every hour through spring in Berlin": (
        "30 * * * *",
        BERLIN,
        "2030-03-30T23:00",
        ["03-30 23:30", "03-31 00:30", "03-31 01:30", "03-31 02:30"],
    ),
    "every hour through autumn in Berlin": (
        "30 * * * *",
        BERLIN,
        "2030-10-26T23:00",
        ["10-26 23:30", "10-27 00:30", "10-27 01:30", "10-27 02:30"],
    ),
    "every second hour names hours: none is left out in spring": (
        "0 */2 * * *",
        BERLIN,
        "2030-03-30T22:00",
        ["03-30 23:00", "03-31 01:00", "03-31 02:00"],
    ),
    "every second hour names hours: none runs twice in autumn": (
        "0 */2 * * *",
        BERLIN,
        "2030-10-26T21:00",
        ["10-26 22:00", "10-27 00:00", "10-27 03:00"],
    ),
    "a time that Lord Howe jumps over runs right behind the jump": (
        "15 2 * * *",
        LORD_HOWE,
        "2030-10-04T00:00",
        ["10-04 15:45", "10-05 15:30", "10-06 15:15"],
    ),
    "a time that Lord Howe shows twice runs the first time": (
        "45 1 * * *",
        LORD_HOWE,
        "2030-04-05T00:00",
        ["04-05 14:45", "04-06 14:45", "04-07 15:15"],
    ),
    "every ten minutes through spring on Lord Howe": (
        "*/10 * * * *",
        LORD_HOWE,
        "2030-10-05T15:05",
        ["10-05 15:10", "10-05 15:20", "10-05 15:30", "10-05 15:40"],
    ),
    "every ten minutes through autumn on Lord Howe": (
        "*/10 * * * *",
        LORD_HOWE,
        "2030-04-06T14:25",
        ["04-06 14:30", "04-06 14:40", "04-06 14:50", "04-06 15:00", "04-06 15:10", "04-06 15:20", "04-06 15:30"],
    ),
    "a midnight that the Azores show twice, asked in winter": (
        "*/30 * 27 10 *",
        "Atlantic/Azores",
        "2030-01-01T00:00",
        ["10-27 00:00", "10-27 00:30", "10-27 01:00", "10-27 01:30"],
    ),
    "a day that Apia left out runs when the next one begins": (
        "0 12 30 12 *",
        "Pacific/Apia",
        "2011-12-01T00:00",
        ["12-30 10:00", "12-29 22:00"],
    ),
}


@pytest.mark.parametrize(("cron", "zone", "after", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_schedule_follows_the_changes_of_its_clock(cron: str, zone: str, after: str, expected: list[str]) -> None:
    assert ticks(Schedule(cron=cron, timezone=zone), after, len(expected)) == expected


@pytest.mark.parametrize(
    ("zone", "day"),
    [(BERLIN, "2030-03-31"), (BERLIN, "2030-10-27"), (LORD_HOWE, "2030-04-06"), (LORD_HOWE, "2030-10-05")],
)
def test_every_five_minutes_has_each_tick_once_on_a_day_of_change(zone: str, day: str) -> None:
    schedule = Schedule(cron="*/5 * * * *", timezone=zone)
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)

    moments = [start]
    while moments[-1] < start + timedelta(days=1):
        moments.append(schedule.next_after(moments[-1]))

    assert {later - earlier for earlier, later in pairwise(moments)} == {5 * MINUTE}


def test_a_daily_cron_runs_once_on_each_day_of_a_year() -> None:
    schedule = Schedule(cron="30 2 * * *", timezone=BERLIN)
    moment = datetime(2029, 12, 31, 12, tzinfo=UTC)
    days = []
    while len(days) < 365:
        moment = schedule.next_after(moment)
        days.append((moment + timedelta(hours=1)).date())

    assert days == [(NEW_YEAR + timedelta(days=number)).date() for number in range(365)]


# Moments of ticks


def test_an_interval_is_counted_from_1970_so_that_all_agree() -> None:
    schedule = Schedule(every=timedelta(minutes=7))

    tick = schedule.next_after(NEW_YEAR + timedelta(seconds=1))

    assert (tick - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(minutes=7) == timedelta()
    assert schedule.next_after(tick - timedelta(milliseconds=1)) == tick
    assert schedule.next_after(tick) == tick + timedelta(minutes=7)


def test_a_tick_is_told_in_utc_whatever_zone_the_question_has() -> None:
    asked = datetime(2030, 1, 1, 3, 1, tzinfo=timezone(timedelta(hours=3)))

    tick = Schedule(cron="*/5 * * * *").next_after(asked)

    assert tick == datetime(2030, 1, 1, 0, 5, tzinfo=UTC)
    assert tick.tzinfo is UTC


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("@daily", "01-02 00:00"),
        ("0 9 * * MON-FRI", "01-01 09:00"),
        ("0 0 L 2 *", "02-28 00:00"),
        ("0 12 * * 5#2", "01-11 12:00"),
        ("0 0 29 2 *", "02-29 00:00"),
        ("0 9 * MAR THU", "03-07 09:00"),
    ],
)
def test_a_cron_expression_may_use_names_and_words(cron: str, expected: str) -> None:
    assert ticks(Schedule(cron=cron), "2030-01-01T00:00", 1) == [expected]


def test_a_moment_between_seconds_lies_between_the_two_ticks() -> None:
    schedule = Schedule(cron="*/5 * * * *")
    tick = datetime(2030, 1, 1, 0, 5, tzinfo=UTC)
    little = timedelta(microseconds=1)

    assert schedule.next_after(tick - little) == tick
    assert schedule.next_after(tick + little) == tick + 5 * MINUTE


@pytest.mark.parametrize(
    ("schedule", "spec"),
    [
        (Schedule(every=timedelta(minutes=5)), "every 5m"),
        (Schedule(every=timedelta(days=1, hours=1, minutes=30, seconds=1.5)), "every 1d1h30m1.5s"),
        (Schedule(cron="*/5 * * * *", timezone=BERLIN), "cron */5 * * * * Europe/Berlin"),
        (Schedule(cron="  0   3 * * * "), "cron 0 3 * * * UTC"),
    ],
)
def test_a_schedule_is_described_in_words(schedule: Schedule, spec: str) -> None:
    assert schedule.spec == spec


# Due ticks


DUE: dict[str, tuple[Missed, timedelta, list[int]]] = {
    "nothing before the first tick": ("all", timedelta(seconds=59), []),
    "the latest of three": ("latest", timedelta(minutes=3, seconds=45), [3]),
    "all of three": ("all", timedelta(minutes=3, seconds=45), [1, 2, 3]),
    "none of three": ("none", timedelta(minutes=3, seconds=45), []),
    "the one that is not late": ("none", timedelta(minutes=3) + ON_TIME, [3]),
    "a tick at its moment": ("latest", timedelta(minutes=1), [1]),
}


@pytest.mark.parametrize(("missed", "passed", "expected"), DUE.values(), ids=DUE.keys())
@pytest.mark.parametrize("schedule", [Schedule(every=MINUTE), Schedule(cron="* * * * *")], ids=["every", "cron"])
def test_due_and_missed_ticks_follow_from_the_policy(
    schedule: Schedule, missed: Missed, passed: timedelta, expected: list[int]
) -> None:
    due = schedule.due(NEW_YEAR, NEW_YEAR + passed, missed)

    assert due.ticks == tuple(NEW_YEAR + minute * MINUTE for minute in expected)


EVERY_SECOND = Schedule(every=timedelta(seconds=1))


@pytest.mark.parametrize("missed", ["latest", "all", "none"])
def test_ticks_that_are_on_time_are_all_submitted(missed: Missed) -> None:
    due = EVERY_SECOND.due(NEW_YEAR, NEW_YEAR + ON_TIME, missed)

    assert due.ticks == tuple(NEW_YEAR + timedelta(seconds=second) for second in range(1, 31))
    assert due.missed == 0


@pytest.mark.parametrize("missed", ["latest", "none"])
def test_ticks_that_are_left_out_are_counted(missed: Missed) -> None:
    due = EVERY_SECOND.due(NEW_YEAR, NEW_YEAR + timedelta(days=1), missed)

    assert len(due.ticks) == ON_TIME.seconds + 1
    assert len(due.ticks) + due.missed == timedelta(days=1).total_seconds()
    assert due.missed_until == due.ticks[0] - timedelta(seconds=1)


def test_ticks_that_are_all_too_late_run_once_and_the_rest_is_counted() -> None:
    schedule = Schedule(cron="0 * * * *")

    due = schedule.due(NEW_YEAR, NEW_YEAR + timedelta(hours=5, minutes=30))

    assert due == Due(ticks=(NEW_YEAR + timedelta(hours=5),), missed=4)


def test_ticks_of_a_cron_expression_are_counted_up_to_a_bound() -> None:
    due = Schedule(cron="* * * * *").due(NEW_YEAR, NEW_YEAR + timedelta(days=1, seconds=45), "none")

    assert due == Due(missed=MAX_COUNTED, missed_until=NEW_YEAR + timedelta(days=1))


def test_missed_ticks_come_in_bounded_portions() -> None:
    schedule = Schedule(every=timedelta(seconds=1))

    due = schedule.due(NEW_YEAR, NEW_YEAR + timedelta(days=1), "all")

    assert len(due.ticks) == MAX_TICKS
    assert due.ticks[0] == NEW_YEAR + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("schedule", "latest"),
    [
        (Schedule(every=timedelta(seconds=1)), datetime(2030, 7, 1, 0, 0, 30, tzinfo=UTC)),
        (Schedule(cron="* * * * *", timezone=BERLIN), datetime(2030, 7, 1, tzinfo=UTC)),
        (Schedule(cron="* * * 1 *"), datetime(2030, 1, 31, 23, 59, tzinfo=UTC)),
        (Schedule(cron="0 0 29 2 *"), datetime(2028, 2, 29, tzinfo=UTC)),
    ],
)
def test_the_latest_tick_of_many_years_is_found(schedule: Schedule, latest: datetime) -> None:
    now = datetime(2030, 7, 1, 0, 0, 30, 500_000, tzinfo=UTC)

    due = schedule.due(datetime(2005, 1, 1, tzinfo=UTC), now, "latest")
    assert due.ticks[-1] == latest


# Refusals


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        ({}, TypeError, "either every= or cron="),
        ({"every": MINUTE, "cron": "* * * * *"}, TypeError, "either every= or cron="),
        ({"every": timedelta(milliseconds=999)}, ValueError, "a second to a century"),
        ({"every": timedelta.max}, ValueError, "a second to a century"),
        ({"every": timedelta(seconds=1, microseconds=1)}, ValueError, "whole milliseconds"),
        ({"every": 5}, ValueError, "timedelta"),
        ({"every": MINUTE, "timezone": BERLIN}, TypeError, "belongs to cron="),
        ({"cron": "61 * * * *"}, ValueError, "61"),
        ({"cron": "* * * *"}, ValueError, "5 fields"),
        ({"cron": "* * * * * *"}, ValueError, "5 fields"),
        ({"cron": ""}, ValueError, "5 fields"),
        ({"cron": "R * * * *"}, ValueError, "5 fields"),
        ({"cron": "H(0-30) * * * *"}, ValueError, "5 fields"),
        ({"cron": "@reboot"}, ValueError, "@reboot"),
        ({"cron": "0 0 30 2 *"}, ValueError, "ever matches"),
        ({"cron": "1," * 80 + "1 * * * *"}, ValueError, "at most"),
        ({"cron": 5}, ValueError, "text"),
        ({"cron": "* * * * *", "timezone": "Europe/Atlantis"}, ValueError, "Atlantis"),
        ({"cron": "* * * * *", "timezone": "../zone"}, ValueError, "time zone"),
        ({"cron": "* * * * *", "timezone": None}, ValueError, "time zone"),
    ],
)
def test_an_impossible_schedule_is_refused(wrong: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Schedule(**wrong)


def test_schedule_options_without_a_schedule_are_refused() -> None:
    assert schedule_of(None, None, "UTC", "latest") is None
    with pytest.raises(TypeError, match="every= or cron="):
        schedule_of(None, None, BERLIN, "latest")
    with pytest.raises(TypeError, match="every= or cron="):
        schedule_of(None, None, "UTC", "all")
    with pytest.raises(ValueError, match="latest, all, none"):
        schedule_of(MINUTE, None, "UTC", "some")


def test_a_function_that_needs_arguments_is_refused() -> None:
    def requires(first: int, second: int = 2, *, third: int) -> None: ...
    def needs_nothing(first: int = 1, *rest: int, **named: int) -> None: ...

    with pytest.raises(TypeError, match="give first, third a default"):
        check_needs_nothing(requires, given=())
    check_needs_nothing(requires, given=("first", "third"))
    check_needs_nothing(needs_nothing, given=())
