"""Creating executions: one and many, duplicates, times, limits, and what is refused without a trace."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ResourceExhaustedError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import (
    DEFAULT_DEDUP_WINDOW_MS,
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_BYTES,
    MAX_CLASSES_PER_LANE,
    MAX_NAME_BYTES,
    MAX_PRIORITY,
    MAX_TAG_VALUE_BYTES,
    MAX_TAGS,
    MIB,
    Limits,
)
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.types.operating import CancelExecutionArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, Duplicate
from tests.conformance.work import (
    LANE,
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
from tests.conftest import Clock
from tests.dumping import Dump

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
DEDUP_WINDOW = timedelta(milliseconds=DEFAULT_DEDUP_WINDOW_MS)


def requiring(*capabilities: Any) -> ExecutionPolicy:
    return ExecutionPolicy(required_capabilities=frozenset(capabilities))


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
        attempt_timeout=timedelta(minutes=2), max_reclaim_count=3, required_capabilities=frozenset({"gpu", "cuda"})
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
        assert execution_id.partition == partition_of_uuid(UUID(execution_id.uuid), engine.partitions)


def test_a_lane_exists_from_its_first_use(engine: Engine) -> None:
    assert engine.list_lanes().lanes == ()

    created(engine, lane="alpha")
    created(engine, lane="beta")

    assert [lane.lane for lane in engine.list_lanes().lanes] == ["alpha", "beta"]


def test_a_default_policy_is_the_one_that_is_documented() -> None:
    policy = ExecutionPolicy()

    assert (policy.retry, policy.attempt_timeout, policy.execution_deadline) == (None, None, None)
    assert (policy.max_reclaim_count, policy.max_replay_count) == (100, 10)


# Payloads


@pytest.mark.parametrize(
    "payload", [None, b"", b"\x00", bytes(range(256)), b"=", "ü".encode()], ids=lambda value: repr(value)[:12]
)
def test_a_payload_comes_back_as_it_was_given(engine: Engine, payload: bytes | None) -> None:
    created(engine, payload=payload)

    assert claim_one(engine).payload == payload


def test_a_payload_may_have_the_size_of_the_limit(engine: Engine) -> None:
    payload = bytes(range(256)) * (MIB // 256)
    created(engine, payload=payload)

    assert claim_one(engine).payload == payload


def test_a_payload_one_byte_over_the_limit_is_refused(engine: Engine, dump: Dump) -> None:
    before = dump()

    with refused("payload_too_large") as caught:
        engine.create_execution(creation(payload=b"x" * (MIB + 1)))

    assert str(MIB) in str(caught.value)
    assert dump() == before


def test_an_operator_sets_the_limit_of_payloads(engine: Engine) -> None:
    strict = Engine(lambda: (engine.store, None), limits=Limits(payload_bytes=3))

    created(strict, payload=b"abc")
    with refused("payload_too_large"):
        strict.create_execution(creation(payload=b"abcd"))


@pytest.mark.parametrize("payload", ["text", bytearray(b"x"), {"a": 1}, 5], ids=lambda value: type(value).__name__)
def test_a_payload_that_is_no_bytes_is_refused(engine: Engine, payload: Any) -> None:
    with refused("invalid_input"):
        engine.create_execution(creation(payload=payload))


# Priority


@pytest.mark.parametrize(
    ("given", "stored"), [(MAX_PRIORITY + 1000, MAX_PRIORITY), (MAX_PRIORITY, MAX_PRIORITY), (50, 50), (0, 0), (-5, 0)]
)
def test_a_priority_is_clamped(engine: Engine, given: int, stored: int) -> None:
    assert info_of(engine, created(engine, priority=given)).priority == stored


@pytest.mark.parametrize("priority", [1.5, "5", None, True], ids=repr)
def test_a_priority_that_is_no_whole_number_is_refused(engine: Engine, dump: Dump, priority: Any) -> None:
    before = dump()

    with refused("invalid_input"):
        engine.create_execution(creation(priority=priority))

    assert dump() == before


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


def test_a_deadline_of_its_own_takes_the_place_of_the_policys(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now + SECOND, policy=ExecutionPolicy(execution_deadline=5 * SECOND))

    assert info_of(engine, execution_id).deadline_at_ms == clock.ms + 1000


def test_work_that_is_created_after_its_deadline_expires_and_is_never_handed_out(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now - SECOND)

    assert claimed_ids(engine) == []
    assert info_of(engine, execution_id).public_state is PublicState.EXPIRED


# Duplicates


def test_a_second_creation_under_the_same_id_is_a_duplicate(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine, execution_id=ExecutionId.mint(engine.partitions))
    before = dump()

    result = engine.create_execution(creation(execution_id=execution_id))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert dump() == before


def test_a_second_creation_under_the_same_key_is_a_duplicate(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine, idempotency_key="order-7")
    before = dump()

    result = engine.create_execution(creation(idempotency_key="order-7"))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert dump() == before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"priority": 9, "tags": {"a": "b"}, "lane": "other"}, True),
        ({"payload": b"other"}, False),
        ({"payload": None}, False),
        ({"payload": b""}, False),
        ({"task": "other"}, False),
        ({"codec": "msgpack"}, False),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("named_by", ["id", "key"])
def test_a_duplicate_tells_whether_the_same_was_asked_for(
    engine: Engine, named_by: str, change: dict[str, Any], same: bool
) -> None:
    naming: dict[str, Any] = {"idempotency_key": "k"}
    if named_by == "id":
        naming = {"execution_id": ExecutionId.mint(engine.partitions)}
    execution_id = created(engine, **naming)

    result = engine.create_execution(creation(**naming, **change))

    assert result == Duplicate(execution_id=execution_id, same_request=same)


def test_a_key_is_unique_across_the_lanes_of_a_namespace(engine: Engine) -> None:
    execution_id = created(engine, lane="one", idempotency_key="k")

    assert engine.create_execution(creation(lane="two", idempotency_key="k")) == Duplicate(
        execution_id=execution_id, same_request=True
    )


def test_a_key_with_another_id_answers_with_the_first_id(engine: Engine) -> None:
    execution_id = created(engine, idempotency_key="k")
    other = ExecutionId(execution_id.partition, ExecutionId.mint().uuid)

    result = engine.create_execution(creation(idempotency_key="k", execution_id=other))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert engine.describe_execution(other) is None


def test_a_key_stands_for_its_execution_also_after_that_ended(engine: Engine) -> None:
    execution_id = created(engine, idempotency_key="k")
    engine.complete(claim_one(engine).handle)

    assert isinstance(engine.create_execution(creation(idempotency_key="k")), Duplicate)
    assert info_of(engine, execution_id).public_state is PublicState.COMPLETED


@pytest.mark.parametrize("window", [None, timedelta(minutes=1)], ids=str)
@pytest.mark.parametrize("ended", [False, True], ids=["waiting", "ended"])
@pytest.mark.parametrize("kept", [False, True], ids=["alone", "with upkeep"])
def test_a_key_is_free_when_its_window_is_over(
    engine: Engine, clock: Clock, window: timedelta | None, ended: bool, kept: bool
) -> None:
    first = creation(idempotency_key="k", policy=ExecutionPolicy(dedup_window=window, retention=timedelta(days=30)))
    execution_id = created(engine, idempotency_key="k", policy=first.policy)
    if ended:
        engine.complete(claim_one(engine).handle)

    clock.move((window or DEDUP_WINDOW) - MILLISECOND)
    assert isinstance(engine.create_execution(first), Duplicate)
    clock.move(MILLISECOND)
    if kept:
        upkeep_all(engine)
    result = engine.create_execution(first)

    assert isinstance(result, Created)
    assert result.execution_id != execution_id
    assert engine.describe_execution(execution_id) is not None


def test_the_end_of_an_old_window_leaves_the_keys_next_execution_alone(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(dedup_window=SECOND)
    created(engine, idempotency_key="k", policy=policy)
    clock.move(SECOND)
    second = created(engine, idempotency_key="k", policy=policy)

    upkeep_all(engine)

    assert engine.create_execution(creation(idempotency_key="k", policy=policy)) == Duplicate(
        execution_id=second, same_request=True
    )


def test_an_id_stays_taken_when_the_window_of_its_key_is_over(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, idempotency_key="k", policy=ExecutionPolicy(dedup_window=SECOND))
    clock.move(SECOND)
    upkeep_all(engine)

    result = engine.create_execution(creation(idempotency_key="k", execution_id=execution_id))

    assert result == Duplicate(execution_id=execution_id, same_request=True)


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


def test_one_wrong_item_refuses_the_whole_call(engine: Engine, dump: Dump) -> None:
    before = dump()

    with refused("invalid_capabilities"):
        engine.create_executions([creation(), creation(policy=requiring("a b"))])

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


# What is refused


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"lane": ""}, "invalid_input"),
        ({"lane": "x" * 65}, "invalid_input"),
        ({"lane": "mäil"}, "invalid_input"),
        ({"lane": "a\n"}, "invalid_input"),
        ({"lane": None}, "invalid_input"),
        ({"task": ""}, "invalid_input"),
        ({"task": "x" * (MAX_NAME_BYTES + 1)}, "invalid_input"),
        ({"task": "a\0b"}, "invalid_input"),
        ({"idempotency_key": ""}, "invalid_input"),
        ({"idempotency_key": "ü" * 129}, "invalid_input"),
        ({"idempotency_key": "\ud800"}, "invalid_input"),
        ({"idempotency_key": 7}, "invalid_input"),
        ({"codec": "\t"}, "invalid_input"),
        ({"creator": "\x7f"}, "invalid_input"),
        ({"tags": {"": "v"}}, "invalid_tag_key"),
        ({"tags": {"a\nb": "v"}}, "invalid_tag_key"),
        ({"tags": {7: "v"}}, "invalid_tag_key"),
        ({"tags": {"k": 7}}, "invalid_input"),
        ({"tags": {"k": "a\0"}}, "invalid_input"),
        ({"tags": {"k": "\udfff"}}, "invalid_input"),
        ({"tags": ["k"]}, "invalid_input"),
        ({"tags": {"k": "v" * (MAX_TAG_VALUE_BYTES + 1)}}, "invalid_input"),
        ({"tags": {f"k{number}": "v" for number in range(MAX_TAGS + 1)}}, "invalid_input"),
        ({"policy": ExecutionPolicy(budget_ids=("b1",))}, "budget_not_found"),
        ({"policy": ExecutionPolicy(quota_policy_id="q1")}, "quota_policy_not_found"),
        ({"execution_id": ExecutionId(0, "no uuid")}, "invalid_execution_id"),
        ({"execution_id": ExecutionId(0, "550E8400-E29B-41D4-A716-446655440000")}, "invalid_execution_id"),
        ({"execution_id": "550e8400-e29b-41d4-a716-446655440000"}, "invalid_execution_id"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode() if isinstance(value, dict) else "",
)
def test_what_is_not_valid_is_refused_without_a_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any], code: str
) -> None:
    before = dump()

    with refused(code):
        engine.create_execution(creation(**changes))

    assert dump() == before


@pytest.mark.parametrize("naming", ["uuid", "key"])
def test_an_id_in_another_partition_than_its_own_is_refused(engine: Engine, dump: Dump, naming: str) -> None:
    key = {"idempotency_key": "k"} if naming == "key" else {}
    there = created(engine, **key)
    before = dump()

    with refused("partition_mismatch"):
        engine.create_execution(creation(execution_id=ExecutionId(there.partition + 1, there.uuid), **key))

    assert dump() == before


def test_names_may_have_the_size_of_their_limits(engine: Engine) -> None:
    longest = "ü" * (MAX_NAME_BYTES // 2)
    lane = "~" * 64
    tags = {f"{number:02}" + "k" * (MAX_NAME_BYTES - 2): "v" * MAX_TAG_VALUE_BYTES for number in range(MAX_TAGS)}
    execution_id = created(
        engine, lane=lane, task=longest, idempotency_key=longest, codec=longest, creator=longest, tags=tags
    )

    info = info_of(engine, execution_id)

    assert (info.lane, info.task, info.idempotency_key, info.codec, info.creator) == (lane, *[longest] * 4)
    assert info.tags == tags


# Capabilities


@pytest.mark.parametrize(
    "token", ["gpu,cuda", "", "a b", "a\tb", "a\x7fb", "a\u00a0b", "a\u2028b", None, 42, {"a": 1}, "\ud800"], ids=ascii
)
def test_a_wrong_capability_is_refused(engine: Engine, dump: Dump, token: Any) -> None:
    before = dump()

    with refused("invalid_capabilities"):
        engine.create_execution(creation(policy=ExecutionPolicy(required_capabilities=["gpu", token])))

    assert dump() == before


@pytest.mark.parametrize("tokens", ["gpu", b"gpu", 5, None], ids=repr)
def test_capabilities_that_are_no_collection_are_refused(tokens: Any) -> None:
    with refused("invalid_capabilities"):
        ExecutionPolicy(required_capabilities=tokens)


def test_capabilities_may_have_the_size_of_their_limit(engine: Engine) -> None:
    # 15 bytes and a comma each, but no comma behind the last one.
    tokens = [f"{number:015}" for number in range(MAX_CAPABILITIES_BYTES // 16 - 1)] + ["x" * 16]
    assert len(",".join(tokens)) == MAX_CAPABILITIES_BYTES
    execution_id = created(engine, policy=requiring(*tokens))

    assert claimed_ids(engine, capabilities=tokens) == [execution_id]


@pytest.mark.parametrize(
    "tokens",
    [
        [f"{number:015}" for number in range(MAX_CAPABILITIES_BYTES // 16 - 1)] + ["x" * 17],
        ["t" * 199 + chr(97 + number) for number in range(26)],
        [f"{number}" for number in range(MAX_CAPABILITIES + 1)],
    ],
    ids=["one byte", "many bytes", "one token"],
)
def test_capabilities_over_their_limit_are_refused(tokens: list[str]) -> None:
    with refused("invalid_capabilities"):
        requiring(*tokens)


def test_as_many_capabilities_as_the_limit_allows_are_accepted(engine: Engine) -> None:
    tokens = [f"{number:03}" for number in range(MAX_CAPABILITIES)]
    execution_id = created(engine, policy=requiring(*tokens))

    assert claimed_ids(engine, capabilities=tokens) == [execution_id]


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
