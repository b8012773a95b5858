"""operating: arguments and results."""

from __future__ import annotations

from enum import StrEnum

import attrs

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState


class CancelSource(StrEnum):
    """Who cancelled."""

    OPERATOR_OVERRIDE = "operator_override"
    LEASE_HOLDER = "lease_holder"
    FLOW_CASCADE = "flow_cascade"
    SYSTEM_TIMEOUT = "system_timeout"


@attrs.frozen(kw_only=True)
class CancelExecutionArgs:
    """Cancels an execution in any phase."""

    execution_id: ExecutionId
    reason: str = ""
    source: CancelSource = CancelSource.OPERATOR_OVERRIDE


@attrs.frozen(kw_only=True)
class CancelExecutionResult:
    """The execution is cancelled."""

    execution_id: ExecutionId
    state: PublicState = PublicState.CANCELLED


@attrs.frozen(kw_only=True)
class ChangePriorityArgs:
    """A new priority, 0 to 9000; others are clamped."""

    execution_id: ExecutionId
    priority: int


@attrs.frozen(kw_only=True)
class ChangePriorityResult:
    """The priority that it had, and the one that it has."""

    execution_id: ExecutionId
    old_priority: int
    priority: int


@attrs.frozen(kw_only=True)
class ReplayExecutionArgs:
    """Runs an ended execution again."""

    execution_id: ExecutionId


@attrs.frozen(kw_only=True)
class ReplayExecutionResult:
    """The state after the replay."""

    execution_id: ExecutionId
    state: PublicState


@attrs.frozen(kw_only=True)
class RevokeLeaseArgs:
    """Takes a lease away.

    Attributes:
        expected_lease_id: refuse if another lease holds it now.
        worker_instance_id: do nothing if another worker holds it now.
    """

    execution_id: ExecutionId
    reason: str = ""
    expected_lease_id: str | None = None
    worker_instance_id: str | None = None


@attrs.frozen(kw_only=True)
class Revoked:
    """The lease that was taken away."""

    lease_id: str
    lease_epoch: int


@attrs.frozen(kw_only=True)
class AlreadySatisfied:
    """There was nothing to do; `reason` says why."""

    reason: str


RevokeLeaseResult = Revoked | AlreadySatisfied
