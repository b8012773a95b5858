"""Calls that must be refused, each with the code that it is refused with; and what they are made of."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import attrs

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import (
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.streams import FrameAppend, StreamCursor
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from tests.support.budget_operations import BUDGET_HOLDING
from tests.support.executions import BOOM, LANE, LEASE, created, creation, request, running
from tests.support.lossy_store import empty_store_beside
from tests.support.operations import FRAME, NUMBERED, SECOND, START, SUMMARY, beat
from tests.support.suspension_operations import SUSPENSION_BY_ID, SUSPENSION_HOLDING

Act: TypeAlias = Callable[[], Any]
Case: TypeAlias = tuple[str, Callable[[Engine], Act]]

LONG = "x" * 300


def plain(code: str, act: Callable[[Engine], Any]) -> Case:
    """Return a call that is refused whatever the store holds."""
    return code, lambda engine: lambda: act(engine)


def only(answers: list[Any]) -> Any:
    """Return the answer to the one item of a batch."""
    (answer,) = answers
    if isinstance(answer, EngineError):
        raise answer
    return answer


# What the holder of a lease does, and the handles with which it is refused.

HOLDING: dict[str, Callable[[Engine, Handle], Any]] = {
    "renew": lambda engine, handle: engine.renew(handle),
    "renew_many": lambda engine, handle: only(engine.renew_many([handle])),
    "progress": lambda engine, handle: engine.progress(handle, 50, "half"),
    "complete": lambda engine, handle: engine.complete(handle, b"5"),
    "complete_many": lambda engine, handle: only(engine.complete_many([Completion(handle=handle, payload=b"5")])),
    "fail": lambda engine, handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT),
    "fail_many": lambda engine, handle: only(
        engine.fail_many([Failure(handle=handle, reason=BOOM, classification=FailureClass.PERMANENT)])
    ),
    "cancel": lambda engine, handle: engine.cancel(handle, "enough"),
    "release": lambda engine, handle: engine.release(handle),
    "release_many": lambda engine, handle: only(engine.release_many([handle])),
    "delay": lambda engine, handle: engine.delay(handle, SECOND),
    "wait_children": lambda engine, handle: engine.wait_children(handle),
    "record_step": lambda engine, handle: engine.record_step(handle, "step", b"5"),
    **SUSPENSION_HOLDING,
    **BUDGET_HOLDING,
    "append_frame": lambda engine, handle: engine.append_frame(handle, FRAME),
    "append_frames": lambda engine, handle: only(engine.append_frames([FrameAppend(handle=handle, frame=SUMMARY)])),
}


def ended(engine: Engine, handle: Handle) -> Handle:
    engine.cancel_execution(CancelExecutionArgs(execution_id=handle.execution_id))
    return handle


def revoked(engine: Engine, handle: Handle) -> Handle:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=handle.execution_id))
    return handle


def expired(engine: Engine, handle: Handle) -> Handle:
    engine.set_clock(START + LEASE)
    return handle


WRONG_HANDLES: dict[str, tuple[str, Callable[[Engine, Handle], Any]]] = {
    "of no execution": (
        "execution_not_found",
        lambda engine, handle: attrs.evolve(handle, execution_id=ExecutionId.mint(engine.partitions)),
    ),
    "of an ended execution": ("execution_not_active", ended),
    "of a revoked lease": ("lease_revoked", revoked),
    "of an expired lease": ("lease_expired", expired),
    "of another lease": ("stale_lease", lambda _, handle: attrs.evolve(handle, lease_id=str(uuid4()))),
    "of another kind of store": (
        "handle_from_other_backend",
        lambda _, handle: attrs.evolve(handle, backend="elsewhere"),
    ),
    "of a partition that is not there": (
        "partition_mismatch",
        lambda _, handle: attrs.evolve(handle, execution_id=ExecutionId(999, handle.execution_id.uuid)),
    ),
    "that cannot be encoded": ("invalid_input", lambda _, handle: attrs.evolve(handle, lease_id="\ud800")),
    "that is none": ("invalid_input", lambda _, handle: str(handle)),
}


def with_handle(operation: str, why: str) -> Case:
    code, change = WRONG_HANDLES[why]

    def arrange(engine: Engine) -> Act:
        handle = change(engine, running(engine).handle)
        return lambda: HOLDING[operation](engine, handle)

    return code, arrange


def held(code: str, act: Callable[[Engine, Handle], Any], **changes: Any) -> Case:
    """Return a call by a true holder that is refused for its other arguments, or for its state."""

    def arrange(engine: Engine) -> Act:
        handle = running(engine, **changes).handle
        return lambda: act(engine, handle)

    return code, arrange


# Operations that take an id.

CHANGING: dict[str, Callable[[Engine, ExecutionId], Any]] = {
    "cancel_execution": lambda engine, target: engine.cancel_execution(CancelExecutionArgs(execution_id=target)),
    "change_priority": lambda engine, target: engine.change_priority(
        ChangePriorityArgs(execution_id=target, priority=9)
    ),
    "replay_execution": lambda engine, target: engine.replay_execution(ReplayExecutionArgs(execution_id=target)),
    "revoke_lease": lambda engine, target: engine.revoke_lease(RevokeLeaseArgs(execution_id=target)),
    "set_tags": lambda engine, target: engine.set_tags(target, {"a": "b"}),
    "purge": lambda engine, target: engine.purge(target),
    "read_outcome": lambda engine, target: engine.read_outcome(target),
    "wait_for_result": lambda engine, target: engine.wait_for_result(target, SECOND),
    **SUSPENSION_BY_ID,
}
READING: dict[str, Callable[[Engine, ExecutionId], Any]] = {
    "describe_execution": lambda engine, target: engine.describe_execution(target),
    "read_execution_info": lambda engine, target: engine.read_execution_info(target),
    "read_execution_state": lambda engine, target: engine.read_execution_state(target),
    "resolve_execution_flow_id": lambda engine, target: engine.resolve_execution_flow_id(target),
    "get_execution_result": lambda engine, target: engine.get_execution_result(target),
    "explain_execution": lambda engine, target: engine.explain_execution(target),
}
STREAMING: dict[str, Callable[[Engine, ExecutionId], Any]] = {
    "read_stream": lambda engine, target: reading(engine, target),
    "tail_stream": lambda engine, target: tailing(engine, target),
    "read_summary": lambda engine, target: engine.read_summary(target, 0),
}
BY_ID = CHANGING | READING | STREAMING


def tailing(engine: Engine, target: ExecutionId, **changes: Any) -> Any:
    """Tail an attempt, with changes."""
    arguments: dict[str, Any] = {"after": StreamCursor.from_beginning(), "block": SECOND, "count_limit": 10, **changes}
    return engine.tail_stream(target, arguments.pop("attempt_index", 0), **arguments)


def reading(engine: Engine, target: ExecutionId, **changes: Any) -> Any:
    """Read a range of an attempt's stream, with changes."""
    arguments: dict[str, Any] = {"first": StreamCursor.start(), "last": StreamCursor.end(), "count": 10, **changes}
    return engine.read_stream(
        target, arguments.get("attempt_index", 0), arguments["first"], arguments["last"], arguments["count"]
    )


WRONG_READS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "read_stream": {
        "of no attempt": ("invalid_input", {"attempt_index": -1}),
        "of no frame": ("invalid_input", {"count": 0}),
        "of more than a call holds": ("invalid_input", {"count": 10_001}),
        "of a true number": ("invalid_input", {"count": True}),
        "from a text": ("invalid_input", {"first": "start"}),
        "to a text": ("invalid_input", {"last": "end"}),
    },
    "tail_stream": {
        "of no attempt": ("invalid_input", {"attempt_index": 0.5}),
        "of no frame": ("invalid_input", {"count_limit": 0}),
        "of more than a call holds": ("invalid_input", {"count_limit": 10_001}),
        "after the start": ("invalid_cursor", {"after": StreamCursor.start()}),
        "after the end": ("invalid_cursor", {"after": StreamCursor.end()}),
        "after a text": ("invalid_input", {"after": "0-0"}),
        "for too long": ("invalid_input", {"block": timedelta(seconds=30, milliseconds=1)}),
        "for a negative time": ("invalid_input", {"block": -SECOND}),
        "of frames that nothing is": ("invalid_input", {"visibility": "some"}),
    },
}


def appended(act: Callable[[Engine, Handle], Any]) -> Callable[[Engine], Act]:
    """Return a call by a holder that has appended a frame with a number."""

    def arrange(engine: Engine) -> Act:
        handle = running(engine).handle
        engine.append_frame(handle, NUMBERED)
        return lambda: act(engine, handle)

    return arrange


def missing(operation: str) -> Case:
    return plain("execution_not_found", lambda engine: BY_ID[operation](engine, ExecutionId.mint(engine.partitions)))


def elsewhere(operation: str) -> Case:
    return plain("partition_mismatch", lambda engine: BY_ID[operation](engine, ExecutionId(999, str(uuid4()))))


def no_id(operation: str, value: Any) -> Case:
    return plain("invalid_execution_id", lambda engine: BY_ID[operation](engine, value))


def while_waiting(code: str, act: Callable[[Engine, ExecutionId], Any]) -> Case:
    def arrange(engine: Engine) -> Act:
        target = created(engine)
        return lambda: act(engine, target)

    return code, arrange


def while_running(code: str, act: Callable[[Engine, ExecutionId], Any]) -> Case:
    return held(code, lambda engine, handle: act(engine, handle.execution_id))


def when_completed(code: str, act: Callable[[Engine, ExecutionId], Any], **changes: Any) -> Case:
    def arrange(engine: Engine) -> Act:
        claimed = running(engine, **changes)
        engine.complete(claimed.handle)
        return lambda: act(engine, claimed.execution_id)

    return code, arrange


# Redemptions.


def redeeming(operation: str, **changes: Any) -> Callable[[Engine, ExecutionId], Any]:
    """Redeem a reservation as the worker w1, unless it is changed."""
    who: dict[str, Any] = {"worker_id": "w1", "worker_instance_id": "w1", **changes}

    def act(engine: Engine, target: ExecutionId) -> Any:
        if operation == "claim_resumed_execution":
            return engine.claim_resumed_execution(ClaimResumedExecutionArgs(execution_id=target, **who))
        grant = ClaimGrant(execution_id=target, worker_id="w1", expires_at_ms=0)
        return engine.claim_from_reclaim(ReclaimToken(grant=grant, **who))

    return act


def reserved(code: str, act: Callable[[Engine, ExecutionId], Any], *, after: timedelta = timedelta()) -> Case:
    """Return a call on work that was handed back and is reserved for the worker w1."""

    def arrange(engine: Engine) -> Act:
        engine.release(running(engine, lane=LANE).handle)
        grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1"))
        assert grant is not None
        engine.set_clock(START + after)
        return lambda: act(engine, grant.execution_id)

    return code, arrange


# Operations that take plain arguments.


def publishing(**changes: Any) -> Callable[[Engine], Any]:
    """Publish a task of which something is changed."""
    return lambda engine: engine.publish_tasks([TaskPublication(**{"name": "a.b", "lane": "l", **changes})])


def registering(**changes: Any) -> Callable[[Engine], Any]:
    return lambda engine: engine.register_worker(
        RegisterWorkerArgs(**{"worker_id": "w", "worker_instance_id": "w1", **changes})
    )


def reserving(**changes: Any) -> Callable[[Engine], Any]:
    return lambda engine: engine.claim_for_worker(
        ClaimForWorkerArgs(**{"lane": LANE, "worker_id": "w1", "worker_instance_id": "w1", **changes})
    )


def claiming(**changes: Any) -> Callable[[Engine], Any]:
    lanes = changes.pop("lanes", (LANE,))
    return lambda engine: engine.claim_many(request(*lanes, **changes))


def subscribing(cursor: Any = None, **changes: Any) -> Callable[[Engine], Any]:
    return lambda engine: list(engine.subscribe_completions(cursor, **{"timeout": timedelta(), **changes}))


def dead_worker(engine: Engine) -> Act:
    registering()(engine)
    engine.mark_worker_dead("w1")
    return lambda: engine.heartbeat_worker("w1")


def scheduled(code: str, act: Callable[[Engine], Any]) -> Case:
    """Return a call about the schedule `beat`, which is known since the start."""

    def arrange(engine: Engine) -> Act:
        engine.tick_schedule(beat())
        return lambda: act(engine)

    return code, arrange


def other_setup(engine: Engine) -> Act:
    other = Engine(lambda: (engine.store, engine.partitions + 1))
    return other.prepare


def real_store(engine: Engine) -> Act:
    """Try to erase a store that was set up for real work."""
    store = empty_store_beside(engine)
    other = Engine(lambda: (store, engine.partitions))
    other.prepare()
    return other.erase


WRONG_CREATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "without a lane": ("invalid_input", {"lane": ""}),
    "in a lane with a long name": ("invalid_input", {"lane": "x" * 65}),
    "of a task with a control character": ("invalid_input", {"task": "a\nb"}),
    "of a task with a long name": ("invalid_input", {"task": LONG}),
    "with a text as payload": ("invalid_input", {"payload": "text"}),
    "with a large payload": ("payload_too_large", {"payload": b"x" * (2**20 + 1)}),
    "with an id that is none": ("invalid_execution_id", {"execution_id": "x"}),
    "with an id elsewhere": ("partition_mismatch", {"execution_id": ExecutionId(999, str(uuid4()))}),
    "with an empty key": ("invalid_input", {"idempotency_key": ""}),
    "with a codec that cannot be encoded": ("invalid_input", {"codec": "\ud800", "idempotency_key": "k"}),
    "with a number as codec": ("invalid_input", {"codec": 5, "idempotency_key": "k"}),
    "with half a priority": ("invalid_input", {"priority": 0.5}),
    "with a negative delay": ("invalid_input", {"delay": -SECOND}),
    "with two delays": ("invalid_input", {"delay": SECOND, "delay_until": START}),
    "with a deadline without zone": ("invalid_input", {"deadline": datetime(2030, 1, 1)}),
    "with a bad tag key": ("invalid_tag_key", {"tags": {"": "x"}}),
    "with a number as tag": ("invalid_input", {"tags": {"a": 5}}),
    "with many tags": ("invalid_input", {"tags": {f"t{number}": "" for number in range(65)}}),
    "with an unknown budget": ("budget_not_found", {"policy": ExecutionPolicy(budget_ids=("b",))}),
    "with an unknown quota": ("quota_policy_not_found", {"policy": ExecutionPolicy(quota_policy_id="q")}),
    "with a creator who cannot be encoded": ("invalid_input", {"creator": "\ud800"}),
}


def creating(why: str) -> Case:
    code, changes = WRONG_CREATIONS[why]
    return plain(code, lambda engine: engine.create_execution(creation(**changes)))


def creating_many(why: str) -> Case:
    """Return one wrong creation among good ones: none of them is made."""
    code, changes = WRONG_CREATIONS[why]
    return plain(code, lambda engine: engine.create_executions([creation(), creation(**changes)]))
