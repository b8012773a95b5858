"""Claims: which worker gets which work, what a claim contains, and which claims are refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CLASSES_PER_CLAIM, MAX_LEASE_MS, MIB
from flowfabric_worker.engine.types.claiming import ClaimPolicy, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import WorkClass
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    LEASE,
    RETRYING,
    TASK,
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    info_of,
    queue,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    upkeep_all,
)

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)


# The simple claim


def test_a_claim_gives_a_fresh_lease(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine)
    policy = ClaimPolicy(worker_id="pool", worker_instance_id="pool-1", lease=5 * SECOND)

    handle = engine.claim(LANE, frozenset(), policy)

    assert handle is not None
    assert (handle.execution_id, handle.kind, handle.backend) == (
        execution_id,
        HandleKind.FRESH,
        engine.backend_label(),
    )
    assert (handle.attempt_index, handle.lease_epoch, handle.lease_ttl_ms) == (0, 1, 5000)
    assert (handle.lane, handle.worker_instance_id) == (LANE, "pool-1")
    info = info_of(engine, execution_id)
    assert info.public_state is PublicState.ACTIVE
    assert info.started_at_ms == clock.ms
    assert info.current_lease is not None
    assert (info.current_lease.worker_id, info.current_lease.worker_instance_id) == ("pool", "pool-1")
    assert (info.current_lease.lease_epoch, info.current_lease.expires_at_ms) == (1, clock.ms + 5000)
    assert info.current_attempt is not None
    assert (info.current_attempt.attempt_id, info.current_attempt.attempt_index) == (handle.attempt_id, 0)
    assert info.total_attempt_count == 1


def test_a_claim_of_an_empty_lane_gives_nothing(engine: Engine, dump: Dump) -> None:
    before = dump()

    assert engine.claim(LANE, frozenset(), ClaimPolicy(worker_id="w", worker_instance_id="w")) is None
    assert engine.claim_many(request()) == []
    assert dump() == before


def test_two_claims_give_two_executions(engine: Engine) -> None:
    ids = {created(engine), created(engine)}

    assert {claim_one(engine, worker="a").execution_id, claim_one(engine, worker="b").execution_id} == ids
    assert engine.claim_many(request()) == []


# Matching workers and work


@pytest.mark.parametrize(
    ("required", "offered", "fits"),
    [
        ((), (), True),
        ((), ("gpu",), True),
        (("gpu",), ("gpu", "cuda"), True),
        (("gpu", "cuda"), ("cuda", "gpu"), True),
        (("gpu", "cuda"), ("gpu",), False),
        (("gpu",), (), False),
        (("GPU",), ("gpu",), False),
        (("gpu",), ("gpux",), False),
    ],
    ids=str,
)
def test_work_goes_only_to_a_worker_that_offers_what_it_needs(
    engine: Engine, dump: Dump, required: tuple[str, ...], offered: tuple[str, ...], fits: bool
) -> None:
    execution_id = created(engine, policy=ExecutionPolicy(requires=required))
    before = dump()

    assert claimed_ids(engine, capabilities=offered) == ([execution_id] if fits else [])
    assert fits or dump() == before


def test_a_worker_gets_only_tasks_that_it_knows(engine: Engine) -> None:
    created(engine, task="unknown")
    known = created(engine, task="known")

    assert claimed_ids(engine, tasks={"known", "other"}) == [known]
    assert claimed_ids(engine, tasks=set()) == []


def test_a_worker_that_names_no_tasks_gets_any(engine: Engine) -> None:
    ids = {created(engine, task="one"), created(engine, task="two")}

    assert set(claimed_ids(engine, tasks=None)) == ids


def test_a_single_word_is_no_set_of_tasks() -> None:
    with refused("invalid_input"):
        request(tasks="send")


def test_what_a_worker_may_not_take_hides_nothing_and_is_not_touched(engine: Engine, dump: Dump) -> None:
    all_created(engine, [creation(task="unknown", priority=9000) for _ in range(1000)])
    requires = ExecutionPolicy(requires=frozenset({"gpu"}))
    all_created(engine, [creation(priority=9000, policy=requires) for _ in range(100)])
    wanted = created(engine, task="known")
    claim = {"tasks": {"known", "send"}, "capabilities": {"cpu"}}

    assert claimed_ids(engine, **claim) == [wanted]
    before = dump()
    assert claimed_ids(engine, **claim) == []
    assert dump() == before


def test_every_one_of_many_kinds_of_work_is_reached(engine: Engine) -> None:
    count = 3 * MAX_CLASSES_PER_CLAIM + 7
    ids = ids_in(engine, 0, count)
    all_created(engine, [creation(task=f"t{number}", execution_id=each) for number, each in enumerate(ids)])

    served: set[ExecutionId] = set()
    for _ in range(count):
        served |= set(claimed_ids(engine, limit=1))

    assert served == set(ids)


def test_a_kind_of_work_that_never_ends_hides_none_of_many_others(engine: Engine) -> None:
    count = 2 * MAX_CLASSES_PER_CLAIM
    ids = ids_in(engine, 0, count)
    all_created(engine, [creation(task=f"t{number}", execution_id=each) for number, each in enumerate(ids)])
    all_created(engine, [creation(task="t0", execution_id=each) for each in ids_in(engine, 0, 300)])

    served = [each.task for _ in range(150) for each in engine.claim_many(request(limit=2))]

    assert {f"t{number}" for number in range(count)} <= set(served)


# Work that hides no other work


@pytest.mark.parametrize("dangling", [1, 12])
@pytest.mark.parametrize("limit", [1, 9])
def test_an_entry_without_a_record_hides_nothing_and_is_removed(engine: Engine, dangling: int, limit: int) -> None:
    *gone, wanted = queue(engine, dangling + 1)
    client = raw_client(engine, wanted.partition_number)
    client.delete(*(raw_key(engine, each.partition_number, f"x:{each.uuid}") for each in gone))
    work_class = WorkClass(namespace="default", lane=LANE, task=TASK).encode().decode()
    ready = raw_key(engine, wanted.partition_number, f"ready:{work_class}")
    assert client.zcard(ready) == dangling + 1

    assert claimed_ids(engine, limit=limit) == [wanted]
    assert client.zcard(ready) == 0


def test_work_whose_deadline_is_over_hides_nothing(engine: Engine, clock: Clock) -> None:
    ids = ids_in(engine, 0, 101)
    late = [creation(execution_id=each, deadline=clock.now + SECOND) for each in ids[:100]]
    all_created(engine, [*late, creation(execution_id=ids[100])])
    clock.move(SECOND)

    assert claimed_ids(engine) == [ids[100]]


def test_work_that_was_reclaimed_too_often_hides_nothing(engine: Engine, clock: Clock) -> None:
    first, second = queue(engine, 2, policy=ExecutionPolicy(max_reclaim_count=0))
    claim_one(engine)
    clock.move(LEASE)

    assert claimed_ids(engine, limit=1) == [second]
    assert info_of(engine, first).public_state is PublicState.FAILED


# The content of a claim


@pytest.mark.parametrize("again", ["release", "lapse", "retry"])
def test_the_journal_comes_with_every_claim(engine: Engine, clock: Clock, again: str) -> None:
    first = running(engine, lane=LANE, policy=RETRYING)
    steps = {f"step-{number}": bytes([number % 256]) * 3 for number in range(600)}
    for name, value in steps.items():
        engine.record_step(first.handle, name, value)
    if again == "release":
        engine.release(first.handle)
    elif again == "retry":
        engine.fail(first.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(LEASE)

    assert first.journal == {}
    assert claim_one(engine).journal == steps


def test_a_claim_says_when_its_time_is_over(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(attempt_timeout=20 * SECOND)
    claimed = running(engine, policy=policy, deadline=clock.now + 60 * SECOND, lease=10 * SECOND)

    assert claimed.lease_expires_at_ms == clock.ms + 10_000
    assert claimed.timeout_at_ms == clock.ms + 20_000
    assert claimed.deadline_at_ms == clock.ms + 60_000


def test_large_work_comes_in_replies_of_bounded_size(engine: Engine) -> None:
    ids = queue(engine, 20, payload=bytes(MIB))

    sizes = []
    served: list[ExecutionId] = []
    while len(served) < 20:
        claimed = engine.claim_many(request(limit=20))
        sizes.append(len(claimed))
        served += [each.execution_id for each in claimed]

    assert served == ids
    assert max(sizes) <= 8
    assert min(sizes) >= 1


def test_the_journal_counts_in_the_size_of_a_reply(engine: Engine) -> None:
    ids = queue(engine, 20)
    for claimed in engine.claim_many(request(limit=20)):
        engine.record_step(claimed.handle, "s", bytes(MIB - 100))
        engine.release(claimed.handle)

    counts = [len(engine.claim_many(request(limit=20))) for _ in range(7)]
    assert sum(counts) == 20
    assert max(counts) <= 8
    assert {info_of(engine, each).public_state for each in ids} == {PublicState.ACTIVE}


# Refusals


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": MAX_BATCH_ITEMS + 1},
        {"limit": 1.5},
        {"limit": "1"},
        {"limit": True},
        {"lanes": ()},
        {"lanes": (LaneRequest(lane=""),)},
        {"lanes": (LaneRequest(lane="x" * 65),)},
        {"lanes": (LaneRequest(lane="a"), LaneRequest(lane="b"), LaneRequest(lane="a"))},
        {"lanes": (LaneRequest(lane="a", limit=-1),)},
        {"lanes": (LaneRequest(lane="a", limit="1"),)},
        {"lease": timedelta()},
        {"lease": timedelta(microseconds=999)},
        {"lease": timedelta(milliseconds=MAX_LEASE_MS + 1)},
        {"lease": 30},
        {"max_wait": -SECOND},
        {"max_wait": 5},
        {"claim_id": "no uuid"},
        {"claim_id": 7},
        {"worker": ""},
        {"worker": "w" * 257},
        {"worker": "a\nb"},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_a_claim_that_is_not_valid_is_refused_without_a_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any]
) -> None:
    created(engine)
    before = dump()

    with refused("duplicate_in_call" if len(changes.get("lanes", ())) == 3 else "invalid_input"):
        engine.claim_many(request(**changes))

    assert dump() == before


@pytest.mark.parametrize("capabilities", ["gpu", ["a,b"], [""], [7], None], ids=repr)
def test_a_claim_with_a_wrong_capability_is_refused(capabilities: Any) -> None:
    with refused("invalid_capabilities"):
        request(capabilities=capabilities)


@pytest.mark.parametrize("lease", [MILLISECOND, timedelta(milliseconds=MAX_LEASE_MS)], ids=str)
def test_a_lease_may_be_as_short_and_as_long_as_its_limits(engine: Engine, clock: Clock, lease: timedelta) -> None:
    created(engine)

    assert claim_one(engine, lease=lease).lease_expires_at_ms == clock.ms + lease // MILLISECOND


def test_a_claim_may_take_as_many_as_its_limit_allows(engine: Engine) -> None:
    all_created(engine, [creation(execution_id=each) for each in ids_in(engine, 0, MAX_BATCH_ITEMS + 1)])

    assert len(engine.claim_many(request(limit=MAX_BATCH_ITEMS))) == MAX_BATCH_ITEMS
    assert len(engine.claim_many(request(limit=MAX_BATCH_ITEMS))) == 1


def test_nothing_is_due_when_everything_was_claimed(engine: Engine, clock: Clock) -> None:
    created(engine, delay=SECOND)
    clock.move(SECOND)

    assert len(claimed_ids(engine)) == 1
    assert upkeep_all(engine) == 0
