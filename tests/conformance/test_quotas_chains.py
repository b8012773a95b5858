"""Quotas of other partitions: a caller that dies between two steps leaves nothing stuck and no limit passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import ClaimForWorkerArgs, ReclaimToken
from flowfabric_worker.engine.types.quotas import QuotaPolicy, SlotHold
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, claim_one, claimed_ids, request, upkeep_all
from tests.support.quotas import QUOTA, admitted, check, limited, placed, queued, running_now, status
from tests.support.stepped_store import killed_after, stepped

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=10)
# More than the calls of any of these chains.
MOST_STEPS = 18


@pytest.fixture(autouse=True)
def _elsewhere() -> Iterator[None]:
    with placed("elsewhere"):
        yield


def settled(dump: Dump) -> bool:
    """Return whether no partition owes anything, and no claim has what it did not settle."""
    content = dump()
    return not [key for key in content if ":owed" in key or ":admitted:" in key]


def drain(engine: Engine) -> list[ExecutionId]:
    """Claim and complete until nothing is ready; return what was completed in its order."""
    done = []
    while claimed := engine.claim_many(request(worker="next", limit=5, lease=LEASE)):
        for each in claimed:
            engine.complete(each.handle, None)
            done.append(each.execution_id)
    return done


def _complete(tried: Engine) -> None:
    tried.complete(claim_one(tried, lease=LEASE).handle, None)


def _cancel(tried: Engine) -> None:
    claimed = claim_one(tried, lease=LEASE)
    tried.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))


def _revoke(tried: Engine) -> None:
    claimed = claim_one(tried, lease=LEASE)
    tried.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))


def _delay(tried: Engine) -> None:
    tried.delay(claim_one(tried, lease=LEASE).handle, SECOND)


def _ask_by_hand(tried: Engine) -> None:
    (execution,) = [row.execution_id for row in tried.list_executions().executions][-1:]
    check(tried, execution, lease=LEASE)
    tried.release_admission(QUOTA, execution)


def _redeem(tried: Engine) -> None:
    grant = tried.claim_for_worker(
        ClaimForWorkerArgs(lane=LANE, worker_id="w", worker_instance_id="w", grant=LEASE, grant_id=str(uuid4()))
    )
    assert grant is not None
    token = ReclaimToken(grant=grant, worker_id="w", worker_instance_id="w", lease=LEASE)
    handle = tried.claim_from_reclaim(token)
    assert handle is not None
    tried.complete(handle, None)


ENDS = [_complete, _cancel, _revoke, _delay, _ask_by_hand, _redeem]


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
@pytest.mark.parametrize("act", ENDS)
def test_a_killed_chain_gives_every_slot_back_within_its_lease(
    engine: Engine, clock: Clock, act: Callable[[Engine], None], steps: int, dump: Dump
) -> None:
    limited(engine, max_concurrent=1)
    executions = queued(engine, 3)

    killed_after(engine, steps, act)
    assert running_now(engine) <= 1
    clock.move(LEASE + 2 * SECOND)
    upkeep_all(engine)
    upkeep_all(engine)

    assert settled(dump)
    assert set(drain(engine)) >= set(executions[1:])
    assert running_now(engine) == 0
    assert settled(dump)


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_a_killed_claim_never_lets_a_second_one_pass_the_limits(engine: Engine, clock: Clock, steps: int) -> None:
    limited(engine, max_concurrent=1, max_requests_per_window=2, window=MINUTE)
    queued(engine, 3)

    killed_after(engine, steps, lambda tried: claim_one(tried, lease=MINUTE))
    got = []
    for _ in range(4):
        clock.move(SECOND)
        upkeep_all(engine)
        got += claimed_ids(engine, worker="next", lease=MINUTE)

    active = [row for row in engine.list_executions().executions if getattr(row, "public_state", None) == "active"]
    assert len(active) == 1
    assert running_now(engine) == 1
    assert status(engine).admitted_in_window == 1
    assert len(got) <= 1


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_a_killed_claim_goes_on_under_its_id(engine: Engine, clock: Clock, steps: int, dump: Dump) -> None:
    del clock
    limited(engine, max_concurrent=1)
    first, _ = queued(engine, 2)
    claim_id = str(uuid4())
    asked = attrs.evolve(request(lease=LEASE), claim_id=claim_id)

    killed_after(engine, steps, lambda tried: tried.claim_many(asked))
    again = [each.execution_id for each in engine.claim_many(asked)]

    assert again == [first]
    assert running_now(engine) == 1
    upkeep_all(engine)
    assert settled(dump)
    assert running_now(engine) == 1


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_upkeep_tells_of_a_slot_that_a_killed_holder_freed(engine: Engine, clock: Clock, steps: int) -> None:
    del clock
    limited(engine, max_concurrent=1)
    _, second = queued(engine, 2)
    held = claim_one(engine)
    assert claimed_ids(engine) == []

    killed_after(engine, steps, lambda tried: tried.complete(held.handle, None))
    engine.complete(held.handle, None)
    upkeep_all(engine)
    upkeep_all(engine)

    assert claimed_ids(engine) == [second]


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_upkeep_tells_of_a_raise_whose_caller_was_killed(engine: Engine, clock: Clock, steps: int) -> None:
    del clock
    limited(engine, max_concurrent=1)
    executions = queued(engine, 3)
    claim_one(engine)
    assert claimed_ids(engine) == []

    killed_after(engine, steps, lambda tried: tried.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=3)))
    upkeep_all(engine)
    upkeep_all(engine)

    assert claimed_ids(engine) == executions[1:]


@pytest.mark.parametrize("hold", list(SlotHold))
def test_a_chain_whose_replies_are_all_lost_counts_everything_once(
    engine: Engine, clock: Clock, hold: SlotHold, dump: Dump
) -> None:
    del clock
    limited(engine, max_concurrent=2, max_requests_per_window=3, window=MINUTE, hold=hold)
    executions = queued(engine, 4)
    tried, store = stepped(engine)

    with store.losing():
        first = tried.claim_many(request(limit=5))
        for each in first:
            tried.complete(each.handle, None)
        upkeep_all(tried)
        second = tried.claim_many(request(limit=5))

    assert [each.execution_id for each in (*first, *second)] == executions[:3]
    upkeep_all(engine)
    assert (running_now(engine), status(engine).admitted_in_window) == (1, 3)
    assert settled(dump)


def test_a_slot_by_hand_and_a_redemption_count_once_after_lost_replies(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=2)
    first, second, _ = queued(engine, 3)
    grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w", worker_instance_id="w", grant=LEASE))
    assert grant is not None
    tried, store = stepped(engine)

    with store.losing():
        assert tried.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="w", worker_instance_id="w")) is not None
        assert admitted(tried, second)

    assert grant.execution_id == first
    assert running_now(engine) == 2
    assert claimed_ids(engine, worker="next", limit=5) == [second]
