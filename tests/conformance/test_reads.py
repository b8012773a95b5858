"""reads: one execution as it is, why it does not run, and what the store says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import UnavailableError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, CancelSource, ReplayExecutionArgs
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.conditions import AllOf, SignalMatcher, Single, TimeoutOnly
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.reads import (
    AttemptSummary,
    ExecutionSnapshot,
    LeaseSummary,
    PastAttempt,
    SuspensionInfo,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import SuspendArgs, SuspensionReason, TimeoutBehavior
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LANE,
    TASK,
    claim_one,
    created,
    damage,
    info_of,
    raw_client,
    raw_key,
    refused,
    running,
    upkeep_all,
)
from tests.support.suspensions import MINUTE, SECOND, signal, suspend, suspended

RETRY_IN_A_SECOND = ExecutionPolicy(retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False))


def snapshot(engine: Engine, execution_id: ExecutionId) -> ExecutionSnapshot:
    found = engine.describe_execution(execution_id)
    assert found is not None
    return found


# Contents


def test_a_new_execution_reads_as_it_was_made(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(
        retry=RetryPolicy(max_retries=7, retryable_categories=frozenset({FailureClass.TIMEOUT})),
        attempt_timeout=SECOND,
        execution_deadline=60 * SECOND,
        max_reclaim_count=3,
        max_replay_count=2,
        retention=5 * SECOND,
        dedup_window=6 * SECOND,
        requires=frozenset({"gpu", "eu"}),
    )

    execution = created(
        engine, priority=50, codec="json", idempotency_key="order-7", policy=policy, tags={"a.b": "ü"}, creator="ci"
    )

    info = info_of(engine, execution)
    assert (info.execution_id, info.namespace, info.lane, info.task) == (execution, "default", LANE, TASK)
    assert (info.priority, info.codec, info.creator, info.idempotency_key) == (50, "json", "ci", "order-7")
    assert (info.policy, info.tags, info.public_state) == (policy, {"a.b": "ü"}, PublicState.WAITING)
    assert (info.created_at_ms, info.last_mutation_at_ms, info.deadline_at_ms) == (
        clock.ms,
        clock.ms,
        clock.ms + 60_000,
    )
    assert (info.started_at_ms, info.ended_at_ms, info.delay_until_ms, info.timeout_at_ms) == (None, None, None, None)
    assert (info.current_attempt, info.current_lease, info.past_attempts) == (None, None, ())
    assert (info.total_attempt_count, info.retry_count, info.reclaim_count, info.replay_count) == (0, 0, 0, 0)
    assert (info.step_count, info.progress_percent, info.progress_message, info.reserved_for) == (0, None, None, None)
    assert (info.error, info.error_class, info.error_detail, info.cancel_reason, info.cancelled_by) == (
        None, None, b"", None, None,
    )  # fmt: skip


def test_a_running_execution_reads_with_its_attempt_and_lease(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane="l", tags={"k": "v"})
    made = clock.ms
    clock.move(SECOND)
    engine.progress(claimed.handle, 40, "almost")

    assert snapshot(engine, claimed.execution_id) == ExecutionSnapshot(
        execution_id=claimed.execution_id,
        flow_id=None,
        lane="l",
        namespace="default",
        task=TASK,
        public_state=PublicState.ACTIVE,
        blocking_reason="none",
        blocking_detail=None,
        current_attempt=AttemptSummary(attempt_id=claimed.handle.attempt_id, attempt_index=0),
        current_lease=LeaseSummary(lease_epoch=1, worker_id="w1", worker_instance_id="w1", expires_at_ms=made + 30_000),
        current_waitpoint=None,
        created_at_ms=made,
        last_mutation_at_ms=clock.ms,
        total_attempt_count=1,
        tags={"k": "v"},
        headers={},
    )
    info = info_of(engine, claimed.execution_id)
    assert (info.progress_percent, info.progress_message, info.started_at_ms) == (40, "almost", made)


def test_a_suspended_execution_reads_with_what_it_waits_for(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    condition = AllOf([Single("deploy", SignalMatcher("approved")), Single("tests")])
    first, second = suspend(engine, claimed, "deploy", "tests", condition=condition, timeout=MINUTE)
    signal(engine, claimed.execution_id, first, "aproved")

    info = info_of(engine, claimed.execution_id)

    assert snapshot(engine, claimed.execution_id).current_waitpoint == first.waitpoint_id
    assert info.suspension == SuspensionInfo(
        awaits="signals at 'deploy' ('approved'), 'tests'",
        waitpoints={"deploy": ("approved",), "tests": ()},
        reason=SuspensionReason.WAITING_FOR_SIGNAL,
        suspended_at_ms=clock.ms,
        timeout_at_ms=clock.ms + 60_000,
        timeout_behavior=TimeoutBehavior.FAIL,
        unmatched_signals=1,
    )
    signal(engine, claimed.execution_id, first, "approved")
    signal(engine, claimed.execution_id, second)
    assert info_of(engine, claimed.execution_id).suspension is None
    assert snapshot(engine, claimed.execution_id).current_waitpoint is None


def test_a_sleeping_execution_waits_at_no_waitpoint(engine: Engine) -> None:
    claimed = running(engine)
    engine.suspend(claimed.handle, SuspendArgs(condition=TimeoutOnly(), timeout=MINUTE))

    suspension = info_of(engine, claimed.execution_id).suspension

    assert snapshot(engine, claimed.execution_id).current_waitpoint is None
    assert suspension is not None
    assert (suspension.awaits, suspension.waitpoints) == ("its time", {})


def test_a_suspended_record_without_its_suspension_is_damaged(engine: Engine) -> None:
    execution, _ = suspended(engine)
    damage(engine, execution, "suspension", None)

    with refused("corruption") as damaged:
        engine.read_execution_info(execution)

    assert damaged.value.details["field"] == "suspension"


def test_a_retried_execution_reads_with_its_past_attempt_and_backoff(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=RETRY_IN_A_SECOND)
    began = clock.ms
    clock.move(SECOND)
    engine.fail(claimed.handle, FailureReason(message="boom", detail=b"\xff"), FailureClass.TRANSIENT)
    waiting = info_of(engine, claimed.execution_id)
    ended = clock.ms
    clock.move(SECOND)
    claim_one(engine, claimed.handle.lane)

    again = info_of(engine, claimed.execution_id)

    assert (waiting.public_state, waiting.delay_until_ms, waiting.retry_count) == (PublicState.DELAYED, ended + 1000, 1)
    assert (waiting.error, waiting.error_class, waiting.error_detail) == ("boom", "transient", b"\xff")
    assert (again.delay_until_ms, again.total_attempt_count) == (None, 2)
    assert again.past_attempts == (
        PastAttempt(
            attempt_index=0,
            attempt_type="initial",
            ending="ended_failure",
            started_at_ms=began,
            ended_at_ms=ended,
            worker_instance_id="w1",
            error_class="transient",
            error="boom",
        ),
    )


def test_the_message_of_a_past_attempt_is_cut_between_characters(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, policy=RETRY_IN_A_SECOND)
    engine.fail(claimed.handle, FailureReason(message="x" + "é" * 200), FailureClass.TRANSIENT)
    clock.move(SECOND)
    claim_one(engine, claimed.handle.lane)

    (past,) = info_of(engine, claimed.execution_id).past_attempts

    assert past.error == "x" + "é" * 127


def test_a_cancelled_execution_says_by_whom_and_why(engine: Engine, clock: Clock) -> None:
    execution = created(engine)
    clock.move(SECOND)
    engine.cancel_execution(
        CancelExecutionArgs(execution_id=execution, reason="no need", source=CancelSource.SYSTEM_TIMEOUT)
    )

    info = info_of(engine, execution)

    assert (info.cancel_reason, info.cancelled_by) == ("no need", "system_timeout")
    assert (info.ended_at_ms, info.remove_at_ms) == (clock.ms, clock.ms + 24 * 3600 * 1000)


@pytest.mark.parametrize("read", ["describe_execution", "read_execution_info", "read_execution_state"])
def test_a_missing_execution_reads_as_none(engine: Engine, read: str) -> None:
    stranger = ExecutionId.mint(engine.partitions)

    assert getattr(engine, read)(stranger) is None
    assert engine.get_execution_result(stranger) is None
    assert engine.explain_execution(stranger) is None


def test_a_purged_execution_reads_as_none(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle, b"1")
    engine.purge(claimed.execution_id)

    assert engine.describe_execution(claimed.execution_id) is None
    assert engine.get_execution_result(claimed.execution_id) is None


def test_all_reads_agree_on_the_state_through_a_whole_life(engine: Engine, clock: Clock) -> None:
    execution = created(engine, delay=SECOND, policy=RETRY_IN_A_SECOND, priority=50)
    seen: list[PublicState] = []

    def look() -> None:
        info = info_of(engine, execution)
        assert info.state.public_state == info.public_state == engine.read_execution_state(execution)
        assert snapshot(engine, execution).public_state == info.public_state
        assert info.priority == 50
        seen.append(info.public_state)

    look()
    clock.move(SECOND)
    upkeep_all(engine)
    look()
    first = claim_one(engine)
    look()
    engine.fail(first.handle, BOOM, FailureClass.TRANSIENT)
    look()
    clock.move(SECOND)
    engine.complete(claim_one(engine).handle)
    look()
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution))
    look()

    assert seen == ["delayed", "waiting", "active", "delayed", "completed", "waiting"]


@pytest.mark.parametrize("result", [None, b"", b"=", b"\x00\xff", b"x" * 1000])
def test_a_result_comes_back_as_it_was_given(engine: Engine, result: bytes | None) -> None:
    claimed = running(engine)
    assert engine.get_execution_result(claimed.execution_id) is None

    engine.complete(claimed.handle, result)

    assert engine.get_execution_result(claimed.execution_id) == result


def test_an_execution_that_did_not_complete_has_no_result(engine: Engine) -> None:
    failed, cancelled = running(engine), running(engine)
    engine.fail(failed.handle, BOOM, FailureClass.PERMANENT)
    engine.cancel(cancelled.handle)

    assert engine.get_execution_result(failed.execution_id) is None
    assert engine.get_execution_result(cancelled.execution_id) is None


@pytest.mark.parametrize("wrong", ["{fp:0}:abc", None, 5, ExecutionId(0, "abc"), ExecutionId(-1, "x" * 36)])
@pytest.mark.parametrize(
    "read",
    ["describe_execution", "read_execution_info", "read_execution_state", "get_execution_result", "explain_execution"],
)
def test_an_invalid_execution_id_is_refused(engine: Engine, read: str, wrong: Any) -> None:
    with refused("invalid_execution_id"):
        getattr(engine, read)(wrong)


def test_an_id_of_a_partition_that_the_store_lacks_is_refused(engine: Engine) -> None:
    with refused("partition_mismatch"):
        engine.describe_execution(ExecutionId(999, ExecutionId.mint().uuid))


# Information about the store


def test_a_store_that_answers_answers_a_ping(engine: Engine) -> None:
    engine.ping()


def test_the_label_names_the_kind_of_store_that_handles_belong_to(engine: Engine) -> None:
    assert engine.backend_label() == running(engine).handle.backend == engine.capabilities().label


def test_the_server_time_is_the_clock_that_decides(engine: Engine, clock: Clock) -> None:
    assert engine.server_time() == clock.ms
    clock.move(SECOND)
    assert engine.server_time() == clock.ms


def test_the_server_time_of_a_plain_store_runs(store_url: str) -> None:
    engine = open_engine(store_url)

    assert 0 <= engine.server_time() - engine.server_time() + 60_000 <= 60_000

    engine.close()


def test_an_engine_without_bodies_offers_nothing_but_to_say_so() -> None:
    class Bare(EngineBackend):
        pass

    bare = Bare()

    assert bare.backend_label() == "unknown"
    assert bare.capabilities().operations == {"capabilities", "backend_label"}
    # create_in_batches is made of create_executions.
    for name in operations() - {"capabilities", "backend_label", "create_in_batches"}:
        with pytest.raises(UnavailableError) as caught:
            getattr(bare, name)(*[None] * positional(name))
        assert (caught.value.op, caught.value.code) == (name, "unavailable")
        assert name in str(caught.value)


def test_capabilities_are_exactly_the_operations_with_a_body(engine: Engine) -> None:
    offered = engine.capabilities()

    assert {"create_execution", "claim_many", "complete", "list_executions", "run_upkeep"} <= offered.operations
    for name in operations() - offered.operations:
        assert not offered.supports(name)
        with pytest.raises(UnavailableError) as caught:
            getattr(engine, name)(*[None] * positional(name))
        assert caught.value.op == name


def operations() -> set[str]:
    """Return every operation of the abstract engine."""
    return {name for name in dir(EngineBackend) if not name.startswith("_")}


def positional(name: str) -> int:
    """Return how many arguments an operation must be given."""
    code = getattr(EngineBackend, name).__code__
    defaults = getattr(EngineBackend, name).__defaults__ or ()
    return int(code.co_argcount) - 1 - len(defaults)


def test_a_filter_of_a_wrong_kind_is_refused_when_it_is_made() -> None:
    from flowfabric_worker.engine.types.reads import ExecutionFilter

    wrong: list[dict[str, Any]] = [{"lane": ""}, {"lane": 5}, {"state": "sleeping"}, {"task": "\0"}, {"tags": "a=b"}]
    for changes in wrong:
        with pytest.raises(ValidationError):
            ExecutionFilter(**changes)


@pytest.mark.parametrize(("ahead_ms", "stands"), [(30_000, True), (3_600_000, False)], ids=["a little", "far"])
def test_a_clock_that_is_set_back_a_little_stands_still(engine: Engine, ahead_ms: int, stands: bool) -> None:
    # The store keeps the latest time that it has seen, so a server with an earlier clock was set back.
    came_to = engine.server_time() + ahead_ms
    raw_client(engine).hset(raw_key(engine, 0, "meta"), "feed_last", came_to)

    now = engine.server_time()

    assert (now == came_to) == stands
    assert now <= came_to


def test_upkeep_notes_how_far_time_has_come(engine: Engine) -> None:
    before = engine.server_time()

    engine.run_upkeep()

    noted = raw_client(engine).hget(raw_key(engine, 0, "meta"), "feed_last")
    assert before <= int(noted or 0) <= engine.server_time()


def test_an_id_is_taken_as_a_text_in_either_form(engine: Engine) -> None:
    execution_id = created(engine)
    forms: tuple[Any, ...] = (str(execution_id), execution_id.plain)

    for form in forms:
        assert info_of(engine, form).execution_id == execution_id
    engine.cancel_execution(CancelExecutionArgs(execution_id=forms[1]))

    assert info_of(engine, execution_id).public_state is PublicState.CANCELLED
