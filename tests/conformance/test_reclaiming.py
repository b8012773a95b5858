"""Work that comes again: retried, replayed, resumed or reclaimed; and claims that are sent again."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from tests.conftest import Clock
from tests.support.dumps import Dump
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
    refused,
    request,
    running,
)

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)


def revoke(engine: Engine, claimed: Claimed) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))


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
