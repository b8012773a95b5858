"""Schedules: each tick is submitted once, by any worker and after any number of calls."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.types.schedules import (
    MAX_TICKS,
    AlreadyTicked,
    Registered,
    Ticked,
    TickScheduleResult,
)
from flowfabric_worker.schedule import Missed, Schedule
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, TASK, creation, raw_client, raw_key, refused, request
from tests.support.lossy_store import LosingStore, empty_store_beside
from tests.support.operations import SECOND, START, beat
from tests.support.schedules import MINUTE, START_MS, catch_up, executions, known, row, submitted_ticks

pytestmark = pytest.mark.usefixtures("clock")


def test_an_unknown_schedule_is_registered_and_submits_nothing(engine: Engine, clock: Clock) -> None:
    clock.move(3 * SECOND)

    answer = engine.tick_schedule(beat(1, 2, 3))

    assert answer == Registered(last_tick_ms=clock.ms)
    assert executions(engine) == []


def test_a_tick_makes_an_execution_that_tells_where_it_comes_from(engine: Engine, clock: Clock) -> None:
    known(engine, clock)

    answer = engine.tick_schedule(beat(1, creation=creation(tags={"color": "red"}, priority=7)))

    assert isinstance(answer, Ticked)
    (made,) = executions(engine)
    assert answer.execution_ids == (made.execution_id,)
    assert (made.lane, made.task, made.priority) == (LANE, TASK, 7)
    assert made.tags == {"color": "red", "schedule": "beat", "tick": "2030-01-01T00:00:01Z"}
    assert [claimed.execution_id for claimed in engine.claim_many(request())] == [made.execution_id]


def test_a_tick_between_seconds_tells_its_milliseconds(engine: Engine, clock: Clock) -> None:
    known(engine, clock)

    engine.tick_schedule(beat(1, ticks=(START + timedelta(milliseconds=1500),)))

    assert submitted_ticks(engine) == ["2030-01-01T00:00:01.500Z"]


def test_executions_lie_where_their_schedule_lies(engine: Engine, clock: Clock) -> None:
    known(engine, clock)

    engine.tick_schedule(beat(1, 2, 3))

    partition = partition_of_names((engine.namespace, "beat"), engine.partitions)
    assert {each.execution_id.partition_number for each in executions(engine)} == {partition}


def test_a_tick_that_was_submitted_is_not_submitted_again(engine: Engine, clock: Clock) -> None:
    known(engine, clock)
    engine.tick_schedule(beat(1, 2))

    answer = engine.tick_schedule(beat(1, 2))

    assert answer == AlreadyTicked(last_tick_ms=START_MS + 2000)
    assert submitted_ticks(engine) == ["2030-01-01T00:00:01Z", "2030-01-01T00:00:02Z"]


def test_the_next_tick_follows_on_the_last_one(engine: Engine, clock: Clock) -> None:
    known(engine, clock)
    engine.tick_schedule(beat(1))

    assert isinstance(engine.tick_schedule(beat(2, after=1)), Ticked)
    assert len(executions(engine)) == 2


def test_a_tick_becomes_due_at_its_moment_and_not_before(engine: Engine, clock: Clock) -> None:
    known(engine, clock, SECOND - timedelta(milliseconds=1))

    with refused("tick_not_due"):
        engine.tick_schedule(beat(1))
    clock.move(timedelta(milliseconds=1))

    assert isinstance(engine.tick_schedule(beat(1)), Ticked)


def test_only_one_of_several_racing_schedulers_creates_a_tick(engine: Engine, clock: Clock, store_url: str) -> None:
    known(engine, clock)
    others = [open_engine(store_url) for _ in range(4)]
    gate = threading.Barrier(len(others))
    answers: list[TickScheduleResult] = []

    def race(each: Engine) -> None:
        gate.wait(10)
        answers.append(each.tick_schedule(beat(1, 2, 3)))

    threads = [threading.Thread(target=race, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    for each in others:
        each.close()

    assert sorted(type(answer).__name__ for answer in answers) == ["AlreadyTicked"] * 3 + ["Ticked"]
    assert len(executions(engine)) == 3


def test_a_refused_creation_moves_no_tick(engine: Engine, clock: Clock, dump: Dump) -> None:
    known(engine, clock)
    # A lane that is full refuses new kinds of work.
    partition = partition_of_names((engine.namespace, "beat"), engine.partitions)
    client: Any = raw_client(engine, partition)
    key = raw_key(engine, partition, "classes")
    name = f"{len('default')}:default{len(LANE)}:{LANE}"
    client.zadd(key, {f"{name}1:{number}": 0 for number in range(1024)})
    before = dump()

    with refused("too_many_classes"):
        engine.tick_schedule(beat(1, 2))

    assert dump() == before


@pytest.mark.parametrize(("missed", "expected"), [("latest", 1), ("all", 3), ("none", 0)])
def test_missed_ticks_are_made_up_for_as_their_policy_says(
    engine: Engine, clock: Clock, missed: Missed, expected: int
) -> None:
    known(engine, clock, 3 * MINUTE + 45 * SECOND)

    catch_up(engine, clock, Schedule(every=MINUTE), missed)

    assert submitted_ticks(engine) == [f"2030-01-01T00:0{minute}:00Z" for minute in (1, 2, 3)][3 - expected :]


def test_the_next_tick_follows_missed_ticks_that_are_skipped(engine: Engine, clock: Clock) -> None:
    known(engine, clock, 3 * MINUTE + 45 * SECOND)
    catch_up(engine, clock, Schedule(every=MINUTE), "none")

    clock.move(20 * SECOND)
    catch_up(engine, clock, Schedule(every=MINUTE), "none")

    assert submitted_ticks(engine) == ["2030-01-01T00:04:00Z"]


def test_ticks_that_were_missed_are_added_up(engine: Engine, clock: Clock) -> None:
    known(engine, clock, 9 * SECOND)

    engine.tick_schedule(beat(3, missed=2))
    answer = engine.tick_schedule(beat(after=3, expected=START + 3 * SECOND, missed=4, missed_until=START + 7 * SECOND))

    assert answer == Ticked(execution_ids=())
    told = row(engine)
    assert (told.missed_ticks, told.last_tick_ms, told.submitted_tick_ms) == (6, START_MS + 7000, START_MS + 3000)


def test_many_missed_ticks_go_on_with_the_next_call(engine: Engine, clock: Clock) -> None:
    known(engine, clock, (2 * MAX_TICKS + 50) * SECOND)

    answers = catch_up(engine, clock, Schedule(every=SECOND), "all")

    counts = [len(answer.execution_ids) for answer in answers if isinstance(answer, Ticked)]
    assert counts == [MAX_TICKS, MAX_TICKS, 50]
    assert len(set(submitted_ticks(engine))) == 2 * MAX_TICKS + 50


def three_seconds_behind(store: LosingStore, partitions: int) -> Engine:
    """Return an engine on an empty store in which the schedule `beat` has ticked once, three seconds ago."""
    engine = Engine(lambda: (store, partitions))
    engine.prepare(testing=True)
    engine.set_clock(START)
    engine.tick_schedule(beat())
    engine.set_clock(START + 3 * SECOND)
    return engine


def test_a_tick_whose_reply_was_lost_answers_its_executions_again(engine: Engine) -> None:
    store = LosingStore(empty_store_beside(engine))
    tried = three_seconds_behind(store, engine.partitions)

    with store.losing():
        answer = tried.tick_schedule(beat(1, 2, 3))

    assert isinstance(answer, Ticked)
    assert store.lost == 1
    assert {each.execution_id for each in executions(tried)} == set(answer.execution_ids)
    assert len(answer.execution_ids) == 3


def test_an_operator_between_a_tick_and_its_repeat_changes_nothing(engine: Engine) -> None:
    class Between(LosingStore):
        """Pauses the schedule when a reply is lost."""

        def call(self, function: str, *rest: Any) -> Any:
            try:
                return super().call(function, *rest)
            finally:
                if function == "tick_schedules" and self._loses and self.lost == 1:
                    self.lost += 1
                    Engine(lambda: (self.behind, None)).pause_schedule("beat")

    store = Between(empty_store_beside(engine))
    tried = three_seconds_behind(store, engine.partitions)

    with store.losing():
        answer = tried.tick_schedule(beat(1))

    assert isinstance(answer, Ticked)
    assert row(tried).paused_since_ms is not None
    assert len(executions(tried)) == 1
