"""In which order a claim hands work out: by priority and time, lane by lane, and within its limits."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.admin import ChangePriorityArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.claiming import LaneRequest
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LANE,
    LEASE,
    RETRYING,
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    info_of,
    queue,
    request,
    running,
    same_partition_ids,
)

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)


# Order


def test_first_come_is_first_served(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 5)
    for execution_id in reversed(ids):
        created(engine, execution_id=execution_id)
        clock.move(MILLISECOND)

    assert claimed_ids(engine) == ids[::-1]


def test_a_higher_priority_goes_first(engine: Engine) -> None:
    ids = same_partition_ids(engine, 5)
    priorities = [0, 9000, 5, 9000, 8999]
    all_created(
        engine, [creation(execution_id=each, priority=value) for each, value in zip(ids, priorities, strict=True)]
    )

    assert claimed_ids(engine) == [ids[1], ids[3], ids[4], ids[2], ids[0]]


def test_priority_and_time_count_across_kinds_of_work(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 60)
    for number, execution_id in enumerate(ids):
        created(engine, execution_id=execution_id, task=f"t{number % 3}", priority=number % 2)
        clock.move(MILLISECOND)

    assert claimed_ids(engine) == ids[1::2] + ids[0::2]


def test_small_claims_follow_the_same_order_as_large_ones(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 12)
    for number, execution_id in enumerate(ids):
        created(engine, execution_id=execution_id, task=f"t{number % 5}")
        clock.move(MILLISECOND)

    served = [each.execution_id for _ in range(6) for each in engine.claim_many(request(limit=2))]

    assert served == ids


def test_a_changed_priority_changes_the_place(engine: Engine) -> None:
    first, second = queue(engine, 2)
    engine.change_priority(ChangePriorityArgs(execution_id=second, priority=10))

    assert claimed_ids(engine) == [second, first]


def test_delayed_work_comes_by_the_time_that_it_was_due(engine: Engine, clock: Clock) -> None:
    late, early, fresh = same_partition_ids(engine, 3)
    created(engine, execution_id=late, delay=10 * SECOND)
    created(engine, execution_id=early, delay=5 * SECOND)
    clock.move(7 * SECOND)
    created(engine, execution_id=fresh)
    clock.move(10 * SECOND)

    assert claimed_ids(engine) == [early, fresh, late]


def test_a_retry_keeps_its_place(engine: Engine, clock: Clock) -> None:
    first, second = queue(engine, 2, policy=RETRYING)
    engine.fail(claim_one(engine).handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND)

    assert claimed_ids(engine) == [first, second]


def test_released_work_keeps_its_place(engine: Engine, clock: Clock) -> None:
    first, second = queue(engine, 2)
    claimed = claim_one(engine)
    clock.move(SECOND)
    engine.release(claimed.handle)

    assert claimed_ids(engine) == [first, second]


def test_reclaimed_work_keeps_its_place(engine: Engine, clock: Clock) -> None:
    first, second = queue(engine, 2)
    claim_one(engine)
    clock.move(LEASE)

    assert claimed_ids(engine) == [first, second]


def test_replayed_work_takes_a_new_place(engine: Engine, clock: Clock) -> None:
    first, second = queue(engine, 2)
    engine.complete(claim_one(engine).handle)
    clock.move(MILLISECOND)
    engine.replay_execution(ReplayExecutionArgs(execution_id=first))

    assert claimed_ids(engine) == [second, first]


# Lanes


def test_lanes_are_served_in_the_order_they_are_asked_for(engine: Engine) -> None:
    ids = same_partition_ids(engine, 4)
    for execution_id, lane in zip(ids, ["b", "a", "c", "a"], strict=True):
        created(engine, execution_id=execution_id, lane=lane)

    served = [each.execution_id for each in engine.claim_many(request("a", "b", limit=9))]

    assert served == [ids[1], ids[3], ids[0]]


def test_a_lane_gives_no_more_than_its_limit(engine: Engine) -> None:
    places = iter(ids_in(engine, 0, 20))
    all_created(engine, [creation(lane=lane, execution_id=next(places)) for lane in ("a", "b") for _ in range(10)])
    lanes = (LaneRequest(lane="a", limit=3), LaneRequest(lane="b"))

    served = [each.handle.lane for each in engine.claim_many(request(lanes=lanes, limit=8))]

    assert sorted(served) == ["a"] * 3 + ["b"] * 5


def test_a_lane_with_a_limit_of_nothing_gives_nothing(engine: Engine) -> None:
    created(engine, lane="a")
    lanes = (LaneRequest(lane="a", limit=0), LaneRequest(lane="b"))

    assert engine.claim_many(request(lanes=lanes)) == []


def test_a_claim_gives_no_more_than_its_limit(engine: Engine) -> None:
    all_created(engine, [creation() for _ in range(30)])

    assert len(engine.claim_many(request(limit=20))) == 20
    assert len(engine.claim_many(request(limit=20))) == 10


def test_a_paused_lane_hands_nothing_out_and_loses_nothing(engine: Engine) -> None:
    execution_id = created(engine)
    other = created(engine, lane="other")
    engine.pause_lane(LANE)

    assert [each.execution_id for each in engine.claim_many(request(LANE, "other", limit=9))] == [other]
    engine.resume_lane(LANE)
    assert claimed_ids(engine) == [execution_id]


def test_what_runs_when_its_lane_is_paused_goes_on(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    engine.pause_lane(LANE)

    engine.renew(claimed.handle)
    engine.complete(claimed.handle)

    assert info_of(engine, claimed.execution_id).public_state is PublicState.COMPLETED
