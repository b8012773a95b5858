"""What is due at once is shared out: leases before delays, delays fairly by lane, removal beside all of it."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import (
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    raw_client,
    raw_key,
    request,
    running,
    upkeep_all,
)
from tests.support.maintenance import MILLISECOND, SECOND
from tests.support.phases import HOUR

HERD = 1500


def herd(engine: Engine, **changes: Any) -> list[ExecutionId]:
    """Return many executions of one lane and one partition."""
    ids = ids_in(engine, 0, HERD)
    for first in range(0, HERD, 500):
        all_created(engine, [creation(lane="herd", execution_id=each, **changes) for each in ids[first : first + 500]])
    return ids


def entries(engine: Engine, index: str) -> list[bytes]:
    """Return what a due index of the first partition holds."""
    return raw_client(engine, 0).zrange(raw_key(engine, 0, index), 0, -1)  # type: ignore[no-any-return]


def test_a_herd_of_delays_holds_up_no_other_lane(engine: Engine, clock: Clock) -> None:
    herd(engine, delay=SECOND)
    (quick,) = ids_in(engine, 0, 1)
    created(engine, lane="quick", execution_id=quick, delay=SECOND + MILLISECOND)
    clock.move(HOUR)
    assert claimed_ids(engine, "quick") == [quick]


def test_a_herd_of_delays_holds_up_no_lapsed_lease(engine: Engine, clock: Clock) -> None:
    herd(engine, delay=SECOND)
    (held,) = ids_in(engine, 0, 1)
    created(engine, lane="held", execution_id=held)
    assert claimed_ids(engine, "held", lease=2 * SECOND) == [held]
    clock.move(HOUR)
    assert claim_one(engine, "held", worker="w2").execution_id == held


def test_a_herd_of_lapsed_leases_leaves_a_part_to_delays(engine: Engine, clock: Clock) -> None:
    herd(engine)
    for _ in range(HERD // 500):
        assert len(engine.claim_many(request("herd", limit=500, lease=SECOND))) == 500
    (quick,) = ids_in(engine, 0, 1)
    created(engine, lane="quick", execution_id=quick, delay=2 * SECOND)
    clock.move(HOUR)
    assert claimed_ids(engine, "quick") == [quick]


def test_a_herd_of_removals_holds_up_no_delay(engine: Engine, clock: Clock) -> None:
    for each in herd(engine, policy=ExecutionPolicy(retention=SECOND))[:200]:
        engine.cancel_execution(CancelExecutionArgs(execution_id=each))
    (quick,) = ids_in(engine, 0, 1)
    created(engine, lane="quick", execution_id=quick, delay=2 * SECOND)
    clock.move(HOUR)
    assert claimed_ids(engine, "quick") == [quick]


def test_lanes_with_herds_of_delays_take_turns(engine: Engine, clock: Clock) -> None:
    lanes = [f"herd-{number:02}" for number in range(40)]
    for lane in lanes:
        ids = ids_in(engine, 0, 60)
        all_created(engine, [creation(lane=lane, execution_id=each, delay=SECOND) for each in ids])
    (quick,) = ids_in(engine, 0, 1)
    created(engine, lane="quick", execution_id=quick, delay=2 * SECOND)
    clock.move(HOUR)
    for turn in range(4):
        if engine.read_execution_state(quick) is PublicState.WAITING:
            break
        clock.move(MILLISECOND)
        engine.claim_many(request("elsewhere", worker=f"w{turn}"))
    assert claimed_ids(engine, "quick") == [quick]


def test_a_claim_takes_of_a_herd_of_timers_what_it_asks_for(engine: Engine, clock: Clock) -> None:
    herd(engine, delay=SECOND)
    clock.move(SECOND)
    assert len(engine.claim_many(request("herd", limit=200))) == 200
    ready = engine.list_lanes().lanes[0].depths[PublicState.WAITING]
    assert ready <= 200


def test_removal_keeps_pace_with_the_ends(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(retention=SECOND)
    for _ in range(12):
        ids = ids_in(engine, 0, 100)
        all_created(engine, [creation(execution_id=each, policy=policy) for each in ids])
        claimed = engine.claim_many(request(limit=100))
        assert len(claimed) == 100
        engine.complete_many([Completion(handle=each.handle) for each in claimed])
        clock.move(SECOND)
    # The last hundred is overdue by now, and what the calls before it left.
    assert len(entries(engine, "ids")) <= 200
    assert len([each for each in entries(engine, "retention") if each.startswith(b"x")]) <= 200


def test_an_end_removes_nothing_that_it_ended_itself(engine: Engine, clock: Clock) -> None:
    handle = running(engine, policy=ExecutionPolicy(retention=0 * SECOND)).handle
    engine.complete(handle)
    engine.complete(handle)
    clock.move(MILLISECOND)
    upkeep_all(engine)
    assert engine.read_execution_info(handle.execution_id) is None


def test_an_emptied_lane_of_delays_leaves_no_index(engine: Engine, clock: Clock) -> None:
    (first, second) = ids_in(engine, 0, 2)
    created(engine, execution_id=first, delay=SECOND)
    created(engine, execution_id=second, delay=HOUR)
    assert len(entries(engine, "delayed")) == 1
    engine.cancel_execution(CancelExecutionArgs(execution_id=second))
    clock.move(SECOND)
    upkeep_all(engine)
    assert entries(engine, "delayed") == []


@pytest.mark.parametrize("index", ["due", "retention"])
def test_a_due_entry_of_a_newer_release_is_kept_and_stops_nothing(engine: Engine, clock: Clock, index: str) -> None:
    raw_client(engine, 0).zadd(raw_key(engine, 0, index), {b"\xffnewer": clock.ms, b"!": clock.ms})
    (delayed,) = ids_in(engine, 0, 1)
    created(engine, execution_id=delayed, delay=SECOND)
    clock.move(SECOND)
    assert claimed_ids(engine) == [delayed]
    upkeep_all(engine)
    assert {b"\xffnewer", b"!"} <= set(entries(engine, index))


def test_an_execution_in_a_phase_of_a_newer_release_is_postponed_not_ended(engine: Engine, clock: Clock) -> None:
    (newer,) = ids_in(engine, 0, 1)
    created(engine, execution_id=newer, policy=ExecutionPolicy(execution_deadline=SECOND))
    client, key = raw_client(engine, 0), raw_key(engine, 0, f"x:{newer.uuid}")
    state = b"d" + client.hget(key, "state")[1:]
    client.hset(key, "state", state)
    clock.move(2 * SECOND)
    upkeep_all(engine)
    assert client.hget(key, "state") == state
    assert f"x{newer.uuid}".encode() in entries(engine, "due")
