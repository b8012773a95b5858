"""Calls between a call whose reply was lost and its repeat, by the operation of `OPERATIONS`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.claiming import Claimed, ClaimGrant, ReclaimToken
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.executions import LANE, claim_one, created, request
from tests.support.operations import SECOND, START, beat


def _execution(engine: Engine) -> ExecutionId:
    """Return the one execution that there is."""
    (only,) = engine.list_executions().executions
    return only.execution_id


def _claim(engine: Engine) -> Claimed:
    return claim_one(engine, LANE, worker="w2")


def _claim_later(engine: Engine) -> Claimed:
    engine.set_clock(START + timedelta(hours=1))
    return _claim(engine)


def _complete(engine: Engine) -> None:
    engine.complete(_claim(engine).handle, b"6")


def _cancel(engine: Engine) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=_execution(engine)))


def _replay(engine: Engine) -> None:
    engine.replay_execution(ReplayExecutionArgs(execution_id=_execution(engine)))


def _make_it_again(engine: Engine) -> None:
    """Make an execution under the id of the one that was purged, and end it."""
    (gone,) = engine.subscribe_completions(timeout=timedelta())
    again = created(engine, execution_id=gone.execution_id)
    engine.cancel_execution(CancelExecutionArgs(execution_id=again))


def _redeem(engine: Engine) -> None:
    grant = ClaimGrant(execution_id=_execution(engine), worker_id="w1", expires_at_ms=0)
    assert engine.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="w1", worker_instance_id="w1"))


def _register(engine: Engine) -> None:
    engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id="w1", lanes=(LANE,)))


def _another_step(engine: Engine) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=_execution(engine)))
    engine.record_step(_claim(engine).handle, "another", b"6")


# The case of OPERATIONS, and what happens before its repeat.
MEANWHILE: list[tuple[str, Callable[[Engine], object]]] = [
    ("create_execution: with a key", _cancel),
    ("claim_many", lambda engine: created(engine)),
    ("claim_many", lambda engine: engine.claim_many(request())),
    ("claim_many", lambda engine: [engine.claim_many(request()) for _ in range(9)]),
    ("claim_for_worker", _redeem),
    ("complete", _replay),
    ("fail", _replay),
    ("fail: and retry", _claim_later),
    ("fail: and retry at once", _claim),
    ("cancel", _replay),
    ("release", _complete),
    ("release_many", lambda engine: engine.set_clock(START + 2 * SECOND)),
    ("delay", _claim_later),
    ("wait_children", _claim),
    ("progress", _cancel),
    ("record_step", _cancel),
    ("cancel_execution", _replay),
    ("cancel_execution: of running work", _replay),
    (
        "change_priority",
        lambda engine: engine.change_priority(ChangePriorityArgs(execution_id=_execution(engine), priority=1)),
    ),
    ("change_priority", _claim),
    ("replay_execution", _complete),
    ("replay_execution", _cancel),
    ("revoke_lease", _claim),
    ("pause_lane", lambda engine: engine.resume_lane(LANE)),
    ("resume_lane", lambda engine: engine.pause_lane(LANE)),
    ("set_tags", lambda engine: engine.set_tags(_execution(engine), {"b": "3"})),
    ("purge", _make_it_again),
    ("register_worker", lambda engine: engine.mark_worker_dead("w1")),
    ("register_worker: again", lambda engine: engine.mark_worker_dead("w1")),
    ("mark_worker_dead", _register),
    ("tick_schedule", lambda engine: engine.pause_schedule("beat")),
    ("tick_schedule: of an unknown schedule", lambda engine: engine.pause_schedule("beat")),
    ("pause_schedule", lambda engine: engine.resume_schedule("beat")),
    ("resume_schedule", lambda engine: engine.pause_schedule("beat")),
    ("remove_schedule", lambda engine: engine.tick_schedule(beat())),
]
