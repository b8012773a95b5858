"""Work of another namespace does not exist for operators, readers and workers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.claiming import (
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)
from flowfabric_worker.engine.types.submission import Duplicate
from tests.support.dumps import Dump
from tests.support.executions import LANE, created, creation, refused, running, tenant

SECOND = timedelta(seconds=1)
Call = Callable[[Engine, ExecutionId], Any]

REFUSED: dict[str, Call] = {
    "cancel_execution": lambda engine, each: engine.cancel_execution(CancelExecutionArgs(execution_id=each)),
    "change_priority": lambda engine, each: engine.change_priority(ChangePriorityArgs(execution_id=each, priority=1)),
    "replay_execution": lambda engine, each: engine.replay_execution(ReplayExecutionArgs(execution_id=each)),
    "revoke_lease": lambda engine, each: engine.revoke_lease(RevokeLeaseArgs(execution_id=each)),
    "set_tags": lambda engine, each: engine.set_tags(each, {"a": "1"}),
    "purge": lambda engine, each: engine.purge(each),
    "read_outcome": lambda engine, each: engine.read_outcome(each),
    "wait_for_result": lambda engine, each: engine.wait_for_result(each, SECOND),
    "claim_resumed_execution": lambda engine, each: engine.claim_resumed_execution(
        ClaimResumedExecutionArgs(execution_id=each, worker_id="w1", worker_instance_id="w1")
    ),
}
UNSEEN: dict[str, Call] = {
    "describe_execution": lambda engine, each: engine.describe_execution(each),
    "read_execution_info": lambda engine, each: engine.read_execution_info(each),
    "read_execution_state": lambda engine, each: engine.read_execution_state(each),
    "resolve_execution_flow_id": lambda engine, each: engine.resolve_execution_flow_id(each),
    "get_execution_result": lambda engine, each: engine.get_execution_result(each),
    "explain_execution": lambda engine, each: engine.explain_execution(each),
    "claim_from_reclaim": lambda engine, each: engine.claim_from_reclaim(
        ReclaimToken(
            grant=ClaimGrant(execution_id=each, worker_id="w1", expires_at_ms=0),
            worker_id="w1",
            worker_instance_id="w1",
        )
    ),
}


def _waiting(engine: Engine) -> ExecutionId:
    return created(engine)


def _running(engine: Engine) -> ExecutionId:
    return running(engine, lane=LANE).execution_id


def _ended(engine: Engine) -> ExecutionId:
    claimed = running(engine, lane=LANE)
    engine.complete(claimed.handle, b"5")
    return claimed.execution_id


def _reserved(engine: Engine) -> ExecutionId:
    created(engine)
    grant = engine.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1"))
    assert grant is not None
    return grant.execution_id


phases = pytest.mark.parametrize("make", [_waiting, _running, _ended, _reserved])


@phases
@pytest.mark.parametrize("operation", REFUSED)
def test_an_execution_of_another_namespace_is_not_found(
    engine: Engine, dump: Dump, operation: str, make: Callable[[Engine], ExecutionId]
) -> None:
    theirs = make(tenant(engine, "other"))
    before = dump()

    with refused("execution_not_found") as caught:
        REFUSED[operation](engine, theirs)

    assert isinstance(caught.value, NotFoundError)
    assert dump() == before


@phases
@pytest.mark.parametrize("operation", UNSEEN)
def test_an_execution_of_another_namespace_is_not_seen(
    engine: Engine, dump: Dump, operation: str, make: Callable[[Engine], ExecutionId]
) -> None:
    theirs = make(tenant(engine, "other"))
    before = dump()

    assert UNSEEN[operation](engine, theirs) is None
    assert dump() == before


def test_an_id_that_another_namespace_uses_is_taken_by_another_request(engine: Engine) -> None:
    theirs = created(tenant(engine, "other"))

    assert engine.create_execution(creation(execution_id=theirs)) == Duplicate(execution_id=theirs, same_request=False)
