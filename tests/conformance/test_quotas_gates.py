"""Quotas as gates: what they hand out, when they close, and how they open again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed, ClaimForWorkerArgs, ReclaimToken
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.quotas import SlotHold
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.states import BlockingReason, EligibilityState, PublicState
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LANE,
    claim_one,
    claimed_ids,
    created,
    depths,
    info_of,
    raw_client,
    raw_key,
    refused,
    request,
    upkeep_all,
)
from tests.support.quotas import PLACES, QUOTA, UNDER_QUOTA, limited, placed, queued, running_now, states, status
from tests.support.servers import wait_until
from tests.support.waiters import registered

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
RETRYING = ExecutionPolicy(
    quota_policy_id=QUOTA, retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False)
)


@pytest.fixture(autouse=True, params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test beside the quota, and with the executions in another partition."""
    with placed(request.param):
        yield


# Closing


def test_exactly_the_limit_runs_at_once_and_a_freed_slot_takes_the_next(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=3)
    executions = queued(engine, 5)

    first = engine.claim_many(request(limit=10))
    assert [each.execution_id for each in first] == executions[:3]
    assert claimed_ids(engine) == []
    engine.complete(first[1].handle, None)
    assert claimed_ids(engine) == executions[3:4]
    assert running_now(engine) == 3


def test_exactly_the_limit_begins_in_a_window_which_slides(engine: Engine, clock: Clock) -> None:
    limited(engine, max_requests_per_window=3, window=SECOND)
    executions = queued(engine, 9)

    assert claimed_ids(engine, limit=2) == executions[:2]
    clock.move(timedelta(milliseconds=400))
    assert claimed_ids(engine) == executions[2:3]
    clock.move(timedelta(milliseconds=599))
    assert claimed_ids(engine) == []
    clock.move(timedelta(milliseconds=1))
    assert claimed_ids(engine) == executions[3:5]
    clock.move(timedelta(milliseconds=400))
    assert claimed_ids(engine) == executions[5:6]


def test_work_behind_a_closed_quota_reads_rate_limited_and_is_not_written(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    executions = queued(engine, 3)
    before = info_of(engine, executions[2])
    assert before.public_state is PublicState.WAITING
    held = claim_one(engine)

    after = info_of(engine, executions[2])
    assert after.public_state is PublicState.RATE_LIMITED
    assert after.state.eligibility_state is EligibilityState.BLOCKED_BY_QUOTA
    assert after.state.blocking_reason is BlockingReason.WAITING_FOR_QUOTA
    assert after.last_mutation_at_ms == before.last_mutation_at_ms
    assert states(engine, executions) == [PublicState.ACTIVE, PublicState.RATE_LIMITED, PublicState.RATE_LIMITED]
    page = engine.list_executions(filter=ExecutionFilter(state=PublicState.RATE_LIMITED))
    assert [row.execution_id for row in page.executions] == executions[1:]
    assert depths(engine, LANE) == {PublicState.ACTIVE: 1, PublicState.RATE_LIMITED: 2}

    engine.complete(held.handle, None)
    assert states(engine, executions[1:]) == [PublicState.WAITING, PublicState.WAITING]
    assert depths(engine, LANE) == {PublicState.COMPLETED: 1, PublicState.WAITING: 2}


def test_explain_names_the_quota_with_its_holder_or_with_its_moment(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1, max_requests_per_window=2, window=MINUTE)
    executions = queued(engine, 3)
    held = claim_one(engine)
    explained = engine.explain_execution(executions[2])
    assert explained is not None
    assert explained.code == "rate_limited"
    assert f"'api' lets 1 run at once; its slots are held by {executions[0]} (leased for 30.0 s)" in explained.text

    engine.complete(held.handle, None)
    engine.complete(claim_one(engine).handle, None)
    clock.move(timedelta(seconds=20))
    explained = engine.explain_execution(executions[2])
    assert explained is not None
    assert "lets 2 attempts begin in 0:01:00" in explained.text
    assert "the next may begin at 2030-01-01 00:01:00+00:00, in 40.0 s" in explained.text


def test_a_closed_quota_hides_no_other_work(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    queued(engine, 3)
    other = created(engine)

    assert len(claimed_ids(engine)) == 2
    assert engine.read_execution_state(other) is PublicState.ACTIVE


# Slots


def _complete(engine: Engine, claimed: Claimed) -> None:
    engine.complete(claimed.handle, None)


def _fail(engine: Engine, claimed: Claimed) -> None:
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)


def _release(engine: Engine, claimed: Claimed) -> None:
    engine.release(claimed.handle, delay=MINUTE)


def _delay(engine: Engine, claimed: Claimed) -> None:
    engine.delay(claimed.handle, MINUTE)


def _cancel(engine: Engine, claimed: Claimed) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))


def _revoke(engine: Engine, claimed: Claimed) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))


@pytest.mark.parametrize("end", [_complete, _fail, _release, _delay, _cancel, _revoke])
def test_whatever_ends_a_lease_frees_its_slot(
    engine: Engine, clock: Clock, end: Callable[[Engine, Claimed], None]
) -> None:
    del clock
    limited(engine, max_concurrent=1)
    _, second = queued(engine, 2, policy=RETRYING)
    held = claim_one(engine)

    end(engine, held)

    assert running_now(engine) == 0
    assert engine.read_execution_state(second) is PublicState.WAITING


def test_the_slot_of_a_killed_worker_is_free_when_its_lease_lapses(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    lost, other = queued(engine, 2)
    claim_one(engine, lease=2 * SECOND)
    clock.move(2 * SECOND - timedelta(milliseconds=1))
    assert claimed_ids(engine, worker="w2") == []

    clock.move(timedelta(milliseconds=1))
    assert claimed_ids(engine, worker="w2") == [lost]
    assert claimed_ids(engine, worker="w2") == []
    engine.cancel_execution(CancelExecutionArgs(execution_id=lost))
    assert claimed_ids(engine, worker="w2") == [other]


def test_a_long_run_keeps_its_slot_for_as_long_as_its_lease_is_renewed(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    queued(engine, 2)
    held = claim_one(engine)
    for _ in range(10):
        clock.move(20 * SECOND)
        engine.renew(held.handle)
        upkeep_all(engine)
        assert claimed_ids(engine, worker="w2") == []
    assert running_now(engine) == 1


def test_a_retry_takes_a_slot_again_and_counts_as_an_attempt(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1, max_requests_per_window=2, window=MINUTE)
    first, second = queued(engine, 2, policy=RETRYING)
    engine.fail(claim_one(engine).handle, BOOM, FailureClass.TRANSIENT)
    taken = claim_one(engine)
    assert taken.execution_id == second
    clock.move(SECOND)
    assert claimed_ids(engine) == []
    engine.complete(taken.handle, None)

    # The window is full, and it opens with the moment of the first attempt.
    assert status(engine).admitted_in_window == 2
    assert claimed_ids(engine) == []
    clock.move(MINUTE - SECOND)
    again = claim_one(engine)
    assert (again.execution_id, again.attempt_type, info_of(engine, first).retry_count) == (first, "retry", 1)


def test_a_resumed_attempt_counts_once_in_the_window(engine: Engine, clock: Clock) -> None:
    limited(engine, max_requests_per_window=2, window=MINUTE)
    queued(engine, 1)
    engine.delay(claim_one(engine).handle, SECOND)
    clock.move(SECOND)
    claim_one(engine)

    assert status(engine).admitted_in_window == 1


def test_waiting_for_the_rate_uses_no_attempts(engine: Engine, clock: Clock) -> None:
    limited(engine, max_requests_per_window=1, window=2 * SECOND)
    executions = queued(engine, 5)
    done = []
    for _ in range(20):
        for claimed in engine.claim_many(request(limit=10)):
            engine.complete(claimed.handle, None)
            done.append(claimed.execution_id)
        clock.move(timedelta(milliseconds=500))

    assert done == executions
    infos = [info_of(engine, each) for each in executions]
    assert {(each.total_attempt_count, each.retry_count) for each in infos} == {(1, 0)}


def test_a_slot_held_for_the_run_outlasts_delays_retries_and_lost_leases(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1, hold=SlotHold.RUN)
    first, second = queued(engine, 2, policy=RETRYING)

    engine.delay(claim_one(engine).handle, MINUTE)
    assert claimed_ids(engine) == []
    clock.move(MINUTE)
    resumed = claim_one(engine)
    engine.fail(resumed.handle, BOOM, FailureClass.TRANSIENT)
    assert claimed_ids(engine) == []
    clock.move(SECOND)
    claim_one(engine)
    clock.move(timedelta(seconds=30))
    reclaimed = claim_one(engine)
    assert (reclaimed.execution_id, running_now(engine)) == (first, 1)
    assert info_of(engine, first).policy == RETRYING

    engine.complete(reclaimed.handle, None)
    assert claimed_ids(engine) == [second]


def test_a_run_that_holds_its_slot_counts_once_in_the_window(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=2, max_requests_per_window=2, window=10 * MINUTE, hold=SlotHold.RUN)
    first, second, third = queued(engine, 3, policy=RETRYING)
    assert claim_one(engine).execution_id == first
    taken = claim_one(engine)
    assert (taken.execution_id, status(engine).admitted_in_window) == (second, 2)

    # The window is full, and a retry and an attempt after a lost lease begin all the same.
    engine.fail(taken.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(MINUTE)
    again = {each.execution_id: each for each in engine.claim_many(request(limit=10))}
    assert set(again) == {first, second}
    assert again[second].attempt_type == "retry"
    assert status(engine).admitted_in_window == 2

    # An end frees the slot, but the next run waits for the window.
    engine.complete(again[second].handle, None)
    assert claimed_ids(engine) == []
    clock.move(10 * MINUTE)
    assert third in claimed_ids(engine)


def test_a_slot_held_for_the_run_is_freed_by_any_end(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1, hold=SlotHold.RUN)
    first, second = queued(engine, 2)
    engine.delay(claim_one(engine).handle, MINUTE)

    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    assert running_now(engine) == 0
    engine.complete(claim_one(engine).handle, None)
    assert running_now(engine) == 0

    engine.replay_execution(ReplayExecutionArgs(execution_id=second))
    assert claimed_ids(engine) == [second]
    assert running_now(engine) == 1


def test_a_delayed_execution_takes_no_slot(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    later = created(engine, policy=UNDER_QUOTA, delay=MINUTE)
    now = queued(engine, 2)

    for each in now:
        claimed = claim_one(engine)
        assert claimed.execution_id == each
        engine.complete(claimed.handle, None)
    clock.move(MINUTE)
    assert claimed_ids(engine) == [later]


def test_a_reserved_execution_takes_its_slot_at_redemption(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    first, _ = queued(engine, 2)
    args = ClaimForWorkerArgs(lane=LANE, worker_id="w2", worker_instance_id="w2", grant=MINUTE)
    grant = engine.claim_for_worker(args)
    assert grant is not None
    assert (grant.execution_id, running_now(engine)) == (first, 0)
    token = ReclaimToken(grant=grant, worker_id="w2", worker_instance_id="w2")
    held = claim_one(engine)
    assert engine.claim_for_worker(args) is None

    assert engine.claim_from_reclaim(token) is None
    engine.complete(held.handle, None)
    assert engine.claim_from_reclaim(token)
    assert running_now(engine) == 1


@pytest.mark.parametrize("field", ["fence", "class"])
def test_an_execution_whose_record_is_damaged_keeps_no_slot(engine: Engine, clock: Clock, field: str) -> None:
    limited(engine, max_concurrent=1)
    lost, other = queued(engine, 2)
    held = claim_one(engine)
    key = raw_key(engine, lost.partition_number, f"x:{lost.uuid}")
    raw_client(engine, lost.partition_number).hset(key, field, "damaged")
    with refused("corruption"):
        engine.complete(held.handle, None)

    # Without its class, the quota of a record is not known: its slot is found by the check of holders.
    clock.move(timedelta(minutes=2))
    upkeep_all(engine)
    assert claimed_ids(engine) == [other]


# Waking


def test_a_freed_slot_wakes_a_waiting_worker_at_once(engine: Engine) -> None:
    limited(engine, max_concurrent=1)
    queued(engine, 2)
    held = claim_one(engine)
    got: list[float] = []

    def wait() -> None:
        assert engine.claim_many(request(worker="w2", max_wait=timedelta(seconds=9)))
        got.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: registered(engine), "a worker waits")
    freed = time.monotonic()
    engine.complete(held.handle, None)
    thread.join(9)

    assert got
    assert got[0] - freed < 2


def test_a_waiting_worker_claims_when_the_window_opens(engine: Engine) -> None:
    limited(engine, max_requests_per_window=1, window=timedelta(milliseconds=300))
    queued(engine, 2)
    claim_one(engine)
    begun = time.monotonic()

    assert engine.claim_many(request(worker="w2", max_wait=timedelta(seconds=9)))
    assert time.monotonic() - begun < 3


def started(engine: Engine, execution: ExecutionId) -> int:
    """Return when the first attempt of an execution began, by the store's clock."""
    at = info_of(engine, execution).started_at_ms
    assert at is not None
    return at


def test_eight_threads_never_begin_more_than_the_rate(engine: Engine) -> None:
    most, window = 10, 0.4
    limited(engine, max_requests_per_window=most, window=timedelta(seconds=window))
    executions = queued(engine, 40)
    begun: list[int] = []

    def work(number: int) -> None:
        while len(begun) < len(executions):
            wait = request(worker=f"w{number}", limit=3, max_wait=timedelta(milliseconds=200))
            for claimed in engine.claim_many(wait):
                begun.append(started(engine, claimed.execution_id))
                engine.complete(claimed.handle, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    begun.sort()
    assert len(begun) == len(executions)
    for first, beyond in zip(begun, begun[most:], strict=False):
        assert beyond - first >= window * 1000
