"""A lane that is paused or resumed is so in every partition, whatever happens between two partitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, all_created, creation, ids_in, raw_client, raw_key, request, upkeep_all
from tests.support.phases import HOUR
from tests.support.stepped_store import Killed, kill, stepped

CHANGES: dict[str, Callable[[Engine, str], bool]] = {"pause": Engine.pause_lane, "resume": Engine.resume_lane}


def work_everywhere(engine: Engine) -> set[ExecutionId]:
    """Create an execution in each partition."""
    ids = [ids_in(engine, partition, 1)[0] for partition in range(engine.partitions)]
    return set(all_created(engine, [creation(execution_id=each) for each in ids]))


def handed_out(engine: Engine) -> set[ExecutionId]:
    return {each.execution_id for each in engine.claim_many(request(limit=500))}


def steps_of(engine: Engine) -> list[int]:
    """Return after how many calls of a change something happens: the first ones and the last ones of all."""
    calls = engine.partitions + 1 if engine.partitions > 1 else 1
    return [step for step in range(1, calls + 1) if step <= 2 or step >= calls - 1]


@pytest.mark.parametrize(("change", "other"), [("pause", "resume"), ("resume", "pause")])
def test_two_changes_of_a_lane_at_one_moment_end_alike_everywhere(engine: Engine, change: str, other: str) -> None:
    work = work_everywhere(engine)
    tried, store = stepped(engine)
    for step in steps_of(engine):
        CHANGES[other](engine, LANE)
        store.after(step, lambda: CHANGES[other](engine, LANE))

        assert CHANGES[change](tried, LANE) is True

        # The other change was decided last.
        paused = engine.list_lanes().lanes[0].paused_since_ms is not None
        assert paused == (other == "pause")
        claimed = engine.claim_many(request(limit=500))
        assert {each.execution_id for each in claimed} == (set() if paused else work)
        engine.release_many([each.handle for each in claimed])


@pytest.mark.parametrize(("change", "before"), [("pause", "resume"), ("resume", "pause")])
def test_a_change_of_a_lane_whose_caller_died_is_completed(
    engine: Engine, clock: Clock, change: str, before: str
) -> None:
    work = work_everywhere(engine)
    tried, store = stepped(engine)
    for step in steps_of(engine):
        CHANGES[before](engine, LANE)
        store.after(step, kill)
        with pytest.raises(Killed):
            CHANGES[change](tried, LANE)

        upkeep_all(engine)

        since = engine.list_lanes().lanes[0].paused_since_ms
        assert since == (clock.ms if change == "pause" else None)
        claimed = engine.claim_many(request(limit=500))
        assert {each.execution_id for each in claimed} == (set() if since else work)
        engine.release_many([each.handle for each in claimed])


def test_a_half_paused_lane_is_healed_by_the_next_change(engine: Engine) -> None:
    work = work_everywhere(engine)
    tried, store = stepped(engine)
    store.after(1, kill)
    with pytest.raises(Killed):
        tried.pause_lane(LANE)

    assert engine.pause_lane(LANE) is False
    assert handed_out(engine) == set()

    assert engine.resume_lane(LANE) is True
    assert handed_out(engine) == work


def test_a_lane_that_was_only_paused_is_forgotten_after_a_day(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.pause_lane(LANE)
    engine.resume_lane(LANE)

    clock.move(25 * HOUR)
    upkeep_all(engine)

    assert [key for key in dump() if LANE in key or key.endswith((":lanes", ":following"))] == []


@pytest.mark.parametrize("field", ["turn", "answered"])
def test_a_damaged_turn_of_a_lane_stops_neither_pauses_nor_upkeep(engine: Engine, field: str) -> None:
    work = work_everywhere(engine)
    engine.pause_lane(LANE)
    for partition in range(engine.partitions):
        key = raw_key(engine, partition, f"lane:7:default4:{LANE}")
        raw_client(engine, partition).hset(key, field, "junk")

    assert engine.resume_lane(LANE) is True
    assert handed_out(engine) == work
    assert engine.pause_lane(LANE) is True
    upkeep_all(engine)
    assert engine.list_lanes().lanes[0].paused_since_ms is not None
