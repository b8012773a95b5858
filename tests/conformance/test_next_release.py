"""Workers of this release and of a simulated next one work side by side on one store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    Revoked,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.conditions import Count, CountKind
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.schedules import ScheduleInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import (
    PendingWaitpointInfo,
    SignalAccepted,
    SuspendArgs,
    Suspended,
    SuspendedExecutionEntry,
    WaitpointBinding,
)
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, WorkerInfo
from flowfabric_worker.engine.wire import pack
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LANE,
    TASK,
    claim_one,
    created,
    info_of,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    upkeep_all,
)
from tests.support.next_release import NOVELTY, NextEngine, next_engine
from tests.support.operations import beat
from tests.support.streams import append_all, frame, live, patch, payloads, read_all
from tests.support.suspensions import MINUTE, signal, suspended

SECOND = timedelta(seconds=1)
POLICY = ExecutionPolicy(retry=RetryPolicy(max_retries=2, jitter=False, initial=SECOND), retention=timedelta(hours=1))
GPU = ExecutionPolicy(requires=frozenset({"gpu"}))


@pytest.fixture
def newer(engine: Engine) -> Iterator[NextEngine]:
    with next_engine(engine) as tried:
        yield tried


def stored(engine: Engine, execution: ExecutionId) -> dict[bytes, bytes]:
    key = raw_key(engine, execution.partition_number, f"x:{execution.uuid}")
    fields: dict[bytes, bytes] = raw_client(engine, execution.partition_number).hgetall(key)  # type: ignore[assignment]
    return fields


def assert_kept(engine: Engine, execution: ExecutionId) -> None:
    """Assert that what the next release wrote is still there."""
    fields = stored(engine, execution)
    assert fields[b"novelty"] == b"kept"
    assert fields[b"policy"].endswith(b"|9|")
    assert fields[b"class"].endswith(NOVELTY)


def test_work_of_the_next_release_runs_here_and_keeps_its_extra_fields(
    engine: Engine, newer: NextEngine, clock: Clock
) -> None:
    execution = created(newer, policy=POLICY, headers={"origin": "next"})
    engine.change_priority(ChangePriorityArgs(execution_id=execution, priority=9))
    claimed = claim_one(engine)
    assert (claimed.execution_id, claimed.policy, claimed.headers) == (execution, POLICY, {"origin": "next"})

    engine.renew(claimed.handle)
    engine.record_step(claimed.handle, "step", b"1")
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
    clock.move(SECOND)
    engine.complete(claim_one(engine).handle, b"5")
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution))

    assert_kept(engine, execution)
    assert info_of(engine, execution).policy == POLICY
    assert [row.execution_id for row in engine.list_executions().executions] == [execution]


def test_both_releases_take_and_end_each_others_work(engine: Engine, newer: NextEngine) -> None:
    made = {created(each) for each in (engine, newer) for _ in range(10)}
    done = set()
    for _ in range(10):
        for each, worker in ((engine, "old"), (newer, "new")):
            claimed = claim_one(each, worker=worker)
            each.complete(claimed.handle, b"5")
            done.add(claimed.execution_id)

    assert done == made
    assert all(engine.get_execution_result(each) == b"5" for each in made)
    ends = list(engine.subscribe_completions(timeout=timedelta()))
    assert {end.execution_id for end in ends} == made


def test_a_lease_of_the_next_release_is_shown_revoked_and_reclaimed(
    engine: Engine, newer: NextEngine, clock: Clock
) -> None:
    execution = created(newer)
    claim_one(newer, worker="new")
    lease = info_of(engine, execution).current_lease
    assert lease is not None
    assert lease.worker_instance_id == "new"

    revoked = engine.revoke_lease(RevokeLeaseArgs(execution_id=execution, worker_instance_id="new"))
    assert isinstance(revoked, Revoked)
    claim_one(newer, worker="new")
    clock.move(timedelta(minutes=1))
    again = claim_one(engine)

    assert (again.execution_id, again.attempt_type) == (execution, "reclaim")
    assert [past.worker_instance_id for past in info_of(engine, execution).past_attempts] == ["new", "new"]
    assert_kept(engine, execution)


def test_work_with_a_limit_of_the_next_release_is_not_claimed(engine: Engine, newer: NextEngine) -> None:
    newer.has_limit = True
    execution = created(newer)

    engine.register_worker(
        RegisterWorkerArgs(worker_id="w", worker_instance_id="w", lanes=(LANE,), tasks=frozenset({TASK}))
    )

    assert engine.claim_many(request(limit=5)) == []
    explanation = engine.explain_execution(execution)
    assert explanation is not None
    assert explanation.code == "no_capable_worker"
    assert "@limit" in explanation.text
    assert info_of(engine, execution).public_state is PublicState.WAITING
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
    assert info_of(engine, execution).public_state is PublicState.CANCELLED


def test_no_worker_and_no_work_of_this_release_has_a_reserved_capability(engine: Engine) -> None:
    with refused("invalid_capabilities"):
        engine.claim_many(request(capabilities=frozenset({"@limit"})))
    with refused("invalid_capabilities"):
        engine.register_worker(
            RegisterWorkerArgs(worker_id="w", worker_instance_id="w", lanes=(LANE,), capabilities=frozenset({"@limit"}))
        )
    with refused("invalid_capabilities"):
        created(engine, policy=ExecutionPolicy(requires=frozenset({"@limit"})))


def test_kinds_of_due_entries_of_the_next_release_are_put_off_not_lost(
    engine: Engine, newer: NextEngine, clock: Clock
) -> None:
    execution = created(newer, delay=SECOND)
    clock.move(SECOND)

    upkeep_all(engine)
    assert claim_one(engine).execution_id == execution

    client = raw_client(engine, execution.partition_number)
    for index in ("due", "retention"):
        moment = client.zscore(raw_key(engine, execution.partition_number, index), "znew kind")
        assert moment is not None
        assert float(moment) > clock.ms  # type: ignore[arg-type]


def test_entries_of_the_next_release_are_read_and_keep_what_they_have_more(
    engine: Engine, newer: NextEngine, clock: Clock
) -> None:
    newer.tick_schedule(beat())
    newer.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id="new", lanes=(LANE,)))
    assert engine.pause_schedule("beat")
    engine.heartbeat_worker("new")
    clock.move(SECOND)

    (schedule,) = engine.list_schedules().schedules
    (worker,) = engine.list_workers().workers
    assert isinstance(schedule, ScheduleInfo)
    assert schedule.paused_since_ms is not None
    assert isinstance(worker, WorkerInfo)
    kept = 0
    for partition in range(engine.partitions):
        for name in ("schedule", "worker"):
            values = raw_client(engine, partition).hvals(raw_key(engine, partition, name))
            kept += sum(value.endswith(NOVELTY) for value in values)  # type: ignore[union-attr]
    assert kept == 2


def test_what_this_release_removes_leaves_nothing_of_the_next_ones(
    engine: Engine, newer: NextEngine, clock: Clock
) -> None:
    execution = created(newer, idempotency_key="k", policy=POLICY)
    engine.complete(claim_one(engine).handle)
    clock.move(timedelta(days=2))
    upkeep_all(engine)

    assert engine.read_execution_info(execution) is None
    assert stored(engine, execution) == {}


def test_a_phase_of_the_next_release_is_neither_read_as_damage_nor_ended(engine: Engine, clock: Clock) -> None:
    execution = created(engine, policy=ExecutionPolicy(execution_deadline=SECOND))
    client, key = raw_client(engine, execution.partition_number), f"x:{execution.uuid}"
    name = raw_key(engine, execution.partition_number, key)
    state = stored(engine, execution)[b"state"]
    client.hset(name, "state", b"z" + state[1:])
    before = stored(engine, execution)
    clock.move(2 * SECOND)
    upkeep_all(engine)

    for read in (engine.describe_execution, engine.read_execution_state, engine.explain_execution):
        with refused("written_by_newer_release"):
            read(execution)
    with refused("written_by_newer_release"):
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
    with refused("written_by_newer_release"):
        engine.replay_execution(ReplayExecutionArgs(execution_id=execution))
    with refused("written_by_newer_release"):
        engine.set_tags(execution, {"color": "red"})
    (row,) = engine.list_executions(None, None, 10).executions
    assert (row.public_state, row.corruption) == (None, None)
    assert list(engine.list_damaged().executions) == []
    assert stored(engine, execution) == before


# Waits and streams


def part_of(engine: Engine, execution: ExecutionId, kind: str, field: str) -> bytes:
    """Return a field of one of the further keys of an execution."""
    key = raw_key(engine, execution.partition_number, f"{kind}:{execution.uuid}")
    value: bytes = raw_client(engine, execution.partition_number).hget(key, field)  # type: ignore[assignment]
    return value


def test_a_wait_of_the_next_release_goes_on_here_with_its_extra_parts(engine: Engine, newer: NextEngine) -> None:
    claimed = running(newer, lane=LANE)
    execution = claimed.execution_id
    pending = newer.create_waitpoint(claimed.handle, "go", MINUTE)

    assert isinstance(signal(engine, execution, pending), SignalAccepted)
    assert part_of(engine, execution, "w", f"w{pending.waitpoint_id}").endswith(NOVELTY)

    condition = Count(n=2, kind=CountKind.SIGNALS, waitpoint_keys=["go"])
    binding = WaitpointBinding(waitpoint_key="go", pending=pending.waitpoint_id)
    outcome = newer.suspend(claimed.handle, SuspendArgs(condition=condition, waitpoints=[binding]))
    assert isinstance(outcome, Suspended)
    (row,) = engine.list_suspended(execution.partition_number).executions
    assert isinstance(row, SuspendedExecutionEntry)
    (waitpoint,) = engine.list_pending_waitpoints(execution).waitpoints
    assert isinstance(waitpoint, PendingWaitpointInfo)
    assert isinstance(signal(newer, execution, pending), SignalAccepted)
    again = claim_one(engine)
    assert len(engine.observe_signals(again.handle).signals) == 2
    engine.complete(again.handle)
    assert engine.read_execution_state(execution) is PublicState.COMPLETED


def test_a_stream_of_the_next_release_goes_on_here_with_its_extra_parts(engine: Engine, newer: NextEngine) -> None:
    claimed = running(newer, lane=LANE)
    append_all(newer, claimed.handle, [frame("a"), live("b"), patch('{"x":1}')])

    append_all(engine, claimed.handle, [frame("c"), patch('{"y":2}')])

    assert part_of(engine, claimed.execution_id, "stream", "a0").endswith(NOVELTY)
    assert payloads(read_all(engine, claimed.execution_id)) == payloads(read_all(newer, claimed.execution_id))
    assert engine.read_summary(claimed.execution_id, 0) == newer.read_summary(claimed.execution_id, 0)


def change_suspension(engine: Engine, execution: ExecutionId, field: str, value: bytes) -> None:
    """Set a field of the first suspension of an execution, as the next release would have written it."""
    key = raw_key(engine, execution.partition_number, f"s1:{execution.uuid}")
    raw_client(engine, execution.partition_number).hset(key, field, value)


def test_a_condition_of_the_next_release_is_left_to_it(engine: Engine) -> None:
    execution, waitpoint = suspended(engine)
    known = part_of(engine, execution, "s1", "condition")
    change_suspension(engine, execution, "condition", pack(("any_of", "2")))

    with refused("written_by_newer_release"):
        signal(engine, execution, waitpoint)

    assert engine.read_execution_state(execution) is PublicState.SUSPENDED
    assert not engine.list_damaged().executions
    change_suspension(engine, execution, "condition", known)
    assert isinstance(signal(engine, execution, waitpoint), SignalAccepted)


def test_a_time_out_of_the_next_release_is_left_to_it(engine: Engine, clock: Clock) -> None:
    execution, waitpoint = suspended(engine, timeout=MINUTE)
    change_suspension(engine, execution, "behavior", b"ask_again")
    clock.move(2 * MINUTE)
    upkeep_all(engine)

    # A signal after the time-out does not resume it either.
    with refused("written_by_newer_release"):
        signal(engine, execution, waitpoint)

    assert engine.read_execution_state(execution) is PublicState.SUSPENDED
    assert not engine.list_damaged().executions
    change_suspension(engine, execution, "behavior", b"fail")
    clock.move(MINUTE)
    upkeep_all(engine)
    assert engine.read_execution_state(execution) is PublicState.FAILED
