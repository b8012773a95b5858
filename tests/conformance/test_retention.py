"""Retention: how long ended executions are kept, and that nothing is left afterwards."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.limits import Limits
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, Duplicate
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    claim_one,
    created,
    creation,
    depths,
    info_of,
    running,
    same_partition_ids,
)
from tests.support.maintenance import DAY, MILLISECOND, SECOND, HandleDue, by_keeper, handled
from tests.support.phases import ENDED, HOUR, PHASES_LANE, Phase, Phases


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (ExecutionPolicy(), DAY),
        (ExecutionPolicy(retention=HOUR), HOUR),
        (ExecutionPolicy(retention=3 * DAY), 3 * DAY),
        (ExecutionPolicy(retention=timedelta()), timedelta()),
    ],
)
def test_an_ended_execution_is_kept_for_its_retention(
    engine: Engine, clock: Clock, policy: ExecutionPolicy, kept: timedelta
) -> None:
    claimed = running(engine, policy=policy)
    clock.move(SECOND)
    engine.complete(claimed.handle, b"result")
    assert info_of(engine, claimed.execution_id).remove_at_ms == clock.ms + kept // MILLISECOND
    if kept:
        clock.move(kept - MILLISECOND)
        by_keeper(engine)
        assert engine.get_execution_result(claimed.execution_id) == b"result"
        clock.move(MILLISECOND)
    by_keeper(engine)
    assert engine.read_execution_info(claimed.execution_id) is None


@pytest.mark.parametrize("window", [2 * HOUR, 3 * DAY])
def test_an_execution_is_not_removed_before_its_key_is_free(engine: Engine, clock: Clock, window: timedelta) -> None:
    policy = ExecutionPolicy(retention=HOUR, dedup_window=window)
    first = created(engine, idempotency_key="order-17", policy=policy)
    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    clock.move(window - MILLISECOND)
    by_keeper(engine)
    assert engine.read_execution_state(first) is PublicState.CANCELLED
    assert not isinstance(engine.create_execution(creation(idempotency_key="order-17")), Created)
    clock.move(MILLISECOND)
    by_keeper(engine)
    assert engine.read_execution_info(first) is None
    assert created(engine, idempotency_key="order-17") != first


def test_the_window_of_a_key_never_ends_before_its_execution_does(engine: Engine, clock: Clock) -> None:
    first = created(engine, idempotency_key="order-17", policy=ExecutionPolicy(dedup_window=HOUR))
    clock.move(2 * HOUR)
    by_keeper(engine)

    again = engine.create_execution(creation(idempotency_key="order-17"))

    assert again == Duplicate(execution_id=first, same_request=True)
    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    assert created(engine, idempotency_key="order-17") != first


@handled
@pytest.mark.parametrize("phase", ENDED)
def test_an_execution_past_its_retention_leaves_no_trace(
    engine: Engine, clock: Clock, dump: Dump, phase: Phase, handle_due: HandleDue
) -> None:
    phases = Phases(engine, clock, {"idempotency_key": "order-17", "tags": {"app.order": "17"}})
    execution_id = phase(phases)
    clock.move(DAY - MILLISECOND)
    handle_due(engine)
    assert [key for key in dump() if execution_id.uuid in key]
    # The end is announced for a day, and that is looked at once an hour.
    for _ in range(3):
        clock.move(HOUR)
        handle_due(engine)
    assert [key for key, value in dump().items() if execution_id.uuid in key + str(value)] == []
    assert [key for key, value in dump().items() if "order-17" in key + str(value)] == []
    assert depths(engine, PHASES_LANE) == {}


def test_a_store_holds_only_its_configuration_after_all_retention(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.register_worker(RegisterWorkerArgs(worker_id="w1", worker_instance_id="w1"))
    phases = Phases(engine, clock, {"tags": {"app.order": "17"}})
    for phase in ENDED:
        phase(phases)
    for _ in range(60):
        clock.move(HOUR)
        by_keeper(engine)
    kinds = {key.split("}:", 1)[1].split(":")[0] for key in dump()}
    assert kinds == {"meta", "secrets"}


@pytest.mark.parametrize("used", ["delayed work", "paused"])
def test_a_lane_that_is_used_stays_listed(engine: Engine, clock: Clock, used: str) -> None:
    if used == "paused":
        engine.pause_lane(LANE)
    else:
        created(engine, delay=40 * DAY)
    for _ in range(3):
        clock.move(DAY)
        by_keeper(engine)
    assert [each.lane for each in engine.list_lanes().lanes] == [LANE]


def test_the_feed_keeps_an_end_for_a_day(engine: Engine, clock: Clock, dump: Dump) -> None:
    engine.complete(running(engine).handle)
    clock.move(DAY)
    by_keeper(engine)
    assert len(list(engine.subscribe_completions(timeout=timedelta()))) == 1
    for _ in range(2):
        clock.move(HOUR)
        by_keeper(engine)
    assert list(engine.subscribe_completions(timeout=timedelta())) == []
    assert not [key for key in dump() if key.endswith(":feed")]


def test_the_feed_is_trimmed_when_an_execution_expires_in_the_same_call(
    engine: Engine, clock: Clock, dump: Dump
) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=first)
    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    created(engine, execution_id=second, deadline=clock.now + 2 * DAY + MILLISECOND)
    # In one pass the feed is looked at for the first time, and then the second one ends.
    clock.move(2 * DAY + MILLISECOND)
    by_keeper(engine)
    assert engine.read_execution_state(second) is PublicState.EXPIRED
    for _ in range(27):
        clock.move(HOUR)
        by_keeper(engine)
    assert not [key for key in dump() if key.endswith(":feed")]


def test_a_worker_is_forgotten_a_day_after_it_was_last_alive(engine: Engine, clock: Clock, dump: Dump) -> None:
    alive_for = timedelta(seconds=60)
    engine.register_worker(RegisterWorkerArgs(worker_id="w1", worker_instance_id="i1", alive_for=alive_for))
    clock.move(alive_for)
    engine.heartbeat_worker("i1", alive_for)
    clock.move(DAY + alive_for - MILLISECOND)
    by_keeper(engine)
    assert len(engine.list_workers().workers) == 1
    clock.move(MILLISECOND)
    by_keeper(engine)
    assert engine.list_workers().workers == ()
    assert not [key for key in dump() if ":worker" in key]


def test_a_class_that_was_empty_for_an_hour_is_forgotten_until_it_has_work(
    engine: Engine, clock: Clock, dump: Dump
) -> None:
    handle = running(engine, lane=LANE).handle
    engine.complete(handle)
    assert [key for key in dump() if key.endswith(":classes")]
    clock.move(2 * HOUR)
    by_keeper(engine)
    assert not [key for key in dump() if key.endswith((":classes", ":held"))]
    engine.replay_execution(ReplayExecutionArgs(execution_id=handle.execution_id))
    assert claim_one(engine).execution_id == handle.execution_id


@pytest.mark.parametrize("state", ["delayed", "active"])
def test_a_class_that_holds_work_of_any_kind_is_not_forgotten(
    engine: Engine, clock: Clock, dump: Dump, state: str
) -> None:
    if state == "delayed":
        created(engine, delay=9 * HOUR)
    else:
        running(engine, lane=LANE, lease=10 * HOUR)
    clock.move(5 * HOUR)
    by_keeper(engine)
    assert [key for key in dump() if key.endswith(":classes")]


def test_the_feed_is_kept_as_long_as_the_store_was_told(
    engine: Engine, store_url: str, clock: Clock, dump: Dump
) -> None:
    engine.complete(running(engine).handle)
    told = open_engine(store_url, limits=Limits(feed_age_ms=60_000))
    assert told.partitions
    told.close()
    for _ in range(3):
        clock.move(HOUR)
        by_keeper(engine)
    assert not [key for key in dump() if key.endswith(":feed")]
