"""What a claim hands out, to whom and in which order; how lost work comes back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS, MAX_CLASSES_PER_CLAIM, MAX_LEASE_MS, MIB
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, LaneRequest
from flowfabric_worker.engine.types.operating import ChangePriorityArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import WorkClass
from tests.conformance.work import (
    BOOM,
    LANE,
    LEASE,
    TASK,
    all_created,
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    info_of,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    same_partition_ids,
    upkeep_all,
)
from tests.conftest import Clock
from tests.dumping import Dump

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
RETRYING = ExecutionPolicy(retry=RetryPolicy(max_retries=5, backoff="fixed", initial=SECOND, jitter=False))


def queue(engine: Engine, count: int, **changes: Any) -> list[ExecutionId]:
    """Work in one partition, first come first."""
    ids = same_partition_ids(engine, count)
    return all_created(engine, [creation(execution_id=each, **changes) for each in ids])


def revoke(engine: Engine, claimed: Claimed) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))


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
    all_created(engine, [creation(lane=lane) for lane in ("a", "b") for _ in range(10)])
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


# Who may claim what


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
    execution_id = created(engine, policy=ExecutionPolicy(required_capabilities=required))
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
    needs = ExecutionPolicy(required_capabilities=frozenset({"gpu"}))
    all_created(engine, [creation(priority=9000, policy=needs) for _ in range(100)])
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


# What hides nothing


@pytest.mark.parametrize("dangling", [1, 12])
@pytest.mark.parametrize("limit", [1, 9])
def test_an_entry_without_a_record_hides_nothing_and_is_removed(engine: Engine, dangling: int, limit: int) -> None:
    *gone, wanted = queue(engine, dangling + 1)
    client = raw_client(engine, wanted.partition)
    client.delete(*(raw_key(engine, each.partition, f"x:{each.uuid}") for each in gone))
    work_class = WorkClass(namespace="default", lane=LANE, task=TASK).encode().decode()
    ready = raw_key(engine, wanted.partition, f"ready:{work_class}")
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


# Kinds of work: fresh, resumed, reclaimed


def test_retried_work_is_a_fresh_attempt(engine: Engine, clock: Clock) -> None:
    first = running(engine, lane=LANE, policy=RETRYING)
    started = clock.ms
    engine.fail(first.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND)

    second = claim_one(engine)

    assert (second.handle.kind, second.attempt_type, second.retry_count) == (HandleKind.FRESH, "retry", 1)
    assert (second.handle.attempt_index, second.handle.lease_epoch) == (1, 2)
    assert second.handle.attempt_id != first.handle.attempt_id
    assert info_of(engine, first.execution_id).started_at_ms == started


def test_replayed_work_is_a_fresh_attempt(engine: Engine) -> None:
    first = running(engine, lane=LANE)
    engine.complete(first.handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=first.execution_id))

    second = claim_one(engine)

    assert (second.handle.kind, second.attempt_type) == (HandleKind.FRESH, "replay")
    assert (second.handle.attempt_index, second.handle.lease_epoch) == (1, 2)


@pytest.mark.parametrize("ending", ["release", "delay", "wait_children"])
def test_interrupted_work_goes_on_in_its_attempt(engine: Engine, clock: Clock, ending: str) -> None:
    first = running(engine, lane=LANE)
    if ending == "delay":
        engine.delay(first.handle, SECOND)
        clock.move(SECOND)
    else:
        getattr(engine, ending)(first.handle)

    second = claim_one(engine, worker="w2")

    assert (second.handle.kind, second.attempt_type) == (HandleKind.RESUMED, "initial")
    assert (second.handle.attempt_id, second.handle.attempt_index) == (first.handle.attempt_id, 0)
    assert second.handle.lease_epoch == 2
    assert second.handle.lease_id != first.handle.lease_id
    assert (second.retry_count, second.reclaim_count) == (0, 0)


@pytest.mark.parametrize("lost_by", ["lapse", "revocation"])
def test_lost_work_is_reclaimed_as_a_new_attempt(engine: Engine, clock: Clock, lost_by: str) -> None:
    first = running(engine, lane=LANE)
    if lost_by == "lapse":
        clock.move(LEASE - MILLISECOND)
        assert engine.claim_many(request(worker="w2")) == []
        clock.move(MILLISECOND)
    else:
        revoke(engine, first)

    second = claim_one(engine, worker="w2")

    assert (second.handle.kind, second.attempt_type) == (HandleKind.RECLAIMED, "reclaim")
    assert (second.handle.attempt_index, second.handle.lease_epoch, second.reclaim_count) == (1, 2, 1)
    info = info_of(engine, first.execution_id)
    assert info.current_lease is not None
    assert info.current_lease.worker_instance_id == "w2"
    assert [(past.attempt_index, past.ending) for past in info.past_attempts] == [(0, "interrupted_reclaimed")]
    assert (info.total_attempt_count, info.reclaim_count, info.retry_count) == (2, 1, 0)
    with refused("stale_lease"):
        engine.complete(first.handle)
    engine.complete(second.handle)


def test_work_that_lost_its_lease_goes_on_after_a_release_of_the_reclaim(engine: Engine, clock: Clock) -> None:
    running(engine, lane=LANE)
    clock.move(LEASE)
    second = claim_one(engine)
    engine.release(second.handle)

    third = claim_one(engine)

    assert (third.handle.kind, third.reclaim_count) == (HandleKind.RESUMED, 1)
    assert third.handle.attempt_id == second.handle.attempt_id


def test_every_reclaim_counts_and_raises_the_epoch(engine: Engine, clock: Clock) -> None:
    running(engine, lane=LANE)
    seen = []
    for _ in range(3):
        clock.move(LEASE)
        claimed = claim_one(engine)
        seen.append((claimed.handle.lease_epoch, claimed.handle.attempt_index, claimed.reclaim_count))

    assert seen == [(2, 1, 1), (3, 2, 2), (4, 3, 3)]


@pytest.mark.parametrize("most", [0, 2])
def test_work_that_was_reclaimed_too_often_ends_failed_and_is_announced(
    engine: Engine, clock: Clock, most: int
) -> None:
    cursor = engine.feed_cursor()
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(max_reclaim_count=most))
    for _ in range(most):
        clock.move(LEASE)
        claim_one(engine)
    clock.move(LEASE)

    assert claimed_ids(engine) == []

    outcome = engine.read_outcome(claimed.execution_id)
    assert outcome is not None
    assert (outcome.outcome, outcome.error, outcome.error_class) == ("failed", "reclaims_exhausted", "infra_crash")
    assert info_of(engine, claimed.execution_id).reclaim_count == most
    events = list(engine.subscribe_completions(cursor, timeout=timedelta(milliseconds=50)))
    assert [(event.execution_id, event.outcome) for event in events] == [(claimed.execution_id, "failed")]


def test_one_claim_brings_back_much_lost_work(engine: Engine, clock: Clock) -> None:
    all_created(engine, [creation() for _ in range(20)])
    assert len(claimed_ids(engine)) == 20
    clock.move(LEASE)

    reclaimed = engine.claim_many(request(limit=100))

    assert [each.handle.kind for each in reclaimed] == [HandleKind.RECLAIMED] * 20


# What comes with a claim


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

    assert [len(engine.claim_many(request(limit=20))) for _ in range(3)] == [8, 8, 4]
    assert {info_of(engine, each).public_state for each in ids} == {PublicState.ACTIVE}


# Repeats


def test_a_claim_that_is_sent_again_gets_the_same_answer(engine: Engine, dump: Dump) -> None:
    all_created(engine, [creation() for _ in range(30)])
    claim = request(limit=7, claim_id=str(uuid4()))
    first = engine.claim_many(claim)
    before = dump()

    for _ in range(2 * engine.partitions):
        assert sorted(engine.claim_many(claim), key=_id) == sorted(first, key=_id)
    assert len(first) == 7
    assert dump() == before


def test_a_repeated_claim_leaves_out_what_it_does_not_hold_any_more(engine: Engine) -> None:
    all_created(engine, [creation(execution_id=each) for each in ids_in(engine, 0, 3)])
    claim = request(limit=3, claim_id=str(uuid4()))
    one, two, three = engine.claim_many(claim)
    engine.complete(one.handle)
    revoke(engine, two)

    assert engine.claim_many(claim) == [three]


def test_another_claim_of_the_same_worker_gets_other_work(engine: Engine) -> None:
    all_created(engine, [creation() for _ in range(4)])
    one, two = (engine.claim_many(request(limit=2, claim_id=str(uuid4()))) for _ in range(2))

    assert len({_id(each) for each in [*one, *two]}) == 4


def test_a_claim_id_stands_for_one_worker(engine: Engine) -> None:
    all_created(engine, [creation() for _ in range(2)])
    claim_id = str(uuid4())

    one = claim_one(engine, worker="w1", claim_id=claim_id)
    two = claim_one(engine, worker="w2", claim_id=claim_id)

    assert _id(one) != _id(two)


def test_the_claim_id_is_the_lease_id(engine: Engine) -> None:
    created(engine)
    claim_id = str(uuid4())

    claimed = claim_one(engine, claim_id=claim_id)

    assert claimed.handle.lease_id == claimed.handle.attempt_id == claim_id


def _id(claimed: Claimed) -> ExecutionId:
    return claimed.execution_id


# What is refused


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
