"""reads: the depths of a lane follow everything that happens to its work, and never drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import ClaimForWorkerArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import (
    BOOM,
    LANE,
    claim_one,
    created,
    request,
    running,
    upkeep_all,
)

SECOND = timedelta(seconds=1)
RETRY = ExecutionPolicy(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=SECOND, jitter=False))


Step = Callable[[Engine, Clock], object]


def recounted(engine: Engine) -> dict[tuple[str | None, PublicState | None], int]:
    """Return what each lane holds per state, counted execution by execution."""
    return dict(Counter((row.lane, row.public_state) for row in engine.list_executions(limit=1000).executions))


def counted(engine: Engine) -> dict[tuple[str | None, PublicState | None], int]:
    """Return what the counters of the lanes say."""
    return {
        (lane.lane, state): count
        for lane in engine.list_lanes().lanes
        for state, count in lane.depths.items()
        if count != 0
    }


def _purge(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    engine.complete(claimed.handle)
    engine.purge(claimed.execution_id)


def _replay(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    engine.complete(claimed.handle)
    engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))


def _lapse(engine: Engine, clock: Clock) -> None:
    running(engine, lane=LANE)
    clock.move(timedelta(minutes=1))
    upkeep_all(engine)


def _reclaim(engine: Engine, clock: Clock) -> None:
    _lapse(engine, clock)
    engine.complete(claim_one(engine).handle)


def _exhaust(engine: Engine, clock: Clock) -> None:
    running(engine, lane=LANE, policy=ExecutionPolicy(max_reclaim_count=0))
    clock.move(timedelta(minutes=1))
    assert engine.claim_many(request(LANE)) == []


def _expire(engine: Engine, clock: Clock) -> None:
    created(engine, policy=ExecutionPolicy(execution_deadline=SECOND))
    clock.move(SECOND)
    upkeep_all(engine)


def _time_out(engine: Engine, clock: Clock) -> None:
    running(engine, lane=LANE, policy=ExecutionPolicy(attempt_timeout=SECOND))
    clock.move(SECOND)
    upkeep_all(engine)


def _retain(engine: Engine, clock: Clock) -> None:
    engine.complete(running(engine, lane=LANE, policy=ExecutionPolicy(retention=SECOND)).handle)
    clock.move(SECOND)
    upkeep_all(engine)


def _promote(engine: Engine, clock: Clock) -> None:
    created(engine, delay=SECOND)
    clock.move(SECOND)
    upkeep_all(engine)


TRANSITIONS: dict[str, tuple[Step, PublicState | None]] = {
    "created": (lambda e, _: created(e), PublicState.WAITING),
    "created later": (lambda e, _: created(e, delay=SECOND), PublicState.DELAYED),
    "promoted": (_promote, PublicState.WAITING),
    "claimed": (lambda e, _: running(e, lane=LANE), PublicState.ACTIVE),
    "completed": (lambda e, _: e.complete(running(e, lane=LANE).handle), PublicState.COMPLETED),
    "failed": (lambda e, _: e.fail(running(e, lane=LANE).handle, BOOM, FailureClass.PERMANENT), PublicState.FAILED),
    "retried": (
        lambda e, _: e.fail(running(e, lane=LANE, policy=RETRY).handle, BOOM, FailureClass.TRANSIENT),
        PublicState.DELAYED,
    ),
    "failed as cancelled": (
        lambda e, _: e.fail(running(e, lane=LANE).handle, BOOM, FailureClass.CANCELLED),
        PublicState.CANCELLED,
    ),
    "cancelled by its holder": (lambda e, _: e.cancel(running(e, lane=LANE).handle), PublicState.CANCELLED),
    "cancelled": (
        lambda e, _: e.cancel_execution(CancelExecutionArgs(execution_id=created(e))),
        PublicState.CANCELLED,
    ),
    "released": (lambda e, _: e.release(running(e, lane=LANE).handle), PublicState.WAITING),
    "released for later": (lambda e, _: e.release(running(e, lane=LANE).handle, SECOND), PublicState.DELAYED),
    "parked": (lambda e, _: e.delay(running(e, lane=LANE).handle, SECOND), PublicState.DELAYED),
    "without children": (lambda e, _: e.wait_children(running(e, lane=LANE).handle), PublicState.WAITING),
    "reserved": (
        lambda e, _: created(e) and e.claim_for_worker(
            ClaimForWorkerArgs(lane=LANE, worker_id="w", worker_instance_id="w")
        ),
        PublicState.WAITING,
    ),
    "revoked": (
        lambda e, _: e.revoke_lease(RevokeLeaseArgs(execution_id=running(e, lane=LANE).execution_id)),
        PublicState.ACTIVE,
    ),
    "lapsed": (_lapse, PublicState.ACTIVE),
    "reclaimed": (_reclaim, PublicState.COMPLETED),
    "reclaimed too often": (_exhaust, PublicState.FAILED),
    "timed out": (_time_out, PublicState.FAILED),
    "past its deadline": (_expire, PublicState.EXPIRED),
    "replayed": (_replay, PublicState.WAITING),
    "purged": (_purge, None),
    "past its retention": (_retain, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSITIONS)
def test_the_depths_of_a_lane_follow_every_transition(engine: Engine, clock: Clock, name: str) -> None:
    step, state = TRANSITIONS[name]

    step(engine, clock)

    assert counted(engine) == ({} if state is None else {(LANE, state): 1})
    assert counted(engine) == recounted(engine)
