"""Every operation can be refused: with a typed error, and without a trace in the store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ChangePriorityArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.claiming import ClaimPolicy
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.streams import Frame, FrameAppend
from tests.support.budget_operations import BUDGET_REFUSALS
from tests.support.dumps import Dump
from tests.support.executions import BOOM, LANE, creation, refused, request
from tests.support.flow_operations import FLOW_REFUSALS
from tests.support.operations import NUMBERED, OPERATIONS, PUBLISHED, SECOND, START, SUMMARY, beat
from tests.support.quota_operations import QUOTA_REFUSALS
from tests.support.refusals import (
    BY_ID,
    CHANGING,
    HOLDING,
    READING,
    STREAMING,
    WRONG_CREATIONS,
    WRONG_HANDLES,
    WRONG_READS,
    Case,
    appended,
    claiming,
    creating,
    creating_many,
    dead_worker,
    elsewhere,
    held,
    missing,
    no_id,
    other_setup,
    plain,
    publishing,
    reading,
    real_store,
    redeeming,
    registering,
    reserved,
    reserving,
    scheduled,
    subscribing,
    tailing,
    when_completed,
    while_running,
    while_waiting,
    with_handle,
)
from tests.support.suspension_refusals import SUSPENSION_REFUSALS

# Their arguments cannot be wrong: ending a wait that never began is a success.
NEVER_REFUSED = {
    "ping",
    "backend_label",
    "capabilities",
    "server_time",
    "feed_cursor",
    "stop_waiting",
    "prune_libraries",
    "begin_transaction",
}

# Only Postgres has transactions of callers and handlers, so these operations have tests of their own.
OF_POSTGRES = {"create_in_transaction", "begin_transaction"}

# The operation, and behind a colon why it is refused.
REFUSALS: dict[str, Case] = {
    **{f"{name}: handle {why}": with_handle(name, why) for name in HOLDING for why in WRONG_HANDLES},
    **{f"{name}: missing": missing(name) for name in CHANGING | STREAMING},
    **{f"{name}: in a partition that is not there": elsewhere(name) for name in BY_ID},
    **{f"{name}: by another text": no_id(name, ExecutionId.mint().uuid) for name in BY_ID},
    **{f"{name}: by an id that is none": no_id(name, ExecutionId(0, "\ud800")) for name in BY_ID},
    **{f"create_execution: {why}": creating(why) for why in WRONG_CREATIONS},
    **{f"create_executions: {why}": creating_many(why) for why in WRONG_CREATIONS},
    "create_executions: one key twice": plain(
        "duplicate_in_call", lambda engine: engine.create_executions([creation(idempotency_key="k")] * 2)
    ),
    "create_executions: of something else": plain("invalid_input", lambda engine: engine.create_executions([None])),
    "create_in_batches: of something else": plain(
        "invalid_input", lambda engine: list(engine.create_in_batches([creation(), None]))
    ),
    "create_in_transaction: of a connection of something else": plain(
        "invalid_input", lambda engine: engine.create_in_transaction(object(), [creation()])
    ),
    "create_in_batches: one key twice": plain(
        "duplicate_in_call", lambda engine: list(engine.create_in_batches([creation(idempotency_key="k")] * 2))
    ),
    # suspension
    **SUSPENSION_REFUSALS,
    # budgets
    **BUDGET_REFUSALS,
    **QUOTA_REFUSALS,
    **FLOW_REFUSALS,
    # holding
    "renew: for longer than a lease may be": held(
        "invalid_input", lambda engine, handle: engine.renew(attrs.evolve(handle, lease_ttl_ms=2**63))
    ),
    "renew_many: twice": held("duplicate_in_call", lambda engine, handle: engine.renew_many([handle, handle])),
    "release_many: twice": held("duplicate_in_call", lambda engine, handle: engine.release_many([handle, handle])),
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
    # streams
    "append_frame: of something else": held("invalid_input", lambda engine, handle: engine.append_frame(handle, None)),
    "append_frame: too large": held(
        "payload_too_large", lambda engine, handle: engine.append_frame(handle, Frame(payload=b"x" * (2**16 + 1)))
    ),
    "append_frame: a patch that is none": held(
        "invalid_patch", lambda engine, handle: engine.append_frame(handle, attrs.evolve(SUMMARY, payload=b"{"))
    ),
    "append_frame: another one under its number": (
        "frame_conflict",
        appended(lambda engine, handle: engine.append_frame(handle, Frame(payload=b"other", seq=NUMBERED.seq))),
    ),
    "append_frame: a number that was left out": (
        "frame_conflict",
        appended(lambda engine, handle: engine.append_frame(handle, Frame(payload=b"other", seq=NUMBERED.seq - 1))),
    ),
    "append_frames: one number twice": held(
        "duplicate_in_call",
        lambda engine, handle: engine.append_frames([FrameAppend(handle=handle, frame=NUMBERED)] * 2),
    ),
    **{
        f"{name}: {why}": while_waiting(
            code, lambda engine, target, act=act, changes=changes: act(engine, target, **changes)
        )
        for name, act in {"read_stream": reading, "tail_stream": tailing}.items()
        for why, (code, changes) in WRONG_READS[name].items()
    },
    "read_summary: of no attempt": while_waiting(
        "invalid_input", lambda engine, target: engine.read_summary(target, -1)
    ),
    # operating
    "cancel_execution: that completed": when_completed("execution_not_active", CHANGING["cancel_execution"]),
    "cancel_execution: from nowhere": while_waiting(
        "invalid_input",
        lambda engine, target: engine.cancel_execution(CancelExecutionArgs(execution_id=target, source="unknown")),
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
    "forward_wakeup: without a lane's name": plain("invalid_input", lambda engine: engine.forward_wakeup(request(""))),
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
    "publish_tasks: without a name": plain("invalid_input", publishing(name="")),
    "publish_tasks: for a bad lane": plain("invalid_input", publishing(lane="é")),
    "publish_tasks: with too much to say": plain(
        "invalid_input", publishing(tags={f"t{number}": "x" * 1024 for number in range(64)})
    ),
    "publish_tasks: for no time": plain("invalid_input", lambda engine: engine.publish_tasks([PUBLISHED], timedelta())),
    "publish_tasks: the same twice": plain(
        "duplicate_in_call", lambda engine: engine.publish_tasks([PUBLISHED, PUBLISHED])
    ),
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
    "tick_schedule: missed ones and none that was expected": scheduled(
        "invalid_input", lambda engine: engine.tick_schedule(beat(missed=2))
    ),
    "tick_schedule: less than none missed": plain(
        "invalid_input", lambda engine: engine.tick_schedule(beat(missed=-1))
    ),
    "tick_schedules: one of them twice": plain(
        "duplicate_in_call", lambda engine: engine.tick_schedules([beat(), beat(spec="every 2s")])
    ),
    "tick_schedules: one of them without a name": plain(
        "invalid_input", lambda engine: engine.tick_schedules([beat(), beat(name="")])
    ),
    "lead_schedules: without a process": plain(
        "invalid_input", lambda engine: engine.lead_schedules("shop", "", SECOND)
    ),
    "lead_schedules: for no time that is known": plain(
        "invalid_input", lambda engine: engine.lead_schedules("shop", "p", -SECOND)
    ),
    "resign_schedules: without a group": plain("invalid_input", lambda engine: engine.resign_schedules("", "p")),
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
        for name in (
            "list_executions",
            "list_expired_leases",
            "list_damaged",
            "list_lanes",
            "list_workers",
            "list_schedules",
            "list_tasks",
        )
        for why, limit in {"too many": 1001, "a negative number": -1, "half a row": 0.5, "a text": "1"}.items()
    },
    **{
        f"{name}: behind nothing": plain("invalid_cursor", lambda engine, name=name: getattr(engine, name)(cursor=""))
        for name in (
            "list_executions",
            "list_expired_leases",
            "list_damaged",
            "list_lanes",
            "list_workers",
            "list_schedules",
            "list_tasks",
        )
    },
    **{
        f"{name}: of {text!r}": plain(code, lambda engine, name=name, text=text: getattr(engine, name)(text))
        for name in ("list_executions", "list_expired_leases", "list_damaged")
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
    assert refusable | NEVER_REFUSED == {case.partition(":")[0] for case in OPERATIONS} | OF_POSTGRES
    assert not refusable & NEVER_REFUSED


def test_no_operation_of_the_engine_is_forgotten(engine: Engine) -> None:
    refusable = {case.partition(":")[0] for case in REFUSALS}
    assert engine.capabilities().operations == refusable | NEVER_REFUSED


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_call_leaves_no_trace(engine: Engine, dump: Dump, case: str) -> None:
    code, arrange = REFUSALS[case]
    engine.set_clock(START)
    act = arrange(engine)
    before = dump()
    with refused(code):
        act()
    assert dump() == before


@pytest.mark.parametrize("operation", READING)
def test_reading_an_unknown_execution_returns_none(engine: Engine, dump: Dump, operation: str) -> None:
    before = dump()
    assert READING[operation](engine, ExecutionId.mint(engine.partitions)) is None
    assert dump() == before
