"""Cursors of the feed: where a subscriber continues, also after the feed was trimmed or damaged."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.conftest import Clock
from tests.support.executions import raw_client, raw_key, refused, running, same_partition_ids, upkeep_all
from tests.support.feed_reads import ended, told

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
NOW = timedelta()


def test_a_cursor_goes_on_behind_its_event_on_any_engine(engine: Engine, store_url: str) -> None:
    ids = [ended(engine) for _ in range(6)]
    events = told(engine)
    elsewhere = open_engine(store_url)

    for at, event in enumerate(events):
        rest = told(elsewhere, event.cursor)
        assert [each.execution_id for each in rest] == [each.execution_id for each in events[at + 1 :]]

    assert sorted(event.execution_id for event in events) == sorted(ids)
    assert told(elsewhere, "") == events
    elsewhere.close()


def test_a_subscription_that_is_taken_up_event_by_event_misses_nothing(engine: Engine) -> None:
    ids = {ended(engine) for _ in range(8)}

    seen = []
    cursor = None
    while True:
        event = next(iter(engine.subscribe_completions(cursor, timeout=NOW)), None)
        if event is None:
            break
        seen.append(event.execution_id)
        cursor = event.cursor

    assert set(seen) == ids
    assert len(seen) == len(ids)


def test_the_feeds_cursor_is_behind_everything_so_far(engine: Engine) -> None:
    for _ in range(5):
        ended(engine)
    cursor = engine.feed_cursor()
    assert told(engine, cursor) == []

    new = {ended(engine) for _ in range(5)}

    assert {event.execution_id for event in told(engine, cursor)} == new


def test_the_cursor_of_an_empty_feed_sees_everything_that_comes(engine: Engine) -> None:
    cursor = engine.feed_cursor()

    execution = ended(engine)

    assert [event.execution_id for event in told(engine, cursor)] == [execution]


def test_every_cursor_names_a_place_in_every_partition(engine: Engine) -> None:
    empty = engine.feed_cursor()
    ended(engine)
    (event,) = told(engine)

    for cursor in (empty, engine.feed_cursor(), event.cursor):
        assert [int(part.partition("=")[0]) for part in cursor.split(",")] == [*range(engine.partitions)]


@pytest.mark.parametrize("begins", ["behind everything", "with everything"])
def test_a_cursor_of_an_empty_feed_tells_of_what_was_trimmed_since(engine: Engine, clock: Clock, begins: str) -> None:
    ids = same_partition_ids(engine, 3)
    if begins == "with everything":
        # Only the first partition had an end by then: in the others nothing was seen yet.
        engine.complete(running(engine).handle)
        cursor = told(engine)[-1].cursor
    else:
        cursor = engine.feed_cursor()
    engine.complete(running(engine, execution_id=ids[0]).handle)
    engine.complete(running(engine, execution_id=ids[1]).handle)
    for _ in range(2):
        clock.move(DAY + SECOND)
        upkeep_all(engine)
    engine.complete(running(engine, execution_id=ids[2]).handle)

    with refused("cursor_expired"):
        told(engine, cursor)


@pytest.mark.parametrize(
    "cursor",
    ["x", "0", "0=", "0=1", "0=1-", "0=-1-0", "00=1-0", "0=1-0,", "0=1-0,0=1-0", "9999=1-0", "٣=1-0", "0=1-0\n",
     "0=" + "9" * 17 + "-0", "9" * 5000 + "=1-0", "0=+", 5, b"0=1-0", ["0=1-0"]],
)  # fmt: skip
def test_an_invalid_cursor_is_refused_at_once(engine: Engine, cursor: Any) -> None:
    with refused("invalid_cursor"):
        engine.subscribe_completions(cursor)


def test_a_cursor_below_what_is_kept_is_refused_at_once(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 3)
    for execution in ids[:2]:
        engine.complete(running(engine, execution_id=execution).handle)
    first, second = (event.cursor for event in told(engine))
    clock.move(DAY - SECOND)
    engine.complete(running(engine, execution_id=ids[2]).handle)
    upkeep_all(engine)
    assert [event.execution_id for event in told(engine, first)] == ids[1:]

    clock.move(timedelta(hours=2))
    upkeep_all(engine)

    with refused("cursor_expired") as caught:
        engine.subscribe_completions(first)
    assert f"={caught.value.details['cursor']}" in first
    assert [event.execution_id for event in told(engine, second)] == [ids[2]]
    assert [event.execution_id for event in told(engine)] == [ids[2]]


def test_a_cursor_that_missed_nothing_holds_however_old_it_is(engine: Engine, clock: Clock) -> None:
    ids = [ended(engine) for _ in range(20)]
    cursor = told(engine)[-1].cursor
    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(30 * DAY)
    upkeep_all(engine)
    new = ended(engine)

    assert len(ids) == 20
    assert [event.execution_id for event in told(engine, cursor)] == [new]


def test_ends_leave_the_feed_after_a_day_and_leave_nothing_behind(engine: Engine, clock: Clock) -> None:
    for _ in range(5):
        ended(engine)

    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(timedelta(hours=1))
    upkeep_all(engine)

    assert told(engine) == []
    for partition in range(engine.partitions):
        assert not raw_client(engine, partition).exists(raw_key(engine, partition, "feed"))


def test_ids_go_on_behind_every_cursor_although_the_feed_was_trimmed_empty(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 3)
    for execution in ids[:2]:
        engine.complete(running(engine, execution_id=execution).handle)
    cursor = told(engine)[-1].cursor
    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(-2 * DAY)
    engine.complete(running(engine, execution_id=ids[2]).handle)

    assert [event.execution_id for event in told(engine, cursor)] == [ids[2]]


def test_a_damaged_entry_is_refused_and_can_be_passed(engine: Engine) -> None:
    ids = same_partition_ids(engine, 1)
    feed = raw_key(engine, ids[0].partition_number, "feed")
    raw_client(engine, ids[0].partition_number).xadd(
        feed, {"execution": "?", "outcome": "success", "class": "?"}, "5-0"
    )
    engine.complete(running(engine, execution_id=ids[0]).handle)

    with refused("corruption") as caught:
        told(engine)

    assert [event.execution_id for event in told(engine, caught.value.details["cursor"])] == ids
