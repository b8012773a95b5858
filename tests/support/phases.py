"""Executions in every phase, for tests of the operations that each phase allows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

import attrs

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed, ClaimForWorkerArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from tests.conftest import Clock
from tests.support.executions import BOOM, LEASE, created, running, upkeep_all

PHASES_LANE = "phases"
HOUR = timedelta(hours=1)


@attrs.frozen
class Phases:
    """Makes an execution and brings it into a phase; all in one lane. `creation` goes into its making."""

    engine: Engine
    clock: Clock
    creation: dict[str, Any] = attrs.field(factory=dict)

    def _created(self, **changes: Any) -> ExecutionId:
        return created(self.engine, **{"lane": PHASES_LANE, **self.creation, **changes})

    def _running(self, **changes: Any) -> Claimed:
        return running(self.engine, **{"lane": PHASES_LANE, **self.creation, **changes})

    # Waiting for something.

    def waiting(self) -> ExecutionId:
        return self._created()

    def delayed(self) -> ExecutionId:
        return self._created(delay=HOUR)

    def reserved(self) -> ExecutionId:
        self._created()
        args = ClaimForWorkerArgs(
            lane=PHASES_LANE, worker_id="w1", worker_instance_id="w1", grant=timedelta(seconds=60)
        )
        grant = self.engine.claim_for_worker(args)
        assert grant is not None
        return grant.execution_id

    def backing_off(self) -> ExecutionId:
        retry = RetryPolicy(initial=HOUR, maximum=HOUR, jitter=False)
        claimed = self._running(policy=ExecutionPolicy(retry=retry))
        self.engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
        return claimed.execution_id

    def interrupted(self) -> ExecutionId:
        claimed = self._running()
        self.engine.release(claimed.handle)
        return claimed.execution_id

    def parked(self) -> ExecutionId:
        claimed = self._running()
        self.engine.delay(claimed.handle, HOUR)
        return claimed.execution_id

    # Active.

    def active(self) -> ExecutionId:
        return self._running().execution_id

    def lapsed_unnoticed(self) -> ExecutionId:
        execution_id = self.active()
        self.clock.move(LEASE)
        return execution_id

    def lapsed(self) -> ExecutionId:
        execution_id = self.lapsed_unnoticed()
        upkeep_all(self.engine)
        return execution_id

    def revoked(self) -> ExecutionId:
        execution_id = self.active()
        self.engine.revoke_lease(RevokeLeaseArgs(execution_id=execution_id))
        return execution_id

    # Ended.

    def completed(self) -> ExecutionId:
        handle = self._running().handle
        self.engine.complete(handle, b"result")
        return handle.execution_id

    def failed(self) -> ExecutionId:
        handle = self._running().handle
        self.engine.fail(handle, BOOM, FailureClass.PERMANENT)
        return handle.execution_id

    def cancelled(self) -> ExecutionId:
        execution_id = self.waiting()
        self.engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))
        return execution_id

    def cancelled_by_holder(self) -> ExecutionId:
        handle = self._running().handle
        self.engine.cancel(handle, "enough")
        return handle.execution_id

    def expired(self) -> ExecutionId:
        execution_id = self._created(deadline=self.clock.now + timedelta(seconds=1))
        self.clock.move(timedelta(seconds=1))
        upkeep_all(self.engine)
        return execution_id


Phase: TypeAlias = Callable[[Phases], ExecutionId]

RUNNABLE: tuple[Phase, ...] = (
    Phases.waiting, Phases.delayed, Phases.reserved, Phases.backing_off, Phases.interrupted, Phases.parked
)  # fmt: skip
ACTIVE: tuple[Phase, ...] = (Phases.active, Phases.lapsed, Phases.lapsed_unnoticed, Phases.revoked)
ENDED: tuple[Phase, ...] = (
    Phases.completed, Phases.failed, Phases.cancelled, Phases.cancelled_by_holder, Phases.expired
)  # fmt: skip
