"""Schedules: each tick is submitted once, by any worker and after any number of calls."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ContentionError, ValidationError
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.schedules import (
    MAX_TICKED,
    MAX_TICKS,
    AlreadyTicked,
    Paused,
    Registered,
    ScheduleInfo,
    Ticked,
    TickScheduleArgs,
    TickScheduleResult,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.schedule import Missed, Schedule
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, TASK, created, creation, raw_client, raw_key, refused, request
from tests.support.lossy_store import LosingStore, empty_store_beside
from tests.support.operations import SECOND, START, beat

pytestmark = pytest.mark.usefixtures("clock")

START_MS = int(START.timestamp() * 1000)
MINUTE = timedelta(minutes=1)


def rows(engine: Engine) -> list[ScheduleInfo | DamagedRow]:
    return list(engine.list_schedules().schedules)


def row(engine: Engine) -> ScheduleInfo:
    """Return the one schedule there is."""
    (only,) = rows(engine)
    assert isinstance(only, ScheduleInfo)
    return only


def executions(engine: Engine) -> list[ExecutionSummary]:
    return list(engine.list_executions(limit=1000).executions)


def submitted_ticks(engine: Engine) -> list[str]:
    return sorted(each.tags["tick"] for each in executions(engine))


def known(engine: Engine, clock: Clock, passed: timedelta = 3 * SECOND) -> None:
    """Register the schedule `beat` and let some time pass."""
    assert engine.tick_schedule(beat()) == Registered(last_tick_ms=START_MS)
    clock.move(passed)


def catch_up(engine: Engine, clock: Clock, schedule: Schedule, missed: Missed) -> list[TickScheduleResult]:
    """Return what a scheduler does that comes back: it submits what is due until nothing is; the answers."""
    answers: list[TickScheduleResult] = []
    last = START + timedelta(milliseconds=row(engine).last_tick_ms - START_MS)
    while due := schedule.due(last, clock.now, missed):
        answers.append(
            engine.tick_schedule(
                TickScheduleArgs(
                    name="beat",
                    spec=schedule.spec,
                    creation=creation(),
                    expected=last,
                    ticks=due.ticks,
                    missed=due.missed,
                    missed_until=due.missed_until,
                )
            )
        )
        last = due.ticks[-1] if due.ticks else due.missed_until or last
    return answers


# Ticks


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


def test_of_schedulers_that_race_one_creates(engine: Engine, clock: Clock, store_url: str) -> None:
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


# Missed ticks


@pytest.mark.parametrize(("missed", "expected"), [("latest", 1), ("all", 3), ("none", 0)])
def test_missed_ticks_are_made_up_for_as_their_policy_says(
    engine: Engine, clock: Clock, missed: Missed, expected: int
) -> None:
    known(engine, clock, 3 * MINUTE + 45 * SECOND)

    catch_up(engine, clock, Schedule(every=MINUTE), missed)

    assert submitted_ticks(engine) == [f"2030-01-01T00:0{minute}:00Z" for minute in (1, 2, 3)][3 - expected :]


def test_after_missed_ticks_that_are_not_made_up_for_the_next_one_comes(engine: Engine, clock: Clock) -> None:
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


# Many at once


def test_many_schedules_are_answered_each_by_itself_in_their_order(engine: Engine, clock: Clock) -> None:
    names = [f"s{number:03}" for number in range(250)]
    engine.tick_schedules([beat(name=name) for name in names])
    clock.move(2 * SECOND)
    engine.pause_schedule("s002")

    answers = engine.tick_schedules(
        [beat(1, 2, name=name) for name in names[:3]]
        + [beat(5, name="s003"), beat(1, after=-1, name="s004"), beat(1, name="new")]
        + [beat(1, name=name) for name in names[5:]]
    )

    kinds = [type(answer) for answer in answers]
    assert kinds[:6] == [Ticked, Ticked, Paused, ContentionError, AlreadyTicked, Registered]
    assert kinds[6:] == [Ticked] * 245
    assert len(executions(engine)) == 2 + 2 + 245


def test_a_damaged_schedule_keeps_no_other_of_its_call_from_ticking(engine: Engine, clock: Clock) -> None:
    names = ("alpha", "beat", "gamma")
    engine.tick_schedules([beat(name=name) for name in names])
    clock.move(3 * SECOND)
    partition = partition_of_names((engine.namespace, "beat"), engine.partitions)
    raw_client(engine, partition).hset(raw_key(engine, partition, "schedule"), "7:defaultbeat", "rubbish")

    answers = engine.tick_schedules([beat(1, name=name) for name in names])

    assert [type(answer).__name__ for answer in answers] == ["Ticked", "ValidationError", "Ticked"]


def test_a_schedule_of_invalid_work_does_not_keep_others_from_ticking(engine: Engine, clock: Clock) -> None:
    engine.tick_schedules([beat(name="alpha"), beat(name="beat")])
    clock.move(SECOND)
    wrong = creation(lane="")

    answers = engine.tick_schedules([beat(1, name="alpha", creation=wrong), beat(1)])

    assert [type(answer) for answer in answers] == [ValidationError, Ticked]


def test_one_call_of_a_function_handles_a_bounded_number_of_ticks(engine: Engine, clock: Clock) -> None:
    class Counting(LosingStore):
        """Counts calls, and how many arguments each has at most."""

        calls = 0

        def call(self, function: str, *rest: Any) -> Any:
            self.calls += function == "tick_schedules"
            return super().call(function, *rest)

    store = Counting(empty_store_beside(engine))
    tried = Engine(lambda: (store, 1))
    tried.prepare(testing=True)
    tried.set_clock(START)

    tried.tick_schedules([beat(name=f"s{number}") for number in range(2 * MAX_TICKED + 1)])

    assert store.calls == 3


# Leaders


def test_one_process_leads_until_its_time_is_over(engine: Engine, clock: Clock) -> None:
    first = engine.lead_schedules("shop", "p1", 6 * SECOND)
    clock.move(5 * SECOND)
    second = engine.lead_schedules("shop", "p2", 6 * SECOND)
    other_group = engine.lead_schedules("blog", "p2", 6 * SECOND)
    clock.move(SECOND)
    third = engine.lead_schedules("shop", "p2", 6 * SECOND)

    assert (first.leads, first.until_ms, first.now_ms) == (True, START_MS + 6000, START_MS)
    assert (second.leads, second.until_ms, second.now_ms) == (False, START_MS + 6000, START_MS + 5000)
    assert other_group.leads
    assert (third.leads, third.until_ms) == (True, START_MS + 12000)


def test_a_leader_renews_its_time_and_resigns(engine: Engine, clock: Clock) -> None:
    engine.lead_schedules("shop", "p1", 6 * SECOND)
    clock.move(5 * SECOND)
    renewed = engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p2")
    refused_ = engine.lead_schedules("shop", "p2", 6 * SECOND)
    engine.resign_schedules("shop", "p1")

    assert (renewed.leads, renewed.until_ms) == (True, START_MS + 11000)
    assert not refused_.leads
    assert engine.lead_schedules("shop", "p2", 6 * SECOND).leads


def test_leaders_of_two_namespaces_never_meet(engine: Engine, store_url: str) -> None:
    other = open_engine(store_url, namespace="other")

    assert engine.lead_schedules("shop", "p1", 6 * SECOND).leads
    assert other.lead_schedules("shop", "p2", 6 * SECOND).leads
    other.close()


def test_groups_whose_leaders_are_gone_are_forgotten(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p1")
    before = dump()
    for number in range(5):
        engine.lead_schedules("shop", f"old{number}", SECOND)
        clock.move(2 * SECOND)
    clock.move(timedelta(hours=2))

    engine.lead_schedules("shop", "p1", 6 * SECOND)
    engine.resign_schedules("shop", "p1")

    assert without_counts(dump()) == without_counts(before)


# Lost replies


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


# Schedule listings


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


# Pausing and removing


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


def without_counts(dump: dict[str, Any]) -> dict[str, Any]:
    """Return what a store holds, but for its clock, counters and revisions, which go on."""
    return {key: value for key, value in dump.items() if not key.endswith(":meta")}
