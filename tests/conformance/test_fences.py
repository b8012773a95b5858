"""The checks that stand before every call of a lease holder, their order, and what a repeated call gets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle, HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import LeaseRenewal
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import OwnershipState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LEASE, claim_one, info_of, refused, running, upkeep_all

MILLISECOND = timedelta(milliseconds=1)
Operation = Callable[[Engine, Handle], Any]

ENDING: dict[str, Operation] = {
    "complete": lambda engine, handle: engine.complete(handle, b"done"),
    "fail": lambda engine, handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT),
    "cancel": lambda engine, handle: engine.cancel(handle, "no need"),
    "release": lambda engine, handle: engine.release(handle),
    "delay": lambda engine, handle: engine.delay(handle, timedelta(minutes=1)),
    "wait_children": lambda engine, handle: engine.wait_children(handle),
}
KEEPING: dict[str, Operation] = {
    "renew": lambda engine, handle: engine.renew(handle),
    "progress": lambda engine, handle: engine.progress(handle, 50, "half"),
    "record_step": lambda engine, handle: engine.record_step(handle, "step", b"value"),
}
FENCED = KEEPING | ENDING
# Each of these hands the work back so that another worker can have it at once.
HANDING_BACK: dict[str, Operation] = {
    "fail": lambda engine, handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta()),
    "release": ENDING["release"],
    "delay": lambda engine, handle: engine.delay(handle, timedelta()),
    "wait_children": ENDING["wait_children"],
}
PHASES = {"complete": "terminal", "cancel": "terminal"}
OUTCOMES = {"complete": "success", "cancel": "cancelled"}
RETRYING = ExecutionPolicy(retry=RetryPolicy(initial=timedelta(seconds=5), jitter=False))

every_operation = pytest.mark.parametrize("operation", FENCED.values(), ids=FENCED)
every_ending = pytest.mark.parametrize("ending", ENDING)
handing_back = pytest.mark.parametrize("operation", HANDING_BACK.values(), ids=HANDING_BACK)


def stale_versions(handle: Handle) -> list[Handle]:
    """Return the handle with each part of its fence replaced in turn."""
    return [
        attrs.evolve(handle, lease_id=str(uuid4())),
        attrs.evolve(handle, lease_epoch=handle.lease_epoch + 1),
        attrs.evolve(handle, attempt_id=str(uuid4())),
    ]


def revoke(engine: Engine, handle: Handle) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=handle.execution_id))


# In their order: exists, repeated, active, revoked, expired, identity.


@every_operation
def test_an_unknown_execution_is_not_found(engine: Engine, dump: Dump, operation: Operation) -> None:
    handle = running(engine).handle
    before = dump()
    with refused("execution_not_found") as caught:
        operation(engine, attrs.evolve(handle, execution_id=ExecutionId.mint(engine.partitions)))
    assert caught.value.details["execution_id"]
    assert dump() == before


@every_ending
def test_the_same_ending_again_gets_the_same_answer_and_changes_nothing(
    engine: Engine, clock: Clock, dump: Dump, ending: str
) -> None:
    handle = running(engine, policy=RETRYING).handle
    answer = ENDING[ending](engine, handle)
    # Also long after the lease that made it would have run out.
    clock.move(LEASE + MILLISECOND)
    before = dump()
    assert ENDING[ending](engine, handle) == answer
    assert dump() == before


@handing_back
def test_an_ending_is_answered_again_while_the_next_worker_runs(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    handle = running(engine, policy=RETRYING).handle
    answer = operation(engine, handle)
    successor = claim_one(engine, handle.lane, worker="w2")
    clock.move(MILLISECOND)
    before = dump()
    assert operation(engine, handle) == answer
    assert dump() == before
    engine.renew(successor.handle)


@handing_back
def test_an_ending_is_answered_again_after_seven_more_leases_ended(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    handle = running(engine, policy=RETRYING).handle
    answer = operation(engine, handle)
    clock.move(timedelta(minutes=1))
    for _ in range(7):
        engine.release(claim_one(engine, handle.lane, worker="w2").handle)
    before = dump()

    assert operation(engine, handle) == answer
    assert dump() == before

    engine.release(claim_one(engine, handle.lane, worker="w2").handle)
    with refused("execution_not_active"):
        operation(engine, handle)


@every_ending
def test_an_ending_is_not_repeated_for_another_lease_of_the_same_execution(
    engine: Engine, dump: Dump, ending: str
) -> None:
    handle = running(engine, policy=RETRYING).handle
    ENDING[ending](engine, handle)
    before = dump()
    for other in stale_versions(handle):
        with refused("execution_not_active"):
            ENDING[ending](engine, other)
    assert dump() == before


@every_ending
def test_every_operation_after_an_ending_learns_how_it_ended(engine: Engine, dump: Dump, ending: str) -> None:
    handle = running(engine, policy=RETRYING).handle
    ENDING[ending](engine, handle)
    before = dump()
    for name, operation in FENCED.items():
        if name == ending:
            continue
        with refused("execution_not_active") as caught:
            operation(engine, handle)
        assert caught.value.details == {
            "execution_id": str(handle.execution_id),
            "outcome": OUTCOMES.get(ending, "none"),
            "lease_epoch": str(handle.lease_epoch),
            "phase": PHASES.get(ending, "runnable"),
            "attempt_id": handle.attempt_id,
        }
        assert not caught.value.retryable
    assert dump() == before


@every_operation
def test_not_active_comes_before_expired_and_stale(engine: Engine, clock: Clock, operation: Operation) -> None:
    handle = running(engine).handle
    engine.cancel_execution(CancelExecutionArgs(execution_id=handle.execution_id))
    clock.move(LEASE)
    for other in (handle, *stale_versions(handle)):
        with refused("execution_not_active"):
            operation(engine, other)


@every_operation
def test_a_revoked_lease_is_reported_as_revoked_also_when_expired_or_stale(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    handle = running(engine).handle
    revoke(engine, handle)
    before = dump()
    with refused("lease_revoked"):
        operation(engine, handle)
    assert dump() == before
    clock.move(LEASE)
    for other in (handle, *stale_versions(handle)):
        with refused("lease_revoked"):
            operation(engine, other)


@every_operation
def test_a_lease_holds_until_the_millisecond_before_it_expires(
    engine: Engine, clock: Clock, operation: Operation
) -> None:
    claimed = running(engine)
    clock.move(LEASE - MILLISECOND)
    assert clock.ms == claimed.lease_expires_at_ms - 1
    operation(engine, claimed.handle)


@every_operation
def test_a_lease_is_over_at_the_very_millisecond_it_expires(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    handle = running(engine).handle
    clock.move(LEASE)
    before = dump()
    with refused("lease_expired"):
        operation(engine, handle)
    assert dump() == before


@every_operation
def test_expired_comes_before_stale_also_once_the_lapse_was_noticed(
    engine: Engine, clock: Clock, operation: Operation
) -> None:
    handle = running(engine).handle
    clock.move(LEASE)
    for notice in (lambda _: None, upkeep_all):
        notice(engine)
        for other in (handle, *stale_versions(handle)):
            with refused("lease_expired"):
                operation(engine, other)
    assert info_of(engine, handle.execution_id).state.ownership_state is OwnershipState.LEASE_EXPIRED_RECLAIMABLE


@every_operation
def test_a_fence_that_differs_in_any_part_is_stale(engine: Engine, dump: Dump, operation: Operation) -> None:
    handle = running(engine).handle
    before = dump()
    for other in stale_versions(handle):
        with refused("stale_lease"):
            operation(engine, other)
    assert dump() == before
    operation(engine, handle)


@every_operation
def test_a_handle_of_another_kind_of_store_is_refused_before_anything_else(
    engine: Engine, dump: Dump, operation: Operation
) -> None:
    handle = running(engine).handle
    before = dump()
    with refused("handle_from_other_backend") as caught:
        operation(engine, attrs.evolve(handle, backend="elsewhere"))
    assert "elsewhere" in str(caught.value)
    assert dump() == before


# Those who were replaced.


@every_operation
def test_a_zombie_gets_stale_and_cannot_touch_its_successor(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    zombie = running(engine).handle
    clock.move(LEASE)
    successor = claim_one(engine, zombie.lane, worker="w2").handle
    assert successor.lease_epoch == zombie.lease_epoch + 1
    before = dump()
    with refused("stale_lease"):
        operation(engine, zombie)
    assert dump() == before
    engine.complete(successor, b"the successor's")
    assert engine.get_execution_result(zombie.execution_id) == b"the successor's"


@every_operation
def test_a_zombie_whose_successor_expired_too_gets_lease_expired(
    engine: Engine, clock: Clock, dump: Dump, operation: Operation
) -> None:
    zombie = running(engine).handle
    clock.move(LEASE)
    claim_one(engine, zombie.lane, worker="w2")
    clock.move(LEASE)
    before = dump()
    with refused("lease_expired"):
        operation(engine, zombie)
    assert dump() == before


@every_operation
def test_the_holder_of_a_revoked_lease_gets_stale_after_the_next_claim(engine: Engine, operation: Operation) -> None:
    handle = running(engine).handle
    revoke(engine, handle)
    assert claim_one(engine, handle.lane, worker="w2").handle.kind is HandleKind.RECLAIMED
    with refused("stale_lease"):
        operation(engine, handle)


# A lost lease never comes back to life.


def test_an_expired_lease_is_not_renewed_before_or_after_it_was_handled(engine: Engine, clock: Clock) -> None:
    handle = running(engine).handle
    clock.move(LEASE)
    with refused("lease_expired"):
        engine.renew(handle)
    upkeep_all(engine)
    with refused("lease_expired"):
        engine.renew(handle)
    assert claim_one(engine, handle.lane, worker="w2").handle.kind is HandleKind.RECLAIMED
    with refused("stale_lease"):
        engine.renew(handle)


def test_a_lease_that_was_lost_and_a_replay_later_stays_lost(engine: Engine) -> None:
    handle = running(engine).handle
    revoke(engine, handle)
    engine.cancel_execution(CancelExecutionArgs(execution_id=handle.execution_id))
    engine.replay_execution(ReplayExecutionArgs(execution_id=handle.execution_id))
    with refused("execution_not_active"):
        engine.renew(handle)
    successor = claim_one(engine, handle.lane, worker="w2")
    with refused("stale_lease"):
        engine.renew(handle)
    # The revocation does not affect the next lease.
    assert engine.renew(successor.handle).lease_epoch == successor.handle.lease_epoch
    engine.complete(successor.handle)


def test_a_renewal_keeps_epoch_and_attempt_and_counts_from_now(engine: Engine, clock: Clock) -> None:
    handle = running(engine).handle
    clock.move(timedelta(seconds=20))
    renewal = engine.renew(handle)
    assert renewal == LeaseRenewal(expires_at_ms=clock.ms + 30_000, lease_epoch=handle.lease_epoch)
    info = info_of(engine, handle.execution_id)
    assert info.current_lease is not None
    assert info.current_lease.expires_at_ms == renewal.expires_at_ms
    assert info.total_attempt_count == 1


def test_renew_many_answers_each_lease_by_itself(engine: Engine, clock: Clock) -> None:
    lapsed = running(engine, lease=timedelta(seconds=5)).handle
    clock.move(timedelta(seconds=5))
    good, ended, revoked, other = (running(engine).handle for _ in range(4))
    engine.complete(ended)
    revoke(engine, revoked)
    unknown = attrs.evolve(good, execution_id=ExecutionId.mint(engine.partitions))
    stale = attrs.evolve(other, lease_epoch=7)
    answers = engine.renew_many([lapsed, good, ended, revoked, unknown, stale])
    assert answers[1] == LeaseRenewal(expires_at_ms=clock.ms + 30_000, lease_epoch=1)
    assert [getattr(answer, "code", "renewed") for answer in answers] == [
        "lease_expired", "renewed", "execution_not_active", "lease_revoked", "execution_not_found", "stale_lease",
    ]  # fmt: skip


def test_renew_many_takes_more_than_one_call_holds_and_none_at_all(engine: Engine) -> None:
    handle = running(engine).handle
    unknown = [attrs.evolve(handle, execution_id=ExecutionId.mint(engine.partitions)) for _ in range(600)]
    answers = engine.renew_many([*unknown, handle])
    assert [getattr(answer, "code", "renewed") for answer in answers] == ["execution_not_found"] * 600 + ["renewed"]
    assert engine.renew_many([]) == []


def test_an_execution_may_stand_once_in_a_call(engine: Engine, dump: Dump) -> None:
    handle = running(engine).handle
    before = dump()
    for call in (engine.renew_many, engine.release_many):
        with refused("duplicate_in_call"):
            call([handle, handle])
    assert dump() == before


@every_operation
@pytest.mark.parametrize("handle", [None, "handle", b""])
def test_an_invalid_handle_is_refused(engine: Engine, operation: Operation, handle: Any) -> None:
    with refused("invalid_input"):
        operation(engine, handle)


@every_operation
def test_a_call_for_an_execution_that_time_has_removed_finds_none(
    engine: Engine, clock: Clock, operation: Operation
) -> None:
    policy = ExecutionPolicy(attempt_timeout=timedelta(seconds=5), retention=timedelta())
    handle = running(engine, policy=policy).handle
    clock.move(timedelta(seconds=5))
    with refused("execution_not_found"):
        operation(engine, handle)
    assert engine.list_damaged().executions == ()
