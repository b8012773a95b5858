"""Work that is set aside for a named worker, and how it is redeemed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    LEASE,
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
    running,
    upkeep_all,
)

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
GRANT = 5 * SECOND


def asking(worker: str = "w1", **changes: Any) -> ClaimForWorkerArgs:
    """Return a wish for a reservation by a worker whose id and instance id are the same."""
    return ClaimForWorkerArgs(
        **{"lane": LANE, "worker_id": worker, "worker_instance_id": worker, "grant": GRANT, **changes}
    )


def reserved(engine: Engine, worker: str = "w1", **changes: Any) -> ClaimGrant:
    """Return a reservation that must be had."""
    grant = engine.claim_for_worker(asking(worker, **changes))
    assert grant is not None
    return grant


def token(grant: ClaimGrant, worker: str = "w1", **changes: Any) -> ReclaimToken:
    return ReclaimToken(grant=grant, worker_id=worker, worker_instance_id=worker, **changes)


def resuming(execution_id: ExecutionId, worker: str = "w1", **changes: Any) -> ClaimResumedExecutionArgs:
    return ClaimResumedExecutionArgs(execution_id=execution_id, worker_id=worker, worker_instance_id=worker, **changes)


def interrupted(engine: Engine) -> Claimed:
    """Create work, claim it and hand it back."""
    claimed = running(engine, lane=LANE)
    engine.release(claimed.handle)
    return claimed


# Setting aside


def test_a_reservation_names_the_work_and_its_end(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine)

    assert engine.claim_for_worker(asking()) == ClaimGrant(
        execution_id=execution_id, worker_id="w1", expires_at_ms=clock.ms + 5000
    )
    info = info_of(engine, execution_id)
    assert (info.reserved_for, info.public_state) == ("w1", PublicState.WAITING)


def test_there_is_nothing_to_reserve_in_an_empty_lane(engine: Engine, dump: Dump) -> None:
    before = dump()

    assert engine.claim_for_worker(asking()) is None
    assert dump() == before


def test_reserved_work_is_handed_to_no_other_worker_and_hides_nothing(engine: Engine) -> None:
    first, second, third = ids_in(engine, 0, 3)
    all_created(engine, [creation(execution_id=each) for each in (first, second, third)])

    assert reserved(engine, "w1").execution_id == first
    assert reserved(engine, "w2").execution_id == second
    assert claimed_ids(engine, worker="w1") == [third]


def test_a_reservation_takes_the_highest_priority(engine: Engine) -> None:
    low, high = ids_in(engine, 0, 2)
    created(engine, execution_id=low)
    created(engine, execution_id=high, priority=5)

    assert reserved(engine).execution_id == high


def test_a_reservation_is_made_only_of_what_the_worker_may_take(engine: Engine) -> None:
    requires = ExecutionPolicy(requires=frozenset({"gpu"}))
    all_created(engine, [creation(priority=9000, policy=requires), creation(priority=9000, task="unknown")])
    wanted = created(engine)

    assert reserved(engine, tasks={"send"}, capabilities={"cpu"}).execution_id == wanted
    assert engine.claim_for_worker(asking(tasks={"send"}, capabilities={"cpu"})) is None


def test_work_of_a_paused_lane_is_not_reserved(engine: Engine) -> None:
    created(engine)
    engine.pause_lane(LANE)

    assert engine.claim_for_worker(asking()) is None


def test_an_entry_without_a_record_does_not_hide_work_from_reservations(engine: Engine) -> None:
    gone, wanted = ids_in(engine, 0, 2)
    all_created(engine, [creation(execution_id=each) for each in (gone, wanted)])
    raw_client(engine).delete(raw_key(engine, 0, f"x:{gone.uuid}"))

    assert reserved(engine).execution_id == wanted


def test_lost_work_may_be_reserved(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    assert engine.claim_for_worker(asking("w2")) is None
    clock.move(LEASE)

    assert reserved(engine, "w2").execution_id == claimed.execution_id


@pytest.mark.parametrize("kept", [False, True], ids=["by a claim", "by upkeep"])
def test_a_reservation_that_lapsed_gives_the_work_back_in_its_place(engine: Engine, clock: Clock, kept: bool) -> None:
    first, second = ids_in(engine, 0, 2)
    all_created(engine, [creation(execution_id=each) for each in (first, second)])
    reserved(engine)
    clock.move(GRANT - MILLISECOND)
    upkeep_all(engine)
    assert info_of(engine, first).reserved_for == "w1"

    clock.move(MILLISECOND)
    if kept:
        upkeep_all(engine)

    assert claimed_ids(engine) == [first, second]
    assert info_of(engine, first).reserved_for is None


def test_a_reservation_that_is_asked_for_again_is_the_same(engine: Engine, dump: Dump) -> None:
    all_created(engine, [creation() for _ in range(30)])
    args = asking(grant_id=str(uuid4()))
    grant = engine.claim_for_worker(args)
    before = dump()

    assert [engine.claim_for_worker(args) for _ in range(2 * engine.partitions)] == [grant] * 2 * engine.partitions
    assert dump() == before


def test_another_reservation_of_the_same_worker_is_of_other_work(engine: Engine) -> None:
    all_created(engine, [creation() for _ in range(2)])

    assert reserved(engine).execution_id != reserved(engine).execution_id


def test_claims_and_reservations_of_a_worker_are_remembered_apart(engine: Engine) -> None:
    all_created(engine, [creation(execution_id=each) for each in ids_in(engine, 0, 3)])
    args = asking(grant_id=str(uuid4()))
    grant = engine.claim_for_worker(args)
    claim_id = str(uuid4())
    claimed = claim_one(engine, claim_id=claim_id)

    assert engine.claim_for_worker(args) == grant
    assert claim_one(engine, claim_id=claim_id) == claimed


def test_what_ends_reserved_work_ends_its_reservation(engine: Engine) -> None:
    execution_id = created(engine)
    grant = reserved(engine)
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))

    assert engine.claim_from_reclaim(token(grant)) is None
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution_id))
    with refused("invalid_claim_grant"):
        engine.claim_from_reclaim(token(grant))
    assert claimed_ids(engine) == [execution_id]


def test_reserved_work_expires_at_its_deadline(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now + SECOND)
    grant = reserved(engine)
    clock.move(SECOND)

    assert engine.claim_from_reclaim(token(grant)) is None
    assert info_of(engine, execution_id).public_state is PublicState.EXPIRED


@pytest.mark.parametrize(
    "changes",
    [
        {"lane": ""},
        {"grant": timedelta()},
        {"grant": timedelta(seconds=60, milliseconds=1)},
        {"grant": 5},
        {"grant_id": "no uuid"},
        {"worker_id": ""},
        {"worker_instance_id": "a\0"},
        {"worker_instance_id": None},
    ],
    ids=str,
)
def test_a_reservation_that_is_not_valid_is_refused_without_a_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any]
) -> None:
    created(engine)
    before = dump()

    with refused("invalid_input"):
        engine.claim_for_worker(asking(**changes))

    assert dump() == before


def test_a_reservation_holds_at_most_a_minute(engine: Engine, clock: Clock) -> None:
    created(engine)

    assert reserved(engine, grant=timedelta(seconds=60)).expires_at_ms == clock.ms + 60_000


# Redeeming


def test_a_reservation_of_new_work_is_redeemed(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine)
    handle = engine.claim_from_reclaim(token(reserved(engine), lease=10 * SECOND))

    assert handle is not None
    assert (handle.execution_id, handle.kind, handle.attempt_index) == (execution_id, HandleKind.FRESH, 0)
    assert engine.renew(handle).expires_at_ms == clock.ms + 10_000
    assert info_of(engine, execution_id).reserved_for is None
    engine.complete(handle)


def test_a_reservation_of_lost_work_is_redeemed_as_a_reclaim(engine: Engine, clock: Clock) -> None:
    first = running(engine, lane=LANE)
    clock.move(LEASE)

    handle = engine.claim_from_reclaim(token(reserved(engine, "w2"), "w2"))

    assert handle is not None
    assert (handle.kind, handle.lease_epoch, handle.attempt_index) == (HandleKind.RECLAIMED, 2, 1)
    assert info_of(engine, first.execution_id).reclaim_count == 1


def test_lost_work_that_was_reclaimed_too_often_is_not_redeemed(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE, policy=ExecutionPolicy(max_reclaim_count=0))
    clock.move(LEASE)

    assert engine.claim_for_worker(asking()) is None
    assert info_of(engine, claimed.execution_id).error == "reclaims_exhausted"


@pytest.mark.parametrize("redeem", ["resumed", "any"])
def test_a_reservation_of_interrupted_work_goes_on_in_its_attempt(engine: Engine, redeem: str) -> None:
    first = interrupted(engine)
    grant = reserved(engine, "w2")

    handle = (
        engine.claim_resumed_execution(resuming(grant.execution_id, "w2")).handle
        if redeem == "resumed"
        else engine.claim_from_reclaim(token(grant, "w2"))
    )

    assert handle is not None
    assert (handle.kind, handle.lease_epoch) == (HandleKind.RESUMED, 2)
    assert (handle.attempt_id, handle.attempt_index) == (first.handle.attempt_id, 0)


def test_redeemed_work_comes_with_everything_that_is_needed_to_run_it(engine: Engine) -> None:
    claimed = running(engine, lane=LANE, payload=b"p", tags={"a": "b"})
    engine.record_step(claimed.handle, "s", b"v")
    engine.release(claimed.handle)
    reserved(engine)

    again = engine.claim_resumed_execution(resuming(claimed.execution_id))

    assert (again.payload, again.tags, again.journal) == (b"p", {"a": "b"}, {"s": b"v"})


def test_a_redemption_that_is_sent_again_gets_the_same_answer(engine: Engine, dump: Dump) -> None:
    interrupted(engine)
    grant = reserved(engine)
    args = resuming(grant.execution_id, claim_id=str(uuid4()))
    claimed = engine.claim_resumed_execution(args)
    before = dump()

    assert engine.claim_resumed_execution(args) == claimed
    assert dump() == before


def test_another_worker_does_not_redeem(engine: Engine, dump: Dump) -> None:
    claimed = interrupted(engine)
    grant = reserved(engine, "w1")
    before = dump()

    with refused("invalid_claim_grant"):
        engine.claim_from_reclaim(token(grant, "w2"))
    with refused("invalid_claim_grant"):
        engine.claim_resumed_execution(resuming(claimed.execution_id, "w2"))
    assert dump() == before
    assert engine.claim_from_reclaim(token(grant, "w1")) is not None


def test_another_instance_of_the_same_worker_redeems(engine: Engine) -> None:
    created(engine)
    grant = reserved(engine, "pool")

    handle = engine.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="pool", worker_instance_id="pool-2"))

    assert handle is not None
    assert handle.worker_instance_id == "pool-2"


def test_work_without_a_reservation_is_not_redeemed(engine: Engine, dump: Dump) -> None:
    claimed = interrupted(engine)
    before = dump()

    with refused("invalid_claim_grant"):
        engine.claim_resumed_execution(resuming(claimed.execution_id))
    assert dump() == before


def test_a_reservation_holds_until_exactly_its_end(engine: Engine, clock: Clock, dump: Dump) -> None:
    early, late = interrupted(engine), created(engine, lane="other")
    reserved(engine)
    reserved(engine, lane="other")
    clock.move(GRANT - MILLISECOND)
    engine.claim_resumed_execution(resuming(early.execution_id))
    clock.move(MILLISECOND)
    before = dump()

    with refused("claim_grant_expired"):
        engine.claim_from_reclaim(token(ClaimGrant(execution_id=late, worker_id="w1", expires_at_ms=0)))
    assert dump() == before


@pytest.mark.parametrize("kind", ["new", "lost"])
def test_only_interrupted_work_is_resumed(engine: Engine, clock: Clock, dump: Dump, kind: str) -> None:
    execution_id = created(engine)
    if kind == "lost":
        claim_one(engine)
        clock.move(LEASE)
    reserved(engine)
    before = dump()

    with refused("not_a_resumed_execution"):
        engine.claim_resumed_execution(resuming(execution_id))
    assert dump() == before


@pytest.mark.parametrize("state", ["running", "ended", "delayed"])
def test_work_that_cannot_be_claimed_is_not_redeemed(engine: Engine, dump: Dump, state: str) -> None:
    if state == "delayed":
        execution_id = created(engine, delay=SECOND)
    else:
        claimed = running(engine)
        execution_id = claimed.execution_id
        if state == "ended":
            engine.complete(claimed.handle)
    before = dump()

    with refused("execution_not_leaseable"):
        engine.claim_resumed_execution(resuming(execution_id))
    grant = ClaimGrant(execution_id=execution_id, worker_id="w1", expires_at_ms=0)
    assert engine.claim_from_reclaim(token(grant)) is None
    assert dump() == before


def test_work_that_does_not_exist_is_not_redeemed(engine: Engine) -> None:
    unknown = ExecutionId.mint(engine.partitions)

    with refused("execution_not_found") as caught:
        engine.claim_resumed_execution(resuming(unknown))
    assert caught.value.details["execution_id"] == str(unknown)
    assert engine.claim_from_reclaim(token(ClaimGrant(execution_id=unknown, worker_id="w1", expires_at_ms=0))) is None


@pytest.mark.parametrize(
    "changes", [{"claim_id": "x"}, {"lease": timedelta()}, {"worker_id": ""}, {"worker_instance_id": ""}], ids=str
)
def test_a_redemption_that_is_not_valid_is_refused_without_a_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any]
) -> None:
    claimed = interrupted(engine)
    reserved(engine)
    before = dump()
    args = {"execution_id": claimed.execution_id, "worker_id": "w1", "worker_instance_id": "w1", **changes}

    with refused("invalid_input"):
        engine.claim_resumed_execution(ClaimResumedExecutionArgs(**args))

    assert dump() == before


def test_a_reservation_in_a_paused_lane_is_redeemed_only_after_it_resumes(engine: Engine, dump: Dump) -> None:
    created(engine)
    grant = reserved(engine)
    resumed = interrupted(engine)
    again = reserved(engine)
    engine.pause_lane(LANE)
    before = dump()

    assert engine.claim_from_reclaim(token(grant)) is None
    with refused("execution_not_leaseable"):
        engine.claim_resumed_execution(resuming(again.execution_id))
    assert again.execution_id == resumed.execution_id
    assert dump() == before

    engine.resume_lane(LANE)
    assert engine.claim_from_reclaim(token(grant)) is not None
