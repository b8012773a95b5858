"""Slots of a quota that are asked for and released by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.quotas import AdmissionOutcome, CheckAdmissionResult, SlotHold
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import claim_one, claimed_ids, created, refused, upkeep_all
from tests.support.quotas import PLACES, QUOTA, admitted, check, limited, placed, queued, running_now, status

SECOND = timedelta(seconds=1)
ALREADY = CheckAdmissionResult(outcome=AdmissionOutcome.ALREADY_ADMITTED)


@pytest.fixture(autouse=True, params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test beside the quota, and with the executions in another partition."""
    with placed(request.param):
        yield


def test_admission_refuses_above_the_rate_and_tells_when_to_ask_again(engine: Engine, clock: Clock) -> None:
    limited(engine, max_requests_per_window=2, window=SECOND, max_concurrent=9)
    executions = queued(engine, 4)
    assert [admitted(engine, each) for each in executions[:2]] == [True, True]
    assert check(engine, executions[0]) == ALREADY
    clock.move(timedelta(milliseconds=300))

    refusal = CheckAdmissionResult(outcome=AdmissionOutcome.RATE_EXCEEDED, retry_after_ms=700)
    assert check(engine, executions[2]) == refusal
    assert status(engine).admitted_in_window == 2
    clock.move(timedelta(milliseconds=700))
    assert admitted(engine, executions[2])


def test_admission_refuses_above_the_slots_until_one_is_released(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    first, second = queued(engine, 2)
    assert admitted(engine, first)
    assert check(engine, second).outcome is AdmissionOutcome.CONCURRENCY_EXCEEDED

    assert [engine.release_admission(QUOTA, first) for _ in range(2)] == [True, False]
    assert running_now(engine) == 0
    assert admitted(engine, second)
    assert engine.release_admission(QUOTA, first) is False
    assert running_now(engine) == 1


def test_an_admitted_execution_runs_while_the_quota_is_closed(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    first, second = queued(engine, 2)
    assert admitted(engine, second)

    held = claim_one(engine)
    assert (held.execution_id, running_now(engine)) == (second, 1)
    assert claimed_ids(engine) == []
    engine.complete(held.handle, None)
    assert claimed_ids(engine) == [first]


def test_a_slot_by_hand_lapses_when_no_run_begins_in_time(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1, hold=SlotHold.RUN)
    first, second = queued(engine, 2)
    assert admitted(engine, first, lease=2 * SECOND)
    clock.move(2 * SECOND - timedelta(milliseconds=1))
    upkeep_all(engine)
    assert running_now(engine) == 1

    clock.move(timedelta(milliseconds=1))
    upkeep_all(engine)
    assert running_now(engine) == 0
    assert admitted(engine, second)


def test_the_slot_of_a_run_that_began_does_not_lapse(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    (first,) = queued(engine, 1)
    assert admitted(engine, first, lease=SECOND)
    claim_one(engine)
    clock.move(2 * SECOND)
    upkeep_all(engine)

    assert running_now(engine) == 1
    assert check(engine, first) == ALREADY


def test_an_execution_need_not_name_the_policy_to_be_admitted(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    limited(engine, "other", max_concurrent=1)
    home = queued(engine, 1)[0].partition_number
    plain = ExecutionId.mint(engine.partitions)
    while plain.partition_number != home:
        plain = ExecutionId.mint(engine.partitions)
    created(engine, execution_id=plain, lane="plain")

    assert admitted(engine, plain)
    assert running_now(engine) == 1
    held = claim_one(engine, "plain")
    assert claimed_ids(engine) == []
    engine.complete(held.handle, None)
    assert running_now(engine) == 0


def test_an_ended_or_unknown_execution_is_not_admitted(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    (execution,) = queued(engine, 1)
    engine.complete(claim_one(engine).handle, None)

    with refused("execution_not_active"):
        check(engine, execution)
    unknown = ExecutionId(execution.partition_number, ExecutionId.mint().uuid)
    with refused("execution_not_found"):
        check(engine, unknown)
    with refused("execution_not_found"):
        engine.release_admission(QUOTA, unknown)
    assert running_now(engine) == 0


def test_releasing_the_slot_of_a_running_execution_lets_another_run(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    first, second = queued(engine, 2)
    held = claim_one(engine)

    assert engine.release_admission(QUOTA, first) is True
    assert claimed_ids(engine) == [second]
    engine.complete(held.handle, None)
    assert running_now(engine) == 1
    assert engine.read_execution_state(second) is PublicState.ACTIVE
    assert ExecutionPolicy(quota_policy_id=QUOTA) == queued_policy(engine, first)


def queued_policy(engine: Engine, execution: ExecutionId) -> ExecutionPolicy:
    info = engine.read_execution_info(execution)
    assert info is not None
    return info.policy
