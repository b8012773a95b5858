"""What operators and producers do to an execution without holding its lease."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_PRIORITY
from flowfabric_worker.engine.types.admin import (
    AlreadySatisfied,
    CancelExecutionArgs,
    CancelExecutionResult,
    CancelSource,
    ChangePriorityArgs,
    ChangePriorityResult,
    ReplayExecutionArgs,
    ReplayExecutionResult,
    Revoked,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LEASE,
    claim_one,
    created,
    depths,
    info_of,
    refused,
    request,
    running,
    same_partition_ids,
    upkeep_all,
)
from tests.support.phases import ACTIVE, ENDED, HOUR, PHASES_LANE, RUNNABLE, Phase, Phases


def cancel(engine: Engine, execution_id: ExecutionId, **changes: Any) -> CancelExecutionResult:
    return engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id, **changes))


def replay(engine: Engine, execution_id: ExecutionId) -> ReplayExecutionResult:
    return engine.replay_execution(ReplayExecutionArgs(execution_id=execution_id))


def revoke(engine: Engine, execution_id: ExecutionId, **changes: Any) -> Any:
    return engine.revoke_lease(RevokeLeaseArgs(execution_id=execution_id, **changes))


def change_priority(engine: Engine, execution_id: ExecutionId, priority: int) -> ChangePriorityResult:
    return engine.change_priority(ChangePriorityArgs(execution_id=execution_id, priority=priority))


# Cancelling.


@pytest.mark.parametrize("phase", RUNNABLE + ACTIVE)
def test_an_execution_is_cancelled_in_any_phase(engine: Engine, clock: Clock, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    result = cancel(engine, execution_id, reason="not needed")
    assert result == CancelExecutionResult(execution_id=execution_id, state=PublicState.CANCELLED)
    info = info_of(engine, execution_id)
    assert (info.public_state, info.current_lease, info.reserved_for) == (PublicState.CANCELLED, None, None)
    assert (info.cancel_reason, info.cancelled_by, info.ended_at_ms) == ("not needed", "operator_override", clock.ms)
    outcome = engine.read_outcome(execution_id)
    assert outcome is not None
    assert (outcome.outcome, outcome.error) == (TerminalOutcome.CANCELLED, "not needed")
    # Neither a claim nor time brings the execution back.
    clock.move(2 * HOUR)
    upkeep_all(engine)
    assert engine.claim_many(request(PHASES_LANE)) == []
    assert depths(engine, PHASES_LANE) == {PublicState.CANCELLED: 1}


@pytest.mark.parametrize("phase", [Phases.cancelled, Phases.cancelled_by_holder])
def test_a_repeated_cancel_gets_the_same_answer_and_changes_nothing(
    engine: Engine, clock: Clock, dump: Dump, phase: Phase
) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    assert cancel(engine, execution_id, reason="again") == CancelExecutionResult(execution_id=execution_id)
    assert dump() == before


@pytest.mark.parametrize(
    ("phase", "outcome"), [(Phases.completed, "success"), (Phases.failed, "failed"), (Phases.expired, "expired")]
)
def test_an_execution_with_another_outcome_is_not_cancelled(
    engine: Engine, clock: Clock, dump: Dump, phase: Phase, outcome: str
) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    with refused("execution_not_active") as caught:
        cancel(engine, execution_id)
    assert (caught.value.details["outcome"], caught.value.details["phase"]) == (outcome, "terminal")
    assert dump() == before


@pytest.mark.parametrize("source", CancelSource)
def test_a_cancellation_says_who_it_came_from(engine: Engine, source: CancelSource) -> None:
    execution_id = created(engine)
    cancel(engine, execution_id, source=source)
    assert info_of(engine, execution_id).cancelled_by == source


@pytest.mark.parametrize("changes", [{"source": "unknown"}, {"reason": b"bytes"}])
def test_a_cancellation_that_is_not_valid_is_refused(engine: Engine, dump: Dump, changes: dict[str, Any]) -> None:
    execution_id = created(engine)
    before = dump()
    with refused("invalid_input"):
        cancel(engine, execution_id, **changes)
    assert dump() == before


def test_every_operation_on_an_unknown_execution_is_not_found(engine: Engine, dump: Dump) -> None:
    created(engine)
    unknown = ExecutionId.mint(engine.partitions)
    before = dump()
    for operation in (
        cancel,
        replay,
        revoke,
        lambda engine, execution_id: change_priority(engine, execution_id, 1),
        lambda engine, execution_id: engine.set_tags(execution_id, {"a": "b"}),
        Engine.purge,
    ):
        with refused("execution_not_found"):
            operation(engine, unknown)
    assert dump() == before


# Priorities.


@pytest.mark.parametrize("phase", RUNNABLE)
def test_the_priority_of_what_waits_is_changed_whatever_it_waits_for(
    engine: Engine, clock: Clock, phase: Phase
) -> None:
    execution_id = phase(Phases(engine, clock))
    state = info_of(engine, execution_id).state
    result = change_priority(engine, execution_id, 500)
    assert result == ChangePriorityResult(execution_id=execution_id, old_priority=0, priority=500)
    info = info_of(engine, execution_id)
    assert (info.priority, info.state) == (500, state)


def test_a_higher_priority_is_claimed_first(engine: Engine) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=first)
    created(engine, execution_id=second)
    change_priority(engine, second, 10)
    assert [claim_one(engine).execution_id for _ in range(2)] == [second, first]


def test_a_priority_changed_while_it_is_delayed_counts_when_it_is_due(engine: Engine, clock: Clock) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=first)
    created(engine, execution_id=second, delay=HOUR)
    change_priority(engine, second, 10)
    clock.move(HOUR)
    upkeep_all(engine)
    assert [claim_one(engine).execution_id for _ in range(2)] == [second, first]


@pytest.mark.parametrize("phase", ACTIVE + ENDED)
def test_the_priority_of_what_runs_or_ended_stays(engine: Engine, clock: Clock, dump: Dump, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    with refused("execution_not_eligible") as caught:
        change_priority(engine, execution_id, 5)
    assert caught.value.details["state"] == engine.read_execution_state(execution_id)
    assert dump() == before


@pytest.mark.parametrize(("given", "kept"), [(-1, 0), (MAX_PRIORITY, MAX_PRIORITY), (MAX_PRIORITY + 1, MAX_PRIORITY)])
def test_a_priority_out_of_range_is_clamped(engine: Engine, given: int, kept: int) -> None:
    assert change_priority(engine, created(engine), given).priority == kept


@pytest.mark.parametrize("priority", [1.5, "5", True, None])
def test_a_priority_that_is_no_number_is_refused(engine: Engine, dump: Dump, priority: Any) -> None:
    execution_id = created(engine)
    before = dump()
    with refused("invalid_input"):
        change_priority(engine, execution_id, priority)
    assert dump() == before


# Replays.


@pytest.mark.parametrize("phase", ENDED)
def test_every_ended_execution_can_be_replayed(engine: Engine, clock: Clock, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    attempts = info_of(engine, execution_id).total_attempt_count
    assert replay(engine, execution_id) == ReplayExecutionResult(execution_id=execution_id, state=PublicState.WAITING)
    assert depths(engine, PHASES_LANE) == {PublicState.WAITING: 1}
    claimed = claim_one(engine, PHASES_LANE, worker="w2")
    assert (claimed.attempt_type, claimed.handle.attempt_index, claimed.handle.kind) == (
        "replay",
        attempts,
        HandleKind.FRESH,
    )
    engine.complete(claimed.handle, b"second")
    assert engine.get_execution_result(execution_id) == b"second"


def test_a_replay_begins_with_nothing_of_the_run_before(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(retry=RetryPolicy(max_retries=1, initial=timedelta(), jitter=False))
    claimed = running(engine, policy=policy)
    execution_id, lane = claimed.execution_id, claimed.handle.lane
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(LEASE)
    claim_one(engine, lane)
    clock.move(LEASE)
    handle = claim_one(engine, lane).handle
    engine.progress(handle, 70, "most of it")
    engine.fail(handle, BOOM, FailureClass.TRANSIENT)
    ended = info_of(engine, execution_id)
    assert (ended.public_state, ended.retry_count, ended.reclaim_count) == (PublicState.FAILED, 1, 1)

    replay(engine, execution_id)
    info = info_of(engine, execution_id)
    assert (info.retry_count, info.reclaim_count, info.replay_count) == (0, 0, 1)
    assert (info.progress_percent, info.progress_message) == (None, None)
    assert (info.error, info.error_class, info.error_detail) == (None, None, b"")
    assert (info.ended_at_ms, info.remove_at_ms, info.cancel_reason) == (None, None, None)
    assert engine.get_execution_result(execution_id) is None
    assert engine.read_outcome(execution_id) is None
    # A replay starts the count of retries at zero.
    again = claim_one(engine, lane)
    assert (again.retry_count, again.reclaim_count) == (0, 0)
    engine.fail(again.handle, BOOM, FailureClass.TRANSIENT)
    assert engine.read_execution_state(execution_id) is PublicState.WAITING


def test_a_result_is_gone_while_a_replay_runs(engine: Engine, clock: Clock) -> None:
    execution_id = Phases(engine, clock).completed()
    replay(engine, execution_id)
    engine.complete(claim_one(engine, PHASES_LANE).handle)
    assert engine.get_execution_result(execution_id) is None


def test_a_replay_may_lose_its_lease_as_often_as_the_first_run(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=ExecutionPolicy(max_reclaim_count=1))
    execution_id, lane = claimed.execution_id, claimed.handle.lane
    clock.move(LEASE)
    claim_one(engine, lane)
    clock.move(LEASE)
    assert engine.claim_many(request(lane)) == []
    assert info_of(engine, execution_id).error == "reclaims_exhausted"
    replay(engine, execution_id)
    claim_one(engine, lane)
    clock.move(LEASE)
    assert claim_one(engine, lane).handle.kind is HandleKind.RECLAIMED


def test_an_execution_is_replayed_as_often_as_its_policy_allows(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine, policy=ExecutionPolicy(max_replay_count=2))
    for _ in range(2):
        cancel(engine, execution_id)
        replay(engine, execution_id)
    cancel(engine, execution_id)
    before = dump()
    with refused("max_replays_exhausted"):
        replay(engine, execution_id)
    assert dump() == before
    assert info_of(engine, execution_id).replay_count == 2


def test_ten_replays_are_allowed_where_a_policy_says_nothing(engine: Engine) -> None:
    execution_id = created(engine)
    for _ in range(10):
        cancel(engine, execution_id)
        replay(engine, execution_id)
    cancel(engine, execution_id)
    with refused("max_replays_exhausted"):
        replay(engine, execution_id)


@pytest.mark.parametrize("phase", RUNNABLE + ACTIVE)
def test_an_unfinished_execution_is_not_replayed(engine: Engine, clock: Clock, dump: Dump, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    with refused("execution_not_terminal") as caught:
        replay(engine, execution_id)
    assert caught.value.details["state"] == engine.read_execution_state(execution_id)
    assert dump() == before


def test_a_replay_takes_a_new_place(engine: Engine, clock: Clock) -> None:
    first, second, third = same_partition_ids(engine, 3)
    created(engine, execution_id=first)
    cancel(engine, first)
    clock.move(timedelta(seconds=1))
    created(engine, execution_id=second)
    clock.move(timedelta(seconds=1))
    replay(engine, first)
    clock.move(timedelta(seconds=1))
    created(engine, execution_id=third)
    assert [claim_one(engine).execution_id for _ in range(3)] == [second, first, third]


def test_a_replay_drops_a_deadline_that_is_over_and_keeps_one_that_is_not(engine: Engine, clock: Clock) -> None:
    over = Phases(engine, clock).expired()
    replay(engine, over)
    assert info_of(engine, over).deadline_at_ms is None
    deadline = clock.now + HOUR
    ahead = created(engine, deadline=deadline)
    cancel(engine, ahead)
    replay(engine, ahead)
    assert info_of(engine, ahead).deadline_at_ms == clock.ms + 3_600_000
    clock.move(HOUR)
    upkeep_all(engine)
    assert engine.read_execution_state(over) is PublicState.WAITING
    assert engine.read_execution_state(ahead) is PublicState.EXPIRED


def test_a_replayed_execution_is_not_removed_when_its_first_retention_ends(engine: Engine, clock: Clock) -> None:
    execution_id = Phases(engine, clock).completed()
    replay(engine, execution_id)
    clock.move(timedelta(hours=25))
    upkeep_all(engine)
    assert engine.read_execution_state(execution_id) is PublicState.WAITING


# Revoking.


def test_a_revoked_lease_is_gone_and_its_work_is_ready_at_once(engine: Engine) -> None:
    claimed = running(engine)
    handle = claimed.handle
    assert revoke(engine, claimed.execution_id, reason="stuck") == Revoked(lease_id=handle.lease_id, lease_epoch=1)
    again = claim_one(engine, handle.lane, worker="w2")
    assert (again.handle.kind, again.reclaim_count, again.handle.lease_epoch) == (HandleKind.RECLAIMED, 1, 2)
    assert (again.handle.attempt_index, again.retry_count) == (1, 0)


def test_revoking_keeps_the_place(engine: Engine, clock: Clock) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=first)
    created(engine, execution_id=second)
    assert claim_one(engine).execution_id == first
    clock.move(timedelta(seconds=1))
    revoke(engine, first)
    assert claim_one(engine).execution_id == first


@pytest.mark.parametrize(
    ("phase", "reason"),
    [
        (Phases.revoked, "already_revoked"),
        (Phases.lapsed, "already_expired"),
        (Phases.lapsed_unnoticed, "already_expired"),
    ],
)
def test_revoking_what_is_lost_already_says_so(
    engine: Engine, clock: Clock, dump: Dump, phase: Phase, reason: str
) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    assert revoke(engine, execution_id) == AlreadySatisfied(reason=reason)
    # The expected lease is no longer compared.
    assert revoke(engine, execution_id, expected_lease_id=str(uuid4())) == AlreadySatisfied(reason=reason)
    assert dump() == before


def test_revoking_takes_the_expected_lease_only(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    before = dump()
    with refused("stale_lease"):
        revoke(engine, claimed.execution_id, expected_lease_id=str(uuid4()))
    assert dump() == before
    assert isinstance(revoke(engine, claimed.execution_id, expected_lease_id=claimed.handle.lease_id), Revoked)


def test_revoking_the_lease_of_one_worker_leaves_that_of_another(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, worker="w1")
    before = dump()
    answer = revoke(engine, claimed.execution_id, worker_instance_id="w2")
    assert answer == AlreadySatisfied(reason="different_worker_instance_id")
    assert dump() == before
    assert isinstance(revoke(engine, claimed.execution_id, worker_instance_id="w1"), Revoked)


@pytest.mark.parametrize("phase", RUNNABLE + ENDED)
def test_an_execution_without_a_lease_cannot_be_revoked(engine: Engine, clock: Clock, dump: Dump, phase: Phase) -> None:
    execution_id = phase(Phases(engine, clock))
    before = dump()
    with refused("execution_not_active"):
        revoke(engine, execution_id)
    assert dump() == before


def test_a_revocation_leaves_nothing_behind_when_cancelled_and_replayed(engine: Engine) -> None:
    claimed = running(engine)
    revoke(engine, claimed.execution_id)
    cancel(engine, claimed.execution_id)
    replay(engine, claimed.execution_id)
    again = claim_one(engine, claimed.handle.lane)
    engine.renew(again.handle)
    engine.complete(again.handle)
