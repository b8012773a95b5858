"""Every operation at least once: what must be there before it, and the call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    ReplaySteps,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.schedules import TickScheduleArgs
from flowfabric_worker.engine.types.streams import Frame, FrameAppend, StreamCursor, StreamMode
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from tests.support.budget_operations import BUDGET_OPERATIONS
from tests.support.executions import BOOM, LANE, claim_one, created, creation, request, running
from tests.support.flow_operations import FLOW_OPERATIONS
from tests.support.quota_operations import QUOTA_OPERATIONS
from tests.support.suspension_operations import SUSPENSION_OPERATIONS
from tests.support.suspensions import signal, suspended

Act: TypeAlias = Callable[[], Any]
Arrange: TypeAlias = Callable[[Engine], Act]

START = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FRAME = Frame(payload=b"text")
NUMBERED = Frame(payload=b"text", seq=7)
LIVE = Frame(payload=b"text", mode=StreamMode.BEST_EFFORT_LIVE)
SUMMARY = Frame(payload=b'{"words": 1}', mode=StreamMode.DURABLE_SUMMARY)
RETRY = ExecutionPolicy(retry=RetryPolicy(max_retries=3, backoff="fixed", initial=SECOND, jitter=False))


def _held(act: Callable[[Engine, Claimed], Any], **changes: Any) -> Arrange:
    """Return an operation on an execution that a worker holds."""

    def arrange(engine: Engine) -> Act:
        claimed = running(engine, lane=LANE, **changes)
        return lambda: act(engine, claimed)

    return arrange


def _waiting(act: Callable[[Engine, ExecutionId], Any], **changes: Any) -> Arrange:
    """Return an operation on an execution that waits to run."""

    def arrange(engine: Engine) -> Act:
        execution = created(engine, **changes)
        return lambda: act(engine, execution)

    return arrange


def _ended(act: Callable[[Engine, ExecutionId], Any]) -> Arrange:
    """Return an operation on an execution that has ended."""

    def arrange(engine: Engine) -> Act:
        claimed = running(engine, lane=LANE)
        engine.complete(claimed.handle, b"5")
        return lambda: act(engine, claimed.execution_id)

    return arrange


def _waited(act: Callable[[Engine, ExecutionId], Any]) -> Arrange:
    """Return an operation on an execution that ended after two steps and an answered wait."""

    def arrange(engine: Engine) -> Act:
        execution, waitpoint = suspended(engine)
        signal(engine, execution, waitpoint)
        claimed = claim_one(engine)
        for step in ("a", "b"):
            engine.record_step(claimed.handle, step, b"1")
        engine.complete(claimed.handle)
        return lambda: act(engine, execution)

    return arrange


def _streaming(act: Callable[[Engine, ExecutionId], Any]) -> Arrange:
    """An operation on an execution that has frames of every mode."""

    def arrange(engine: Engine) -> Act:
        claimed = running(engine, lane=LANE)
        _append_all(engine, claimed)
        return lambda: act(engine, claimed.execution_id)

    return arrange


def _append_all(engine: Engine, claimed: Claimed) -> Any:
    return engine.append_frames(
        [FrameAppend(handle=claimed.handle, frame=frame) for frame in (FRAME, FRAME, LIVE, SUMMARY, SUMMARY, NUMBERED)]
    )


def _tail(engine: Engine, target: ExecutionId, block: timedelta) -> Any:
    return engine.tail_stream(target, 0, StreamCursor.from_beginning(), block, 10)


def _registered(act: Callable[[Engine], Any]) -> Arrange:
    """Return an operation on a worker that is registered."""

    def arrange(engine: Engine) -> Act:
        engine.register_worker(_registration())
        return lambda: act(engine)

    return arrange


def _plain(act: Callable[[Engine], Any]) -> Arrange:
    """Return an operation on a store that holds nothing."""
    return lambda engine: lambda: act(engine)


def _scheduled(act: Callable[[Engine], Any], *, ticked: bool = False) -> Arrange:
    """Return an operation on the schedule `beat`, which is known since the start; three seconds have passed."""

    def arrange(engine: Engine) -> Act:
        engine.tick_schedule(beat())
        engine.set_clock(START + 3 * SECOND)
        if ticked:
            engine.tick_schedule(beat(1))
        return lambda: act(engine)

    return arrange


def beat(*seconds: int, after: int = 0, **changes: Any) -> TickScheduleArgs:
    """Tick of a schedule, so many seconds after the start; or only the question how far it is."""
    ticks = tuple(START + second * SECOND for second in seconds)
    return TickScheduleArgs(
        **{
            "name": "beat",
            "spec": "every 1s",
            "creation": creation(),
            "expected": START + after * SECOND if ticks else None,
            "ticks": ticks,
            "next_tick": START + 9 * SECOND,
            **changes,
        }
    )


PUBLISHED = TaskPublication(name="shop.send", lane=LANE)


def _registration() -> RegisterWorkerArgs:
    return RegisterWorkerArgs(worker_id="w", worker_instance_id="w1", lanes=(LANE,))


def _many(engine: Engine, count: int = 5) -> list[Claimed]:
    engine.create_executions([creation() for _ in range(count)])
    return engine.claim_many(request(limit=count))


def _renew_many(engine: Engine) -> Act:
    handles = [each.handle for each in _many(engine)]
    engine.set_clock(START + SECOND)
    return lambda: engine.renew_many(handles)


def _complete_many(engine: Engine) -> Act:
    ends = [Completion(handle=each.handle, payload=b"5") for each in _many(engine)]
    return lambda: engine.complete_many(ends)


def _fail_many(engine: Engine) -> Act:
    ends = [Failure(handle=each.handle, reason=BOOM, classification=FailureClass.TRANSIENT) for each in _many(engine)]
    return lambda: engine.fail_many(ends)


def _release_many(engine: Engine) -> Act:
    handles = [each.handle for each in _many(engine)]
    return lambda: engine.release_many(handles, SECOND)


def _claim_lapsed(engine: Engine) -> Act:
    running(engine, lane=LANE)
    engine.set_clock(START + 60 * SECOND)
    return lambda: engine.claim_many(request(LANE, worker="w2"))


def _claim_all(engine: Engine) -> Act:
    engine.create_executions([creation() for _ in range(5)])
    return lambda: engine.claim_many(request(limit=5))


def _grant(engine: Engine) -> ClaimGrant:
    grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1"))
    assert grant is not None
    return grant


def _redeem(engine: Engine) -> Act:
    created(engine)
    grant = _grant(engine)
    return lambda: engine.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="w1", worker_instance_id="w1"))


def _resume(engine: Engine) -> Act:
    engine.release(running(engine, lane=LANE).handle)
    grant = _grant(engine)
    return lambda: engine.claim_resumed_execution(
        ClaimResumedExecutionArgs(execution_id=grant.execution_id, worker_id="w1", worker_instance_id="w1")
    )


def _stop_waiting(engine: Engine) -> Act:
    engine.claim_many(request(max_wait=timedelta(milliseconds=1)))
    return lambda: engine.stop_waiting("w1")


def _resume_lane(engine: Engine) -> Act:
    created(engine)
    engine.pause_lane(LANE)
    return lambda: engine.resume_lane(LANE)


def _resume_schedule(engine: Engine) -> Act:
    engine.tick_schedule(beat())
    engine.pause_schedule("beat")
    engine.set_clock(START + 3 * SECOND)
    return lambda: engine.resume_schedule("beat")


def _upkeep(engine: Engine) -> Act:
    created(engine, delay=SECOND)
    engine.set_clock(START + SECOND)
    return engine.run_upkeep


def _expired_leases(engine: Engine) -> Act:
    running(engine, lane=LANE)
    engine.set_clock(START + 60 * SECOND)
    return engine.list_expired_leases


def _feed(engine: Engine) -> list[Any]:
    return list(engine.subscribe_completions(timeout=timedelta()))


# The operation, and behind a colon which of its cases.
OPERATIONS: dict[str, Arrange] = {
    "create_execution": _plain(lambda engine: engine.create_execution(creation(priority=5, tags={"a": "b"}))),
    "create_execution: later": _plain(lambda engine: engine.create_execution(creation(delay=SECOND))),
    "create_execution: with a key": _plain(lambda engine: engine.create_execution(creation(idempotency_key="k"))),
    "create_execution: with a known key": _waiting(
        lambda engine, _: engine.create_execution(creation(idempotency_key="k")), idempotency_key="k"
    ),
    "create_in_batches": _plain(lambda engine: list(engine.create_in_batches([creation(), creation(lane="other")]))),
    "create_executions": _plain(
        lambda engine: engine.create_executions([creation(), creation(idempotency_key="k"), creation(lane="other")])
    ),
    "claim": _waiting(
        lambda engine, _: engine.claim(LANE, frozenset(), ClaimPolicy(worker_id="w1", worker_instance_id="w1"))
    ),
    "claim_many": _claim_all,
    "claim_many: of work whose lease was lost": _claim_lapsed,
    "claim_many: of nothing": _plain(lambda engine: engine.claim_many(request())),
    "claim_many: by one who would wait": _waiting(lambda engine, _: engine.claim_many(request(max_wait=SECOND))),
    "forward_wakeup": _waiting(lambda engine, _: engine.forward_wakeup(request())),
    "stop_waiting": _stop_waiting,
    "claim_for_worker": _waiting(lambda engine, _: _grant(engine)),
    "claim_resumed_execution": _resume,
    "claim_from_reclaim": _redeem,
    "renew": _held(lambda engine, claimed: engine.renew(claimed.handle)),
    "renew_many": _renew_many,
    "progress": _held(lambda engine, claimed: engine.progress(claimed.handle, 50, "half")),
    "complete": _held(lambda engine, claimed: engine.complete(claimed.handle, b"5")),
    "complete_many": _complete_many,
    "fail": _held(lambda engine, claimed: engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT)),
    "fail: and retry": _held(
        lambda engine, claimed: engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT), policy=RETRY
    ),
    "fail: and retry at once": _held(
        lambda engine, claimed: engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, timedelta()), policy=RETRY
    ),
    "fail_many": _fail_many,
    "cancel": _held(lambda engine, claimed: engine.cancel(claimed.handle, "enough")),
    "release": _held(lambda engine, claimed: engine.release(claimed.handle)),
    "release_many": _release_many,
    "delay": _held(lambda engine, claimed: engine.delay(claimed.handle, SECOND)),
    "wait_children": _held(lambda engine, claimed: engine.wait_children(claimed.handle)),
    "record_step": _held(lambda engine, claimed: engine.record_step(claimed.handle, "step", b"5")),
    "append_frame": _held(lambda engine, claimed: engine.append_frame(claimed.handle, FRAME)),
    "append_frame: with a number": _held(lambda engine, claimed: engine.append_frame(claimed.handle, NUMBERED)),
    "append_frame: to the summary": _held(lambda engine, claimed: engine.append_frame(claimed.handle, SUMMARY)),
    "append_frames": _held(lambda engine, claimed: _append_all(engine, claimed)),
    "read_stream": _streaming(
        lambda engine, target: engine.read_stream(target, 0, StreamCursor.start(), StreamCursor.end(), 10)
    ),
    "tail_stream": _streaming(lambda engine, target: _tail(engine, target, SECOND)),
    "tail_stream: of nothing yet": _waiting(lambda engine, target: _tail(engine, target, SECOND / 50)),
    "read_summary": _streaming(lambda engine, target: engine.read_summary(target, 0)),
    "cancel_execution": _waiting(
        lambda engine, execution: engine.cancel_execution(CancelExecutionArgs(execution_id=execution, reason="no"))
    ),
    "cancel_execution: of running work": _held(
        lambda engine, claimed: engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))
    ),
    "change_priority": _waiting(
        lambda engine, execution: engine.change_priority(ChangePriorityArgs(execution_id=execution, priority=9)),
        priority=5,
    ),
    "replay_execution": _ended(
        lambda engine, execution: engine.replay_execution(ReplayExecutionArgs(execution_id=execution))
    ),
    "replay_execution: of what waited, from the beginning": _waited(
        lambda engine, execution: engine.replay_execution(
            ReplayExecutionArgs(execution_id=execution, steps=ReplaySteps.FORGET)
        )
    ),
    "replay_execution: from a step": _waited(
        lambda engine, execution: engine.replay_execution(ReplayExecutionArgs(execution_id=execution, from_step="b"))
    ),
    "revoke_lease": _held(
        lambda engine, claimed: engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))
    ),
    "pause_lane": _waiting(lambda engine, _: engine.pause_lane(LANE)),
    "resume_lane": _resume_lane,
    "set_tags": _waiting(lambda engine, execution: engine.set_tags(execution, {"b": "2"}), tags={"a": "1"}),
    "purge": _ended(lambda engine, execution: engine.purge(execution)),
    "register_worker": _plain(lambda engine: engine.register_worker(_registration())),
    "register_worker: again": _registered(lambda engine: engine.register_worker(_registration())),
    "heartbeat_worker": _registered(lambda engine: engine.heartbeat_worker("w1")),
    "mark_worker_dead": _registered(lambda engine: engine.mark_worker_dead("w1", "gone")),
    "list_workers": _registered(lambda engine: engine.list_workers()),
    "publish_tasks": _plain(lambda engine: engine.publish_tasks([PUBLISHED])),
    "list_tasks": _plain(lambda engine: (engine.publish_tasks([PUBLISHED]), engine.list_tasks())),
    "tick_schedule": _scheduled(lambda engine: engine.tick_schedule(beat(1, 2, 3))),
    "tick_schedule: of an unknown schedule": _plain(lambda engine: engine.tick_schedule(beat())),
    "tick_schedule: only asking": _scheduled(lambda engine: engine.tick_schedule(beat(spec="every 2s"))),
    "tick_schedule: after another": _scheduled(lambda engine: engine.tick_schedule(beat(1, 2)), ticked=True),
    "tick_schedules": _scheduled(lambda engine: engine.tick_schedules([beat(1, 2), beat(name="other")])),
    "lead_schedules": _plain(lambda engine: engine.lead_schedules("shop", "p1", SECOND)),
    "lead_schedules: where another one leads": _scheduled(
        lambda engine: (engine.lead_schedules("shop", "p1", SECOND), engine.lead_schedules("shop", "p2", SECOND))
    ),
    "resign_schedules": _plain(
        lambda engine: (engine.lead_schedules("shop", "p1", SECOND), engine.resign_schedules("shop", "p1"))
    ),
    "list_schedules": _scheduled(lambda engine: engine.list_schedules()),
    "pause_schedule": _scheduled(lambda engine: engine.pause_schedule("beat")),
    "resume_schedule": _resume_schedule,
    "remove_schedule": _scheduled(lambda engine: engine.remove_schedule("beat"), ticked=True),
    **SUSPENSION_OPERATIONS,
    **FLOW_OPERATIONS,
    **BUDGET_OPERATIONS,
    **QUOTA_OPERATIONS,
    "list_expired_leases": _expired_leases,
    "describe_execution": _held(lambda engine, claimed: engine.describe_execution(claimed.execution_id)),
    "read_execution_info": _held(lambda engine, claimed: engine.read_execution_info(claimed.execution_id)),
    "read_execution_state": _held(lambda engine, claimed: engine.read_execution_state(claimed.execution_id)),
    "resolve_execution_flow_id": _held(lambda engine, claimed: engine.resolve_execution_flow_id(claimed.execution_id)),
    "get_execution_result": _ended(lambda engine, execution: engine.get_execution_result(execution)),
    "list_executions": _waiting(lambda engine, _: engine.list_executions()),
    "list_damaged": _waiting(lambda engine, _: engine.list_damaged()),
    "list_lanes": _waiting(lambda engine, _: engine.list_lanes()),
    "explain_execution": _waiting(lambda engine, execution: engine.explain_execution(execution)),
    "ping": _plain(lambda engine: engine.ping()),
    "backend_label": _plain(lambda engine: engine.backend_label()),
    "capabilities": _plain(lambda engine: engine.capabilities()),
    "server_time": _plain(lambda engine: engine.server_time()),
    "subscribe_completions": _ended(lambda engine, _: _feed(engine)),
    "feed_cursor": _ended(lambda engine, _: engine.feed_cursor()),
    "wait_for_result": _ended(lambda engine, execution: engine.wait_for_result(execution, SECOND)),
    "read_outcome": _ended(lambda engine, execution: engine.read_outcome(execution)),
    "prepare": _plain(lambda engine: engine.prepare(testing=True)),
    "prune_libraries": _plain(lambda engine: engine.prune_libraries()),
    "erase": _waiting(lambda engine, _: engine.erase(), idempotency_key="k"),
    "run_upkeep": _upkeep,
    "set_clock": _plain(lambda engine: engine.set_clock(START + SECOND)),
    "shutdown_prepare": _plain(lambda engine: engine.shutdown_prepare()),
}
