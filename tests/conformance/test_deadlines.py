"""Timeouts of attempts and deadlines of executions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    claim_one,
    created,
    creation,
    depths,
    info_of,
    refused,
    request,
    running,
    upkeep_all,
)
from tests.support.maintenance import MILLISECOND, SECOND, HandleDue, by_claim, by_keeper, handled
from tests.support.phases import ACTIVE, HOUR, PHASES_LANE, RUNNABLE, Phase, Phases

TIMEOUT = 5 * SECOND
RETRY = RetryPolicy(initial=10 * SECOND, maximum=10 * SECOND, jitter=False)


# Attempt timeouts.


def timed(**changes: Any) -> ExecutionPolicy:
    return ExecutionPolicy(**{"attempt_timeout": TIMEOUT, **changes})


@handled
def test_an_attempt_that_takes_too_long_fails_as_a_timeout(engine: Engine, clock: Clock, handle_due: HandleDue) -> None:
    claimed = running(engine, policy=timed())
    assert claimed.timeout_at_ms == clock.ms + 5000
    clock.move(TIMEOUT - MILLISECOND)
    handle_due(engine)
    engine.renew(claimed.handle)
    clock.move(MILLISECOND)
    handle_due(engine)
    info = info_of(engine, claimed.execution_id)
    assert (info.public_state, info.error_class, info.error) == (PublicState.FAILED, "timeout", "attempt_timeout")
    with refused("execution_not_active"):
        engine.complete(claimed.handle)


@pytest.mark.parametrize(
    ("retry", "state"),
    [
        (RETRY, PublicState.DELAYED),
        (RetryPolicy(max_retries=0), PublicState.FAILED),
        (RetryPolicy(retryable_categories=frozenset({FailureClass.TIMEOUT})), PublicState.DELAYED),
        (RetryPolicy(retryable_categories=frozenset({FailureClass.TRANSIENT})), PublicState.FAILED),
    ],
)
def test_a_timeout_is_retried_as_the_policy_says(
    engine: Engine, clock: Clock, retry: RetryPolicy, state: PublicState
) -> None:
    claimed = running(engine, policy=timed(retry=retry))
    clock.move(TIMEOUT)
    by_keeper(engine)
    assert engine.read_execution_state(claimed.execution_id) is state


def test_the_timeout_is_armed_again_at_each_acquisition(engine: Engine, clock: Clock) -> None:
    policy = timed(retry=RetryPolicy(initial=timedelta(), jitter=False))
    claimed = running(engine, policy=policy)
    lane = claimed.handle.lane
    for hand_back in (
        lambda handle: engine.release(handle),
        lambda handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT),
        lambda handle: engine.revoke_lease(RevokeLeaseArgs(execution_id=handle.execution_id)),
    ):
        clock.move(TIMEOUT - SECOND)
        by_keeper(engine)
        hand_back(claimed.handle)
        claimed = claim_one(engine, lane)
        assert claimed.timeout_at_ms == clock.ms + 5000
    clock.move(TIMEOUT - MILLISECOND)
    by_keeper(engine)
    engine.renew(claimed.handle)


def test_the_timeout_of_an_ended_attempt_has_no_effect(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=timed())
    engine.release(claimed.handle, delay=HOUR)
    clock.move(TIMEOUT)
    by_keeper(engine)
    assert engine.read_execution_state(claimed.execution_id) is PublicState.DELAYED


@pytest.mark.parametrize(
    ("lease", "state"),
    [(TIMEOUT - SECOND, PublicState.ACTIVE), (TIMEOUT, PublicState.FAILED), (TIMEOUT + SECOND, PublicState.FAILED)],
)
def test_the_earlier_of_timeout_and_lapse_counts(
    engine: Engine, clock: Clock, lease: timedelta, state: PublicState
) -> None:
    claimed = running(engine, policy=timed(), lease=lease)
    clock.move(HOUR)
    by_keeper(engine)
    assert engine.read_execution_state(claimed.execution_id) is state


# Deadlines.


@handled
@pytest.mark.parametrize("phase", RUNNABLE + ACTIVE)
def test_a_deadline_ends_an_execution_in_any_phase(
    engine: Engine, clock: Clock, phase: Phase, handle_due: HandleDue
) -> None:
    deadline = clock.now + timedelta(minutes=30)
    execution_id = phase(Phases(engine, clock, {"deadline": deadline}))
    clock.move(deadline - clock.now - MILLISECOND)
    handle_due(engine)
    before = engine.read_execution_state(execution_id)
    assert before is not None
    assert not before.is_terminal
    clock.move(MILLISECOND)
    handle_due(engine)
    info = info_of(engine, execution_id)
    assert (info.public_state, info.error, info.ended_at_ms) == (PublicState.EXPIRED, "execution_deadline", clock.ms)
    assert (info.current_lease, info.reserved_for) == (None, None)
    (event,) = engine.subscribe_completions(timeout=timedelta())
    assert (event.execution_id, event.outcome) == (execution_id, TerminalOutcome.EXPIRED)
    clock.move(HOUR)
    upkeep_all(engine)
    assert engine.claim_many(request(PHASES_LANE)) == []
    assert depths(engine, PHASES_LANE) == {PublicState.EXPIRED: 1}


def test_a_deadline_ends_work_of_a_paused_lane_too(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now + SECOND)
    engine.pause_lane(LANE)
    clock.move(SECOND)
    by_claim(engine)
    assert engine.read_execution_state(execution_id) is PublicState.EXPIRED


def test_the_deadline_of_a_policy_counts_from_the_creation(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, policy=ExecutionPolicy(execution_deadline=10 * SECOND), delay=HOUR)
    assert info_of(engine, execution_id).deadline_at_ms == clock.ms + 10_000


def test_a_deadline_does_nothing_to_what_ended_before_it(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, deadline=clock.now + SECOND)
    engine.complete(claimed.handle)
    clock.move(SECOND)
    by_keeper(engine)
    assert engine.read_execution_state(claimed.execution_id) is PublicState.COMPLETED


def test_a_deadline_of_the_past_ends_an_execution_before_it_is_claimed(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, deadline=clock.now - SECOND)
    assert engine.claim_many(request()) == []
    assert engine.read_execution_state(execution_id) is PublicState.EXPIRED


HELD: dict[str, Callable[[Engine, Handle], object]] = {
    "renew": lambda engine, handle: engine.renew(handle),
    "progress": lambda engine, handle: engine.progress(handle, 5),
    "complete": lambda engine, handle: engine.complete(handle, b"5"),
    "fail": lambda engine, handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT),
    "cancel": lambda engine, handle: engine.cancel(handle),
    "release": lambda engine, handle: engine.release(handle),
    "delay": lambda engine, handle: engine.delay(handle, SECOND),
    "wait_children": lambda engine, handle: engine.wait_children(handle),
    "record_step": lambda engine, handle: engine.record_step(handle, "s", b"5"),
}
OVER: dict[str, ExecutionPolicy] = {
    "time-out": ExecutionPolicy(attempt_timeout=SECOND),
    "time-out and a retry": ExecutionPolicy(attempt_timeout=SECOND, retry=RetryPolicy(max_retries=1, jitter=False)),
    "deadline": ExecutionPolicy(execution_deadline=SECOND),
}


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("call", HELD)
def test_a_holder_is_told_what_time_decided_swept_or_not(engine: Engine, clock: Clock, call: str, over: str) -> None:
    one, two = (running(engine, lane=lane, policy=OVER[over]) for lane in ("one", "two"))
    clock.move(SECOND)

    told = []
    for claimed in (one, two):
        with pytest.raises(StateError) as caught:
            HELD[call](engine, claimed.handle)
        told.append((caught.value.code, caught.value.details["outcome"], caught.value.details["phase"]))
        upkeep_all(engine)

    assert told[0] == told[1]
    assert told[0][0] == "execution_not_active"
    first, second = info_of(engine, one.execution_id), info_of(engine, two.execution_id)
    assert (first.public_state, first.error) == (second.public_state, second.error)
    assert first.public_state is not PublicState.ACTIVE


def test_only_one_kind_of_deadline_may_be_given(engine: Engine, dump: Dump) -> None:
    before = dump()

    with refused("invalid_input"):
        created(engine, deadline=datetime(2040, 1, 1, tzinfo=UTC), policy=ExecutionPolicy(execution_deadline=SECOND))

    assert dump() == before


def test_retries_after_one_time_out_wait_for_different_times(engine: Engine, clock: Clock) -> None:
    retry = RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(seconds=100), jitter=True)
    policy = ExecutionPolicy(attempt_timeout=SECOND, retry=retry)
    engine.create_executions([creation(policy=policy) for _ in range(20)])
    claimed = engine.claim_many(request(limit=20))
    clock.move(SECOND)
    upkeep_all(engine)

    waits = {(info_of(engine, each.execution_id).delay_until_ms or 0) - clock.ms for each in claimed}

    assert len(waits) > 15
    assert all(50_000 <= wait <= 100_000 for wait in waits)
