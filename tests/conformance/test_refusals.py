"""Every operation can be refused: with a typed error, and without a trace in the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from uuid import uuid4

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import flowfabric_worker.engine as engine_package
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import CODES, EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.claiming import (
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.feed import CompletionFilter
from flowfabric_worker.engine.types.operating import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.running import Completion, Failure, FailureReason
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.conformance.losing import empty_store_beside
from tests.conformance.operations import OPERATIONS, SECOND, START, beat
from tests.conformance.work import BOOM, LANE, LEASE, created, creation, refused, request, running
from tests.dumping import Dump

Act: TypeAlias = Callable[[], Any]
Case: TypeAlias = tuple[str, Callable[[Engine], Act]]

# They take nothing that could be wrong; who ends a waiting that never began has what he wants.
NEVER_REFUSED = {
    "ping",
    "backend_label",
    "capabilities",
    "server_time",
    "feed_cursor",
    "stop_waiting",
    "prune_libraries",
}
LONG = "x" * 300
SECRET = "swordfish"


def plain(code: str, act: Callable[[Engine], Any]) -> Case:
    """A call that is refused whatever the store holds."""
    return code, lambda engine: lambda: act(engine)


def only(answers: list[Any]) -> Any:
    """The answer to the one item of a batch."""
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
    """A call by a true holder that is refused for its other arguments, or for its state."""

    def arrange(engine: Engine) -> Act:
        handle = running(engine, **changes).handle
        return lambda: act(engine, handle)

    return code, arrange


# What is named by an id.

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
}
READING: dict[str, Callable[[Engine, ExecutionId], Any]] = {
    "describe_execution": lambda engine, target: engine.describe_execution(target),
    "read_execution_info": lambda engine, target: engine.read_execution_info(target),
    "read_execution_state": lambda engine, target: engine.read_execution_state(target),
    "resolve_execution_flow_id": lambda engine, target: engine.resolve_execution_flow_id(target),
    "get_execution_result": lambda engine, target: engine.get_execution_result(target),
    "explain_execution": lambda engine, target: engine.explain_execution(target),
}
BY_ID = CHANGING | READING


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


# What is redeemed.


def redeeming(operation: str, **changes: Any) -> Callable[[Engine, ExecutionId], Any]:
    """Redeems a reservation as the worker w1, unless it is changed."""
    who: dict[str, Any] = {"worker_id": "w1", "worker_instance_id": "w1", **changes}

    def act(engine: Engine, target: ExecutionId) -> Any:
        if operation == "claim_resumed_execution":
            return engine.claim_resumed_execution(ClaimResumedExecutionArgs(execution_id=target, **who))
        grant = ClaimGrant(execution_id=target, worker_id="w1", expires_at_ms=0)
        return engine.claim_from_reclaim(ReclaimToken(grant=grant, **who))

    return act


def reserved(code: str, act: Callable[[Engine, ExecutionId], Any], *, after: timedelta = timedelta()) -> Case:
    """A call on work that was handed back and is reserved for the worker w1."""

    def arrange(engine: Engine) -> Act:
        engine.release(running(engine, lane=LANE).handle)
        grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1"))
        assert grant is not None
        engine.set_clock(START + after)
        return lambda: act(engine, grant.execution_id)

    return code, arrange


# What takes plain arguments.


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
    """A call about the schedule `beat`, which is known since the start."""

    def arrange(engine: Engine) -> Act:
        engine.tick_schedule(beat())
        return lambda: act(engine)

    return code, arrange


def other_setup(engine: Engine) -> Act:
    other = Engine(lambda: (engine.store, engine.partitions + 1))
    return other.prepare


def real_store(engine: Engine) -> Act:
    """Erasing a store that was set up for real work."""
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
    """One wrong creation among good ones: none of them is made."""
    code, changes = WRONG_CREATIONS[why]
    return plain(code, lambda engine: engine.create_executions([creation(), creation(**changes)]))


# The operation, and behind a colon why it is refused.
REFUSALS: dict[str, Case] = {
    **{f"{name}: handle {why}": with_handle(name, why) for name in HOLDING for why in WRONG_HANDLES},
    **{f"{name}: missing": missing(name) for name in CHANGING},
    **{f"{name}: in a partition that is not there": elsewhere(name) for name in BY_ID},
    **{f"{name}: by a text": no_id(name, str(ExecutionId.mint())) for name in BY_ID},
    **{f"{name}: by an id that is none": no_id(name, ExecutionId(0, "\ud800")) for name in BY_ID},
    **{f"create_execution: {why}": creating(why) for why in WRONG_CREATIONS},
    **{f"create_executions: {why}": creating_many(why) for why in WRONG_CREATIONS},
    "create_executions: one key twice": plain(
        "duplicate_in_call", lambda engine: engine.create_executions([creation(idempotency_key="k")] * 2)
    ),
    "create_executions: of something else": plain("invalid_input", lambda engine: engine.create_executions([None])),
    # holding
    "renew: for longer than a lease may be": held(
        "invalid_input", lambda engine, handle: engine.renew(attrs.evolve(handle, lease_ttl_ms=2**63))
    ),
    "renew_many: twice": held("duplicate_in_call", lambda engine, handle: engine.renew_many([handle, handle])),
    "release_many: twice": held("duplicate_in_call", lambda engine, handle: engine.release_many([handle, handle])),
    "complete_many: of something else": plain("invalid_input", lambda engine: engine.complete_many([None])),
    "fail_many: of something else": plain("invalid_input", lambda engine: engine.fail_many([None])),
    "progress: over the whole": held("invalid_input", lambda engine, handle: engine.progress(handle, 101)),
    "progress: a number as message": held("invalid_input", lambda engine, handle: engine.progress(handle, 1, 5)),
    "complete: with a text": held("invalid_input", lambda engine, handle: engine.complete(handle, "text")),
    "complete: with a large result": held(
        "payload_too_large", lambda engine, handle: engine.complete(handle, b"x" * (2**20 + 1))
    ),
    "fail: with no class of failure": held("invalid_input", lambda engine, handle: engine.fail(handle, BOOM, "bad")),
    "fail: without a reason": held(
        "invalid_input", lambda engine, handle: engine.fail(handle, None, FailureClass.PERMANENT)
    ),
    "fail: with a text as detail": held(
        "invalid_input",
        lambda engine, handle: engine.fail(handle, FailureReason(message="", detail="x"), FailureClass.PERMANENT),
    ),
    "fail: with a retry in the past": held(
        "invalid_input", lambda engine, handle: engine.fail(handle, BOOM, FailureClass.TRANSIENT, -SECOND)
    ),
    "cancel: a number as reason": held("invalid_input", lambda engine, handle: engine.cancel(handle, 5)),
    "release: with a negative delay": held("invalid_input", lambda engine, handle: engine.release(handle, -SECOND)),
    "delay: until a moment without zone": held(
        "invalid_input", lambda engine, handle: engine.delay(handle, datetime(2030, 1, 1))
    ),
    "record_step: without a name": held("invalid_input", lambda engine, handle: engine.record_step(handle, "", b"")),
    "record_step: without a value": held(
        "invalid_input", lambda engine, handle: engine.record_step(handle, "step", None)
    ),
    "record_step: too large a journal": held(
        "journal_full", lambda engine, handle: engine.record_step(handle, "step", b"x" * 2**20)
    ),
    # operating
    "cancel_execution: that completed": when_completed("execution_not_active", CHANGING["cancel_execution"]),
    "cancel_execution: from nowhere": while_waiting(
        "invalid_input",
        lambda engine, target: engine.cancel_execution(CancelExecutionArgs(execution_id=target, source="nobody")),
    ),
    "change_priority: that runs": while_running("execution_not_eligible", CHANGING["change_priority"]),
    "change_priority: that completed": when_completed("execution_not_eligible", CHANGING["change_priority"]),
    "change_priority: to half a number": while_waiting(
        "invalid_input",
        lambda engine, target: engine.change_priority(ChangePriorityArgs(execution_id=target, priority=0.5)),
    ),
    "replay_execution: that waits": while_waiting("execution_not_terminal", CHANGING["replay_execution"]),
    "replay_execution: that runs": while_running("execution_not_terminal", CHANGING["replay_execution"]),
    "replay_execution: once more than allowed": when_completed(
        "max_replays_exhausted", CHANGING["replay_execution"], policy=ExecutionPolicy(max_replay_count=0)
    ),
    "revoke_lease: that waits": while_waiting("execution_not_active", CHANGING["revoke_lease"]),
    "revoke_lease: that completed": when_completed("execution_not_active", CHANGING["revoke_lease"]),
    "revoke_lease: of another lease": while_running(
        "stale_lease",
        lambda engine, target: engine.revoke_lease(
            RevokeLeaseArgs(execution_id=target, expected_lease_id=str(uuid4()))
        ),
    ),
    "purge: that waits": while_waiting("execution_not_terminal", CHANGING["purge"]),
    "purge: that runs": while_running("execution_not_terminal", CHANGING["purge"]),
    "set_tags: none": while_waiting("invalid_input", lambda engine, target: engine.set_tags(target, {})),
    "set_tags: too many": while_waiting(
        "invalid_input", lambda engine, target: engine.set_tags(target, {f"t{number}": "" for number in range(65)})
    ),
    "pause_lane: without a name": plain("invalid_input", lambda engine: engine.pause_lane("")),
    "resume_lane: with a number": plain("invalid_input", lambda engine: engine.resume_lane(5)),
    # claiming
    "claim: without a lane": plain(
        "invalid_input",
        lambda engine: engine.claim("", frozenset(), ClaimPolicy(worker_id="w", worker_instance_id="w")),
    ),
    "claim: with a bad capability": plain(
        "invalid_capabilities",
        lambda engine: engine.claim(LANE, {"a,b"}, ClaimPolicy(worker_id="w", worker_instance_id="w")),
    ),
    "claim_many: of none": plain("invalid_input", claiming(limit=0)),
    "claim_many: of more than a call holds": plain("invalid_input", claiming(limit=501)),
    "claim_many: one lane twice": plain("duplicate_in_call", claiming(lanes=(LANE, LANE))),
    "claim_many: by a worker without a name": plain("invalid_input", claiming(worker="")),
    "claim_many: for no time": plain("invalid_input", claiming(lease=timedelta())),
    "claim_many: for longer than a lease may be": plain("invalid_input", claiming(lease=timedelta(days=2))),
    "claim_many: waiting for a negative time": plain("invalid_input", claiming(max_wait=-SECOND)),
    "claim_many: under an id that is none": plain("invalid_input", claiming(claim_id="x")),
    "pass_wake: without a lane's name": plain("invalid_input", lambda engine: engine.pass_wake(request(""))),
    "claim_for_worker: without a lane's name": plain("invalid_input", reserving(lane="")),
    "claim_for_worker: without a worker's name": plain("invalid_input", reserving(worker_id="")),
    "claim_for_worker: for too long": plain("invalid_input", reserving(grant=timedelta(minutes=2))),
    "claim_for_worker: under an id that is none": plain("invalid_input", reserving(grant_id="x")),
    "claim_resumed_execution: missing": plain(
        "execution_not_found",
        lambda engine: redeeming("claim_resumed_execution")(engine, ExecutionId.mint(engine.partitions)),
    ),
    "claim_resumed_execution: never begun": while_waiting(
        "not_a_resumed_execution", redeeming("claim_resumed_execution")
    ),
    "claim_resumed_execution: that runs": while_running(
        "execution_not_leaseable", redeeming("claim_resumed_execution")
    ),
    **{
        f"{name}: {why}": case
        for name in ("claim_resumed_execution", "claim_from_reclaim")
        for why, case in {
            "reserved for another": reserved("invalid_claim_grant", redeeming(name, worker_id="w2")),
            "whose reservation lapsed": reserved("claim_grant_expired", redeeming(name), after=60 * SECOND),
            "for no time": reserved("invalid_input", redeeming(name, lease=timedelta())),
            "by an instance without a name": reserved("invalid_input", redeeming(name, worker_instance_id="")),
            "in a partition that is not there": plain(
                "partition_mismatch", lambda engine, name=name: redeeming(name)(engine, ExecutionId(999, str(uuid4())))
            ),
        }.items()
    },
    # workers
    "register_worker: without a name": plain("invalid_input", registering(worker_id="")),
    "register_worker: without an instance": plain("invalid_input", registering(worker_instance_id="")),
    "register_worker: for a bad lane": plain("invalid_input", registering(lanes=("é",))),
    "register_worker: with a bad capability": plain("invalid_capabilities", registering(capabilities=("a b",))),
    "register_worker: for no time": plain("invalid_input", registering(alive_for=timedelta())),
    "register_worker: with too much to say": plain("invalid_input", registering(tasks=("x" * 256,) * 300)),
    "heartbeat_worker: unknown": plain("worker_not_found", lambda engine: engine.heartbeat_worker("w1")),
    "heartbeat_worker: dead": ("worker_dead", dead_worker),
    "heartbeat_worker: for no time": plain("invalid_input", lambda engine: engine.heartbeat_worker("w1", timedelta())),
    "mark_worker_dead: unknown": plain("worker_not_found", lambda engine: engine.mark_worker_dead("w1")),
    "mark_worker_dead: a number as reason": plain("invalid_input", lambda engine: engine.mark_worker_dead("w1", 5)),
    # schedules
    "tick_schedule: before its time": scheduled("tick_not_due", lambda engine: engine.tick_schedule(beat(1))),
    "tick_schedule: of an unknown one before its time": plain(
        "tick_not_due", lambda engine: engine.tick_schedule(beat(1))
    ),
    "tick_schedule: not in their order": scheduled("invalid_input", lambda engine: engine.tick_schedule(beat(2, 1))),
    "tick_schedule: one that is done with": scheduled(
        "invalid_input", lambda engine: engine.tick_schedule(beat(1, after=1))
    ),
    "tick_schedule: without saying what is expected": scheduled(
        "invalid_input", lambda engine: engine.tick_schedule(beat(1, expected=None))
    ),
    "tick_schedule: without a zone": scheduled(
        "invalid_input", lambda engine: engine.tick_schedule(beat(1, expected=datetime(2030, 1, 1)))
    ),
    "tick_schedule: more than a call holds": scheduled(
        "invalid_input", lambda engine: engine.tick_schedule(beat(*range(1, 102)))
    ),
    "tick_schedule: too much together": scheduled(
        "payload_too_large",
        lambda engine: engine.tick_schedule(beat(*range(1, 11), creation=creation(payload=b"x" * 2**20))),
    ),
    "tick_schedule: without a name": plain("invalid_input", lambda engine: engine.tick_schedule(beat(name=""))),
    "tick_schedule: under a key": plain(
        "invalid_input", lambda engine: engine.tick_schedule(beat(creation=creation(idempotency_key="k")))
    ),
    "tick_schedule: of something else": plain("invalid_input", lambda engine: engine.tick_schedule(None)),
    **{
        f"tick_schedule: of work {why}": plain(
            code, lambda engine, changes=changes: engine.tick_schedule(beat(creation=creation(**changes)))
        )
        for why, (code, changes) in WRONG_CREATIONS.items()
        if "execution_id" not in changes and "idempotency_key" not in changes
    },
    **{
        f"{name}: {why}": plain(code, lambda engine, name=name, of=of: getattr(engine, name)(of))
        for name in ("pause_schedule", "resume_schedule", "remove_schedule")
        for why, (code, of) in {"unknown": ("schedule_not_found", "beat"), "unnamed": ("invalid_input", "")}.items()
    },
    # listings
    **{
        f"{name}: {why}": plain(
            "invalid_input", lambda engine, name=name, limit=limit: getattr(engine, name)(limit=limit)
        )
        for name in ("list_executions", "list_expired_leases", "list_lanes", "list_workers", "list_schedules")
        for why, limit in {"too many": 1001, "a negative number": -1, "half a row": 0.5, "a text": "1"}.items()
    },
    **{
        f"{name}: behind nothing": plain("invalid_cursor", lambda engine, name=name: getattr(engine, name)(cursor=""))
        for name in ("list_executions", "list_expired_leases", "list_lanes", "list_workers", "list_schedules")
    },
    **{
        f"{name}: of {text!r}": plain(code, lambda engine, name=name, text=text: getattr(engine, name)(text))
        for name in ("list_executions", "list_expired_leases")
        for text, code in {"{fp:999}": "partition_mismatch", "0": "invalid_partition_key"}.items()
    },
    "list_executions: in no state": plain(
        "invalid_input", lambda engine: engine.list_executions(filter=ExecutionFilter(state="asleep"))
    ),
    "list_executions: with no filter": plain("invalid_input", lambda engine: engine.list_executions(filter="x")),
    # feed
    **{
        f"subscribe_completions: from {cursor!a}": plain("invalid_cursor", subscribing(cursor))
        for cursor in ("x", "999=1-1", "0=1-1,0=1-1", "\ud800", 5)
    },
    "subscribe_completions: for a negative time": plain("invalid_input", subscribing(timeout=-SECOND)),
    "subscribe_completions: with no filter": plain("invalid_input", subscribing(filter="x")),
    "wait_for_result: for a negative time": while_waiting(
        "invalid_input", lambda engine, target: engine.wait_for_result(target, -SECOND)
    ),
    # upkeep
    "prepare: of another number of partitions": ("configuration_mismatch", other_setup),
    "erase: of a store for real work": ("configuration_mismatch", real_store),
    **{
        f"run_upkeep: of {limit!r}": plain("invalid_input", lambda engine, limit=limit: engine.run_upkeep(limit))
        for limit in (0, 501, 1.5, "1", True)
    },
    "set_clock: without zone": plain("invalid_input", lambda engine: engine.set_clock(datetime(2030, 1, 1))),
    "set_clock: before 1970": plain("invalid_input", lambda engine: engine.set_clock(datetime(1960, 1, 1, tzinfo=UTC))),
    "shutdown_prepare: with a negative grace": plain("invalid_input", lambda engine: engine.shutdown_prepare(-SECOND)),
    "shutdown_prepare: with a number": plain("invalid_input", lambda engine: engine.shutdown_prepare(5)),
}


def test_every_operation_has_a_refusal() -> None:
    refusable = {case.partition(":")[0] for case in REFUSALS}
    assert refusable | NEVER_REFUSED == {case.partition(":")[0] for case in OPERATIONS}
    assert not refusable & NEVER_REFUSED


def test_no_operation_of_the_engine_is_forgotten(engine: Engine) -> None:
    refusable = {case.partition(":")[0] for case in REFUSALS}
    assert engine.capabilities().operations == refusable | NEVER_REFUSED


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused_leaves_no_trace(engine: Engine, dump: Dump, case: str) -> None:
    code, arrange = REFUSALS[case]
    engine.set_clock(START)
    act = arrange(engine)
    before = dump()
    with refused(code):
        act()
    assert dump() == before


@pytest.mark.parametrize("operation", READING)
def test_who_reads_what_is_not_there_gets_nothing(engine: Engine, dump: Dump, operation: str) -> None:
    before = dump()
    assert READING[operation](engine, ExecutionId.mint(engine.partitions)) is None
    assert dump() == before


# Nonsense.

FUZZING = settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 2**31, 2**63, 2**64, -(10**40), 10**40]),
    st.floats(),
    st.binary(max_size=20),
    st.text(max_size=20),
    # A character of each kind that is refused, and sizes beyond what is allowed.
    st.sampled_from(["", LONG, "\0", "a\x1bb", "\ud800", "a\udfffb", "é" * 200, "{fp:99}", "{fp:0}:x", "0=9-9"]),
    st.sampled_from([[], {}, (None,), ["\ud800"], {"\ud800": "x"}, {"a": "\ud800"}, object()]),
    st.builds(ExecutionId, st.integers(-1, 70000), st.sampled_from(["", "\ud800", str(uuid4())])),
    st.sampled_from([timedelta(-1), timedelta.max, datetime(2030, 1, 1), datetime.min.replace(tzinfo=UTC)]),
)


def claim_by(changes: dict[str, Any]) -> Callable[[Engine], Any]:
    """A claim with a policy that is made of this."""
    who = {"worker_id": "w", "worker_instance_id": "w", **changes}
    return lambda engine: engine.claim(LANE, frozenset(), ClaimPolicy(**who))


FuzzedCall: TypeAlias = Callable[[Engine, Handle, Any], Any]
FUZZED: dict[str, FuzzedCall] = {
    **{
        f"create_execution {field}": lambda engine, _, junk, field=field: engine.create_execution(
            creation(**{"payload": SECRET.encode(), "idempotency_key": str(uuid4()), field: junk})
        )
        for field in attrs.fields_dict(CreateExecutionArgs)
    },
    "create_execution": lambda engine, _, junk: engine.create_execution(junk),
    "create_executions": lambda engine, _, junk: engine.create_executions([junk]),
    **{f"{name} id": lambda engine, _, junk, act=act: act(engine, junk) for name, act in BY_ID.items()},
    **{f"{name} handle": lambda engine, _, junk, act=act: act(engine, junk) for name, act in HOLDING.items()},
    "progress percent": lambda engine, handle, junk: engine.progress(handle, junk),
    "progress message": lambda engine, handle, junk: engine.progress(handle, None, junk),
    "complete payload": lambda engine, handle, junk: engine.complete(handle, junk),
    "fail reason": lambda engine, handle, junk: engine.fail(handle, junk, FailureClass.TRANSIENT),
    "fail message": lambda engine, handle, junk: engine.fail(
        handle, FailureReason(message=junk, detail=SECRET.encode()), FailureClass.TRANSIENT
    ),
    "fail detail": lambda engine, handle, junk: engine.fail(
        handle, FailureReason(message="", detail=junk), FailureClass.TRANSIENT
    ),
    "fail classification": lambda engine, handle, junk: engine.fail(handle, BOOM, junk),
    "fail retry_after": lambda engine, handle, junk: engine.fail(handle, BOOM, FailureClass.TRANSIENT, junk),
    "cancel reason": lambda engine, handle, junk: engine.cancel(handle, junk),
    "release delay": lambda engine, handle, junk: engine.release(handle, junk),
    "delay delay_until": lambda engine, handle, junk: engine.delay(handle, junk),
    "record_step name": lambda engine, handle, junk: engine.record_step(handle, junk, SECRET.encode()),
    "record_step value": lambda engine, handle, junk: engine.record_step(handle, "step", junk),
    "cancel_execution source": lambda engine, handle, junk: engine.cancel_execution(
        CancelExecutionArgs(execution_id=handle.execution_id, source=junk)
    ),
    "cancel_execution reason": lambda engine, handle, junk: engine.cancel_execution(
        CancelExecutionArgs(execution_id=handle.execution_id, reason=junk)
    ),
    "revoke_lease expected_lease_id": lambda engine, handle, junk: engine.revoke_lease(
        RevokeLeaseArgs(execution_id=handle.execution_id, expected_lease_id=junk)
    ),
    "revoke_lease worker_instance_id": lambda engine, handle, junk: engine.revoke_lease(
        RevokeLeaseArgs(execution_id=handle.execution_id, worker_instance_id=junk)
    ),
    **{
        f"{name} args": lambda engine, _, junk, name=name: getattr(engine, name)(junk)
        for name in ("cancel_execution", "change_priority", "replay_execution", "revoke_lease", "register_worker")
    },
    "set_tags tags": lambda engine, handle, junk: engine.set_tags(handle.execution_id, junk),
    "pause_lane": lambda engine, _, junk: engine.pause_lane(junk),
    "resume_lane": lambda engine, _, junk: engine.resume_lane(junk),
    "claim lane": lambda engine, _, junk: engine.claim(
        junk, frozenset(), ClaimPolicy(worker_id="w", worker_instance_id="w")
    ),
    "claim capabilities": lambda engine, _, junk: engine.claim(
        LANE, junk, ClaimPolicy(worker_id="w", worker_instance_id="w")
    ),
    **{
        f"claim {field}": lambda engine, _, junk, field=field: claim_by({field: junk})(engine)
        for field in ("worker_id", "worker_instance_id", "lease")
    },
    **{
        f"claim_many {field}": lambda engine, _, junk, field=field: claiming(**{field: junk})(engine)
        for field in ("limit", "capabilities", "tasks", "claim_id")
    },
    **{
        f"claim_for_worker {field}": lambda engine, _, junk, field=field: reserving(**{field: junk})(engine)
        for field in ("lane", "worker_id", "worker_instance_id", "capabilities", "tasks", "grant", "grant_id")
    },
    **{
        f"claim_resumed_execution {field}": lambda engine, handle, junk, field=field: redeeming(
            "claim_resumed_execution", **{field: junk}
        )(engine, handle.execution_id)
        for field in ("worker_id", "worker_instance_id", "lease", "claim_id")
    },
    **{
        f"register_worker {field}": lambda engine, _, junk, field=field: registering(**{field: junk})(engine)
        for field in attrs.fields_dict(RegisterWorkerArgs)
    },
    "heartbeat_worker": lambda engine, _, junk: engine.heartbeat_worker(junk),
    "heartbeat_worker alive_for": lambda engine, _, junk: engine.heartbeat_worker("w1", junk),
    "mark_worker_dead": lambda engine, _, junk: engine.mark_worker_dead(junk),
    "mark_worker_dead reason": lambda engine, _, junk: engine.mark_worker_dead("w1", junk),
    **{
        f"{name} {argument}": lambda engine, _, junk, name=name, argument=argument: getattr(engine, name)(
            **{argument: junk}
        )
        for name, argument in chain(
            (
                (name, "limit")
                for name in ("list_executions", "list_expired_leases", "list_lanes", "list_workers", "list_schedules")
            ),
            (
                (name, "cursor")
                for name in ("list_executions", "list_expired_leases", "list_lanes", "list_workers", "list_schedules")
            ),
            ((name, "partition") for name in ("list_executions", "list_expired_leases")),
        )
    },
    "list_executions filter": lambda engine, _, junk: engine.list_executions(filter=junk),
    **{
        f"list_executions filter {field}": lambda engine, _, junk, field=field: engine.list_executions(
            filter=ExecutionFilter(**{field: junk})
        )
        for field in attrs.fields_dict(ExecutionFilter)
    },
    "subscribe_completions cursor": lambda engine, _, junk: subscribing(junk)(engine),
    "subscribe_completions filter": lambda engine, _, junk: subscribing(filter=junk)(engine),
    **{
        f"subscribe_completions filter {field}": lambda engine, _, junk, field=field: subscribing(
            filter=CompletionFilter(**{field: junk})
        )(engine)
        for field in attrs.fields_dict(CompletionFilter)
    },
    "run_upkeep": lambda engine, _, junk: engine.run_upkeep(junk),
    "set_clock": lambda engine, _, junk: engine.set_clock(junk),
    "shutdown_prepare": lambda engine, _, junk: engine.shutdown_prepare(junk),
}
OUTER = Path(str(engine_package.__file__)).parent
RECORDS = OUTER / "types"


def beyond_the_records(trace: TracebackType | None) -> list[str]:
    """The files of the engine through which an error came, without those that check what records are made of."""
    files = []
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(OUTER) and not file.is_relative_to(RECORDS):
            files.append(file.name)
        trace = trace.tb_next
    return files


def attempt(act: Act, dump: Dump) -> None:
    """The call is carried out, or refused as every refusal must be."""
    before = dump()
    caught: EngineError | TypeError
    try:
        act()
    except (EngineError, TypeError) as error:
        caught = error
    else:
        return
    if isinstance(caught, EngineError):
        assert type(caught) is CODES[caught.code].error
        assert caught.code not in ("function_failed", "protocol", "transport")
        assert SECRET not in f"{caught} {caught.details}"
    else:
        # A record that cannot even be made of such a thing.
        assert beyond_the_records(caught.__traceback__) == []
    assert dump() == before


@pytest.mark.parametrize("call", FUZZED)
def test_nonsense_is_refused_like_any_other_mistake(engine: Engine, dump: Dump, call: str) -> None:
    @FUZZING
    @given(junk=JUNK)
    def fuzz(junk: Any) -> None:
        handle = running(engine).handle
        attempt(lambda: FUZZED[call](engine, handle, junk), dump)

    fuzz()


@pytest.mark.parametrize("operation", HOLDING)
def test_a_damaged_handle_is_refused_or_does_what_its_fence_allows(engine: Engine, dump: Dump, operation: str) -> None:
    @FUZZING
    @given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
    def fuzz(at: float, bit: int, cut: bool) -> None:
        data = bytearray(running(engine).handle.to_bytes())
        place = int(at * len(data))
        if cut:
            del data[place:]
        else:
            data[place] ^= 1 << bit
        attempt(lambda: HOLDING[operation](engine, Handle.from_bytes(bytes(data))), dump)

    fuzz()


@pytest.mark.parametrize("secret", [SECRET, [SECRET], bytearray(SECRET, "ascii"), SECRET.encode() * 2**17], ids=type)
def test_no_refusal_repeats_a_payload(engine: Engine, dump: Dump, secret: Any) -> None:
    handle = running(engine).handle
    calls: list[Act] = [
        lambda: engine.create_execution(creation(payload=secret)),
        lambda: engine.complete(handle, secret),
        lambda: engine.complete_many([Completion(handle=handle, payload=secret)]),
        lambda: engine.record_step(handle, "step", secret),
    ]
    before = dump()
    for call in calls:
        with pytest.raises(EngineError) as caught:
            call()
        assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.details}"
    assert dump() == before
