"""Work that cannot be claimed never hides work that can."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_LANES_PER_CLAIM, MAX_LEASE_ITEMS
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import decode_class, pack
from tests.conftest import Clock
from tests.support.executions import (
    LANE,
    all_created,
    claimed_ids,
    created,
    creation,
    ids_in,
    raw_client,
    raw_key,
    refused,
    request,
)
from tests.support.maintenance import SECOND


def claimed_one(engine: Engine) -> list[ExecutionId]:
    """Return what a claim of one execution gets."""
    return [each.execution_id for each in engine.claim_many(request(worker="w2"))]


@pytest.mark.parametrize("dead", [20, 300])
def test_work_that_was_reclaimed_too_often_hides_nothing(engine: Engine, clock: Clock, dead: int) -> None:
    policy = ExecutionPolicy(max_reclaim_count=0)
    *lost, ready = ids_in(engine, 0, dead + 1)
    all_created(engine, [creation(execution_id=each, policy=policy) for each in lost])
    assert len(claimed_ids(engine, lease=SECOND)) == dead
    clock.move(2 * SECOND)
    while engine.run_upkeep(500).more:
        pass
    created(engine, execution_id=ready)

    assert claimed_one(engine) == [ready]


def test_overdue_deadlines_hide_nothing(engine: Engine, clock: Clock) -> None:
    *overdue, ready = ids_in(engine, 0, 61)
    policy = ExecutionPolicy(execution_deadline=SECOND)
    all_created(engine, [creation(execution_id=each, policy=policy) for each in overdue])
    created(engine, execution_id=ready)
    clock.move(2 * SECOND)

    assert claimed_one(engine) == [ready]


def test_much_work_of_a_newer_release_stays_and_hides_nothing(engine: Engine, clock: Clock) -> None:
    *newer, ready = ids_in(engine, 0, 301)
    all_created(engine, [creation(execution_id=each, priority=9) for each in newer])
    client = raw_client(engine, 0)
    keys = [raw_key(engine, 0, f"x:{each.uuid}") for each in newer]
    states = [client.hget(key, "state") for key in keys]
    for key, state in zip(keys, states, strict=True):
        client.hset(key, "state", b"d" + state[1:])
    created(engine, execution_id=ready)

    assert claimed_one(engine) == [ready]
    assert claimed_one(engine) == []
    (index,) = client.keys(raw_key(engine, 0, "ready:*").replace("{", "[{]"))
    assert client.zcard(index) == len(newer)

    # The newer release handed it back to this one.
    for key, state in zip(keys, states, strict=True):
        client.hset(key, "state", state)
    clock.move(timedelta(seconds=6))
    claimed = [each.execution_id for _ in range(5) for each in engine.claim_many(request(limit=100))]
    assert sorted(claimed) == sorted(newer)


def test_very_many_idle_kinds_of_work_hide_none(engine: Engine) -> None:
    (ready,) = ids_in(engine, 0, 1)
    created(engine, execution_id=ready, task="zz-last")
    (known,) = raw_client(engine, 0).zrange(raw_key(engine, 0, "classes"), 0, -1)
    kinds = {known.replace(b"7:zz-last", b"7:t%06d" % number): 0 for number in range(2100)}
    raw_client(engine, 0).zadd(raw_key(engine, 0, "classes"), kinds)

    assert claimed_one(engine) == [ready]


def test_a_claim_over_many_kinds_of_work_takes_few_calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = [f"lane-{number:02}" for number in range(MAX_LANES_PER_CLAIM)]
    ids = iter(ids_in(engine, 0, 2 * len(lanes)))
    for task in ("a", "b"):
        all_created(engine, [creation(lane=lane, task=task, execution_id=next(ids)) for lane in lanes])
    engine.matching_lanes(0, request(*lanes))
    called = []
    call = engine.call
    monkeypatch.setattr(engine, "call", lambda *args: called.append(args[:2]) or call(*args))

    claimed = engine.claim_many(request(*lanes, limit=500))

    assert len(claimed) >= MAX_LANES_PER_CLAIM
    assert called.count(("claim_many", 0)) <= math.ceil(len(claimed) / MAX_LEASE_ITEMS)


def test_a_claim_names_at_most_sixty_four_lanes(engine: Engine) -> None:
    lanes = [f"lane-{number}" for number in range(MAX_LANES_PER_CLAIM + 1)]
    assert engine.claim_many(request(*lanes[1:])) == []
    with refused("invalid_input"):
        engine.claim_many(request(*lanes))


@pytest.mark.parametrize("counter", ["lane", "held", "turns"])
def test_a_damaged_counter_stops_nothing(engine: Engine, counter: str) -> None:
    (execution_id,) = ids_in(engine, 0, 1)
    created(engine, execution_id=execution_id)
    client = raw_client(engine, 0)
    lane = pack((engine.namespace, LANE)).decode()
    fields = {"lane": (f"lane:{lane}", "waiting"), "held": ("held", None), "turns": ("meta", "turns")}
    name, field = fields[counter]
    key = raw_key(engine, 0, name)
    client.hset(key, field or client.hkeys(key)[0], b"nonsense")

    (claimed,) = engine.claim_many(request(max_wait=SECOND))
    engine.complete(claimed.handle)

    assert engine.claim_many(request(max_wait=SECOND / 100)) == []
    assert engine.read_execution_state(execution_id) is PublicState.COMPLETED


# The classes of a lane, under their revision.


def test_a_class_is_seen_although_a_restored_snapshot_took_another_away(engine: Engine, store_url: str) -> None:
    first, second, third = ids_in(engine, 0, 3)
    created(engine, execution_id=first)
    assert claimed_ids(engine) == [first]
    lane, classes = f"lane:{pack((engine.namespace, LANE)).decode()}", raw_key(engine, 0, "classes")
    client, key = raw_client(engine, 0), raw_key(engine, 0, lane)
    snapshot = client.hget(key, "revision")
    created(engine, execution_id=second, task="lost")
    assert claimed_ids(engine) == [second]
    lost = next(each for each in client.zrange(classes, 0, -1) if decode_class(each).task == "lost")
    client.zrem(classes, lost)
    client.hset(key, "revision", snapshot)
    other = open_engine(store_url)
    created(other, execution_id=third, task="new")
    other.close()

    assert claimed_ids(engine) == [third]


def test_new_classes_of_one_lane_leave_the_others_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    known, *new = ids_in(engine, 0, 6)
    created(engine, execution_id=known)
    engine.matching_lanes(0, request())
    read = []
    call = engine.call
    monkeypatch.setattr(engine, "call", lambda *args: read.append(args) or call(*args))
    for number, each in enumerate(new):
        created(engine, lane="busy", task=f"t{number}", execution_id=each)
        claimed_ids(engine, "busy")

    assert claimed_ids(engine) == [known]
    again = [lanes[0] for function, partition, lanes in read if (function, partition) == ("list_classes", 0)]
    assert again
    assert engine.packed_lane(LANE) not in again


def test_a_lane_whose_classes_change_all_the_time_holds_no_other_up(engine: Engine, clock: Clock) -> None:
    (ready,) = ids_in(engine, 0, 1)
    created(engine, lane="calm", execution_id=ready)
    client, key = raw_client(engine, 0), raw_key(engine, 0, f"lane:{pack((engine.namespace, 'busy')).decode()}")
    call = engine.call

    def calling(function: str, *arguments: object) -> object:
        client.hincrby(key, "revision", 1)
        return call(function, *arguments)  # type: ignore[arg-type]

    engine.call = calling  # type: ignore[method-assign,assignment]
    assert claimed_ids(engine, "busy", "calm") == [ready]
    assert engine.list_lanes().lanes[0].depths[PublicState.ACTIVE] == 1
