"""Schedules: how operators list, pause, resume and remove them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.schedules import (
    AlreadyTicked,
    Paused,
    Registered,
    ScheduleInfo,
    Ticked,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, TASK, created, creation, raw_client, raw_key, refused, request
from tests.support.operations import SECOND, beat
from tests.support.schedules import START_MS, executions, known, row, rows, submitted_ticks, without_counts

pytestmark = pytest.mark.usefixtures("clock")


def test_a_schedule_tells_what_it_is_and_how_far(engine: Engine, clock: Clock) -> None:
    known(engine, clock)
    fresh = row(engine)
    engine.tick_schedule(beat(1, 2))

    assert fresh == ScheduleInfo(
        name="beat",
        spec="every 1s",
        task=TASK,
        lane=LANE,
        first_seen_ms=START_MS,
        last_tick_ms=START_MS,
        submitted_tick_ms=None,
        next_tick_ms=START_MS + 9000,
        paused_since_ms=None,
    )
    assert (row(engine).last_tick_ms, row(engine).submitted_tick_ms) == (START_MS + 2000, START_MS + 2000)


def test_a_changed_spec_keeps_the_last_tick(engine: Engine, clock: Clock) -> None:
    known(engine, clock)
    engine.tick_schedule(beat(1))

    answer = engine.tick_schedule(beat(spec="every 2s", creation=creation(lane="other")))

    assert answer == AlreadyTicked(last_tick_ms=START_MS + 1000)
    assert (row(engine).spec, row(engine).lane) == ("every 2s", "other")


def test_schedules_are_listed_page_by_page_across_partitions(engine: Engine) -> None:
    names = [f"s{number:02}" for number in range(25)] + ["é"]
    for name in names:
        engine.tick_schedule(beat(name=name))

    found: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = engine.list_schedules(cursor, 10)
        found += [each.name for each in page.schedules if isinstance(each, ScheduleInfo)]
        cursor = page.next_cursor

    assert found == names
    assert cursor is None
    assert engine.list_schedules(limit=0).schedules == ()


def test_a_damaged_schedule_is_marked_in_the_list_and_can_be_removed(engine: Engine) -> None:
    for name in ("alpha", "beat", "gamma"):
        engine.tick_schedule(beat(name=name))
    partition = partition_of_names((engine.namespace, "beat"), engine.partitions)
    client: Any = raw_client(engine, partition)
    client.hset(raw_key(engine, partition, "schedule"), "7:defaultbeat", "rubbish")

    listed = rows(engine)
    with refused("corruption"):
        engine.tick_schedule(beat())
    with refused("corruption"):
        engine.pause_schedule("beat")
    engine.remove_schedule("beat")

    assert [type(each) for each in listed] == [ScheduleInfo, DamagedRow, ScheduleInfo]
    assert len(rows(engine)) == 2


def test_schedules_of_two_namespaces_never_meet(engine: Engine, clock: Clock, store_url: str) -> None:
    other = open_engine(store_url, namespace="other")
    known(engine, clock)

    assert other.list_schedules().schedules == ()
    assert isinstance(other.tick_schedule(beat()), Registered)
    assert isinstance(engine.tick_schedule(beat(1)), Ticked)
    other.remove_schedule("beat")
    other.close()

    assert row(engine).last_tick_ms == START_MS + 1000


def test_a_paused_schedule_submits_nothing(engine: Engine, clock: Clock) -> None:
    known(engine, clock)

    assert engine.pause_schedule("beat")
    assert not engine.pause_schedule("beat")

    assert engine.tick_schedule(beat(1)) == Paused(since_ms=clock.ms)
    assert engine.tick_schedule(beat()) == Paused(since_ms=clock.ms)
    assert row(engine).paused_since_ms == clock.ms
    assert executions(engine) == []


def test_a_resumed_schedule_goes_on_from_then_and_makes_up_for_nothing(engine: Engine, clock: Clock) -> None:
    known(engine, clock)
    engine.pause_schedule("beat")
    clock.move(3 * SECOND)

    assert engine.resume_schedule("beat")
    assert not engine.resume_schedule("beat")

    assert engine.tick_schedule(beat(1, 2, 3)) == AlreadyTicked(last_tick_ms=START_MS + 6000)
    clock.move(SECOND)
    assert isinstance(engine.tick_schedule(beat(7, after=6)), Ticked)
    assert submitted_ticks(engine) == ["2030-01-01T00:00:07Z"]


def test_a_removed_schedule_is_registered_again_by_a_worker_that_has_it(engine: Engine, clock: Clock) -> None:
    known(engine, clock)

    engine.remove_schedule("beat")

    assert rows(engine) == []
    assert engine.tick_schedule(beat(1)) == Registered(last_tick_ms=clock.ms)
    assert executions(engine) == []


def test_a_removed_schedule_leaves_no_key_once_its_work_has_ended(engine: Engine, clock: Clock, dump: Dump) -> None:
    # Lanes and classes keep entries, so create them before the first dump.
    other = creation(execution_id=None, policy=ExecutionPolicy(retention=SECOND))
    settle(engine, clock, created_in_the_partition_of_beat(engine, other))
    before = dump()
    engine.tick_schedule(beat())
    clock.move(3 * SECOND)

    answer = engine.tick_schedule(
        beat(expected=clock.now - 3 * SECOND, ticks=(clock.now,), creation=creation(policy=other.policy))
    )
    assert isinstance(answer, Ticked)
    settle(engine, clock, 1)
    engine.remove_schedule("beat")

    assert without_counts(dump()) == without_counts(before)


def created_in_the_partition_of_beat(engine: Engine, args: CreateExecutionArgs) -> int:
    """Create executions until one lies in the schedule's partition; return how many."""
    wanted = partition_of_names((engine.namespace, "beat"), engine.partitions)
    count = 1
    while created(engine, policy=args.policy).partition_number != wanted:
        count += 1
    return count


def settle(engine: Engine, clock: Clock, count: int) -> None:
    """Complete all work, and let its retention run out, and what its class and then its lane leave behind."""
    for claimed in engine.claim_many(request(limit=count)):
        engine.complete(claimed.handle, b"")
    for _ in range(2):
        clock.move(timedelta(hours=26))
        while engine.run_upkeep().handled:
            pass
