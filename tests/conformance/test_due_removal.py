"""Removal of ended work: it keeps pace, counts each execution once, and nothing is left of what is gone."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from tests.conftest import Clock
from tests.support.executions import (
    LANE,
    all_created,
    claimed_ids,
    created,
    creation,
    depths,
    ids_in,
    raw_client,
    raw_key,
    request,
    upkeep_all,
)
from tests.support.maintenance import MILLISECOND, SECOND

SHORT = ExecutionPolicy(retention=SECOND)


def completed(engine: Engine, count: int) -> None:
    """Create, claims and complete executions that are kept for a second."""
    all_created(engine, [creation(execution_id=each, policy=SHORT) for each in ids_in(engine, 0, count)])
    claimed = engine.claim_many(request(limit=count))
    assert len(claimed) == count
    engine.complete_many([Completion(handle=each.handle) for each in claimed])


def test_one_call_that_claims_ends_and_removes_counts_each_execution_once(engine: Engine, clock: Clock) -> None:
    lapsing = ExecutionPolicy(max_reclaim_count=0)
    ids = ids_in(engine, 0, 50)
    all_created(engine, [creation(lane="lapsing", execution_id=each, policy=lapsing) for each in ids])
    assert len(claimed_ids(engine, "lapsing", lease=SECOND)) == 50
    completed(engine, 100)
    clock.move(2 * SECOND)
    # The claim removes some, ends the lapsed ones, and removes twice as many again.
    assert claimed_ids(engine, "lapsing", worker="w2") == []
    upkeep_all(engine)
    assert depths(engine, LANE) == {}
    assert sum(depths(engine, "lapsing").values()) == 50


def test_under_full_load_with_a_short_retention_nothing_accumulates(engine: Engine, clock: Clock) -> None:
    client, most = raw_client(engine, 0), 0
    (timer,) = ids_in(engine, 0, 1)
    for turn in range(40):
        completed(engine, 50)
        if turn == 20:
            created(engine, lane="timer", execution_id=timer, delay=timedelta(milliseconds=100))
        if turn == 21:
            assert claimed_ids(engine, "timer", worker="timer") == [timer]
        clock.move(100 * MILLISECOND)
        overdue = client.zcount(raw_key(engine, 0, "retention"), "-inf", clock.ms - 1000)
        most = max(most, overdue)
    # Ten turns fit into a second of retention, and each removes at least what one turn ended.
    assert most <= 50
    assert client.zcard(raw_key(engine, 0, "ids")) <= 50 * 12
