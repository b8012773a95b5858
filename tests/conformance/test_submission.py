"""Creating executions: one and many, now and later, each in its lane and namespace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ResourceExhaustedError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_CLASSES_PER_LANE, MIB
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, Duplicate
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    RETRYING,
    TASK,
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    info_of,
    refused,
    request,
    same_partition_ids,
    tenant,
    upkeep_all,
)

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)


# A new execution


def test_a_new_execution_waits_for_a_worker(engine: Engine, clock: Clock) -> None:
    result = engine.create_execution(creation())

    assert isinstance(result, Created)
    assert result.state is PublicState.WAITING
    snapshot = engine.describe_execution(result.execution_id)
    assert snapshot is not None
    assert snapshot.public_state is PublicState.WAITING
    assert snapshot.blocking_reason == "waiting_for_worker"
    assert snapshot.blocking_detail is None
    assert (snapshot.lane, snapshot.task, snapshot.namespace) == (LANE, TASK, "default")
    assert (snapshot.current_attempt, snapshot.current_lease, snapshot.current_waitpoint) == (None, None, None)
    assert (snapshot.flow_id, snapshot.total_attempt_count, snapshot.tags) == (None, 0, {})
    assert snapshot.created_at_ms == snapshot.last_mutation_at_ms == clock.ms


def test_a_new_execution_has_the_six_dimensions_of_waiting_work(engine: Engine) -> None:
    state = info_of(engine, created(engine)).state

    assert (state.lifecycle_phase, state.ownership_state, state.eligibility_state) == (
        "runnable",
        "unowned",
        "eligible_now",
    )
    assert (state.blocking_reason, state.terminal_outcome, state.attempt_state) == (
        "waiting_for_worker",
        "none",
        "pending_first_attempt",
    )


def test_everything_that_a_creation_says_comes_with_the_claim(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(
        attempt_timeout=timedelta(minutes=2), max_reclaim_count=3, requires=frozenset({"gpu", "cuda"})
    )
    execution_id = created(
        engine, payload=b"\x00payload", codec="json", priority=7, policy=policy, tags={"order": "7", "who": "Ö"}
    )

    claimed = claim_one(engine, capabilities={"cuda", "gpu", "more"})

    assert claimed.execution_id == execution_id
    assert (claimed.payload, claimed.codec, claimed.priority) == (b"\x00payload", "json", 7)
    assert (claimed.tags, claimed.policy) == ({"order": "7", "who": "Ö"}, policy)
    assert (claimed.task, claimed.namespace, claimed.handle.lane) == (TASK, "default", LANE)
    assert claimed.created_at_ms == clock.ms


def test_the_creator_is_shown_to_operators(engine: Engine) -> None:
    assert info_of(engine, created(engine, creator="shop-7")).creator == "shop-7"


def test_a_minted_id_lies_in_the_partition_of_its_uuid(engine: Engine) -> None:
    for execution_id in all_created(engine, [creation() for _ in range(20)]):
        assert execution_id.partition_number == partition_of_uuid(UUID(execution_id.uuid), engine.partitions)


def test_a_lane_exists_from_its_first_use(engine: Engine) -> None:
    assert engine.list_lanes().lanes == ()

    created(engine, lane="alpha")
    created(engine, lane="beta")

    assert [lane.lane for lane in engine.list_lanes().lanes] == ["alpha", "beta"]


def test_a_default_policy_is_the_one_that_is_documented() -> None:
    policy = ExecutionPolicy()

    assert (policy.retry, policy.attempt_timeout, policy.execution_deadline) == (None, None, None)
    assert (policy.max_reclaim_count, policy.max_replay_count) == (100, 10)


# Times


def test_delayed_work_is_not_handed_out_before_its_time(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, delay=5 * SECOND)
    snapshot = engine.describe_execution(execution_id)

    assert snapshot is not None
    assert (snapshot.public_state, snapshot.blocking_reason) == (PublicState.DELAYED, "waiting_for_delay")
    assert snapshot.blocking_detail is not None
    assert snapshot.blocking_detail.startswith("delayed until ")
    clock.move(5 * SECOND - MILLISECOND)
    assert claimed_ids(engine) == []
    clock.move(MILLISECOND)
    assert claimed_ids(engine) == [execution_id]


def test_delayed_work_may_name_its_moment(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, delay_until=clock.now + 5 * SECOND)

    assert info_of(engine, execution_id).delay_until_ms == clock.ms + 5000
    clock.move(5 * SECOND)
    assert claimed_ids(engine) == [execution_id]


@pytest.mark.parametrize("ago", [timedelta(), MILLISECOND, timedelta(days=400)], ids=str)
def test_a_moment_that_is_past_means_now(engine: Engine, clock: Clock, ago: timedelta) -> None:
    result = engine.create_execution(creation(delay_until=clock.now - ago))

    assert isinstance(result, Created)
    assert result.state is PublicState.WAITING
    assert claimed_ids(engine) == [result.execution_id]
    assert upkeep_all(engine) == 0


def test_no_delay_means_now(engine: Engine) -> None:
    assert info_of(engine, created(engine, delay=timedelta())).public_state is PublicState.WAITING


@pytest.mark.parametrize(
    "times",
    [
        {"delay": SECOND, "delay_until": datetime(2031, 1, 1, tzinfo=UTC)},
        {"delay": -SECOND},
        {"delay": timedelta(days=365 * 200)},
        {"delay": 5},
        {"delay_until": datetime(2031, 1, 1)},
        {"delay_until": 1_900_000_000},
        {"deadline": datetime(2031, 1, 1)},
        {"deadline": datetime(1969, 12, 31, tzinfo=UTC)},
    ],
    ids=lambda times: ",".join(f"{name}={value}" for name, value in times.items()),
)
def test_a_wrong_time_is_refused(engine: Engine, dump: Dump, times: dict[str, Any]) -> None:
    before = dump()

    with refused("invalid_input"):
        engine.create_execution(creation(**times))

    assert dump() == before


def test_waiting_work_expires_at_its_deadline(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now + 5 * SECOND)

    clock.move(5 * SECOND - MILLISECOND)
    upkeep_all(engine)
    assert info_of(engine, execution_id).public_state is PublicState.WAITING
    clock.move(MILLISECOND)
    upkeep_all(engine)
    assert info_of(engine, execution_id).public_state is PublicState.EXPIRED


def test_a_policy_may_count_the_deadline_from_creation(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, policy=ExecutionPolicy(execution_deadline=5 * SECOND))

    assert info_of(engine, execution_id).deadline_at_ms == clock.ms + 5000


def test_work_created_after_its_deadline_expires_and_is_never_claimed(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now - SECOND)

    assert claimed_ids(engine) == []
    assert info_of(engine, execution_id).public_state is PublicState.EXPIRED


# Many at once


def test_many_are_made_in_one_call_each_with_its_own_answer(engine: Engine) -> None:
    old = created(engine, idempotency_key="old")

    results = engine.create_executions(
        [creation(lane="one"), creation(idempotency_key="old"), creation(lane="two", delay=SECOND)]
    )

    assert isinstance(results[0], Created)
    assert results[1] == Duplicate(execution_id=old, same_request=True)
    assert isinstance(results[2], Created)
    assert (results[0].state, results[2].state) == (PublicState.WAITING, PublicState.DELAYED)
    assert info_of(engine, results[2].execution_id).lane == "two"


def test_no_item_makes_nothing(engine: Engine, dump: Dump) -> None:
    before = dump()

    assert engine.create_executions([]) == []
    assert dump() == before


@pytest.mark.parametrize("naming", ["execution_id", "idempotency_key"])
def test_a_name_that_stands_twice_in_a_call_is_refused_whole(engine: Engine, dump: Dump, naming: str) -> None:
    name = ExecutionId.mint(engine.partitions) if naming == "execution_id" else "k"
    before = dump()

    with refused("duplicate_in_call"):
        engine.create_executions([creation(), creation(**{naming: name}), creation(**{naming: name})])

    assert dump() == before


def test_the_order_within_a_call_is_the_order_of_the_claims(engine: Engine) -> None:
    ids = same_partition_ids(engine, 40)
    all_created(engine, [creation(execution_id=each) for each in ids])

    assert claimed_ids(engine) == ids


def test_a_call_takes_more_items_than_one_round_trip_carries(engine: Engine) -> None:
    ids = all_created(engine, [creation(payload=str(number).encode()) for number in range(1200)])

    assert len(set(ids)) == 1200
    (lane,) = engine.list_lanes().lanes
    assert lane.depths[PublicState.WAITING] == 1200


def test_a_call_takes_more_bytes_than_one_round_trip_carries(engine: Engine) -> None:
    payloads = [bytes([number]) * MIB for number in range(9)]
    ids = all_created(engine, [creation(payload=payload) for payload in payloads])

    claimed = {}
    while len(claimed) < 9:
        claimed |= {each.execution_id: each.payload for each in engine.claim_many(request(limit=9))}
    assert [claimed[each] for each in ids] == payloads


# Kinds of work in a lane


def test_a_lane_with_too_many_kinds_of_work_refuses_one_more_and_goes_on(engine: Engine) -> None:
    tasks = [f"t{number}" for number in range(MAX_CLASSES_PER_LANE)]
    for partition in range(engine.partitions):
        # The registry belongs to a partition, so each gets all of them.
        ids = ids_in(engine, partition, len(tasks))
        all_created(engine, [creation(task=task, execution_id=each) for task, each in zip(tasks, ids, strict=True)])

    with refused("too_many_classes") as caught:
        engine.create_execution(creation(task="one-more"))
    results = engine.create_executions([creation(task="one-more"), creation(task="t0"), creation(lane="other")])

    assert caught.value.details["lane"] == LANE
    assert [type(result) for result in results] == [ResourceExhaustedError, Created, Created]
    assert len(claimed_ids(engine, tasks={"t0", "t1023"})) == 2 * engine.partitions + 1


def test_a_lane_forgets_kinds_of_work_that_it_held_long_ago(engine: Engine, clock: Clock) -> None:
    *old, new = ids_in(engine, 0, MAX_CLASSES_PER_LANE + 1)
    all_created(engine, [creation(task=f"t{number}", execution_id=each) for number, each in enumerate(old)])
    for execution_id in old:
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))

    clock.move(timedelta(hours=1))
    upkeep_all(engine)

    assert created(engine, task="new", execution_id=new) == new


# Namespaces


def test_namespaces_never_meet(engine: Engine) -> None:
    other = tenant(engine, "other")
    ours = created(engine, idempotency_key="k", payload=b"ours")
    theirs = created(other, idempotency_key="k", payload=b"theirs")

    assert ours != theirs
    assert [each.execution_id for each in engine.list_executions().executions] == [ours]
    assert [each.execution_id for each in other.list_executions(filter=ExecutionFilter(lane=LANE)).executions] == [
        theirs
    ]
    assert [lane.depths[PublicState.WAITING] for lane in other.list_lanes().lanes] == [1]
    engine.pause_lane(LANE)
    assert [each.payload for each in other.claim_many(request(limit=9))] == [b"theirs"]
    assert other.claim_many(request(limit=9)) == []
    engine.resume_lane(LANE)
    assert [each.payload for each in engine.claim_many(request(limit=9))] == [b"ours"]


def test_names_that_run_into_each_other_stay_apart(engine: Engine) -> None:
    one, two = tenant(engine, "a"), tenant(engine, "a1:b")
    created(one, lane="1:b", task="x", idempotency_key=f"k{uuid4()}")

    assert two.claim_many(request("b")) == []
    assert len(one.claim_many(request("1:b"))) == 1


def test_a_namespace_is_a_name() -> None:
    with refused("invalid_input"):
        open_engine("memory://", namespace="")


def test_headers_travel_from_the_submission_to_the_holder_and_are_shown(engine: Engine) -> None:
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "origin": "ü"}
    execution_id = created(engine, headers=headers)

    claimed = claim_one(engine)

    assert claimed.headers == headers
    assert info_of(engine, execution_id).headers == headers
    snapshot = engine.describe_execution(execution_id)
    assert snapshot is not None
    assert snapshot.headers == headers


def test_headers_stay_over_a_retry_and_a_replay(engine: Engine) -> None:
    execution_id = created(engine, headers={"origin": "web"}, policy=RETRYING)
    engine.fail(claim_one(engine).handle, BOOM, FailureClass.TRANSIENT, timedelta())
    retried = claim_one(engine)
    engine.complete(retried.handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution_id))

    assert (retried.headers, claim_one(engine).headers) == ({"origin": "web"}, {"origin": "web"})
