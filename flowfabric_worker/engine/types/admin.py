"""The arguments and results of the area admin."""

from __future__ import annotations

from enum import StrEnum

import attrs

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState


class CancelSource(StrEnum):
    """Who cancels an execution."""

    OPERATOR_OVERRIDE = "operator_override"
    LEASE_HOLDER = "lease_holder"
    FLOW_CASCADE = "flow_cascade"
    SYSTEM_TIMEOUT = "system_timeout"


@attrs.frozen(kw_only=True)
class CancelExecutionArgs:
    """An execution to cancel, in any phase."""

    execution_id: ExecutionId
    reason: str = ""
    source: CancelSource = CancelSource.OPERATOR_OVERRIDE


@attrs.frozen(kw_only=True)
class CancelExecutionResult:
    """An execution that is cancelled."""

    execution_id: ExecutionId
    state: PublicState = PublicState.CANCELLED


@attrs.frozen(kw_only=True)
class ChangePriorityArgs:
    """A new priority, 0 to 9000; values outside are clamped."""

    execution_id: ExecutionId
    priority: int


@attrs.frozen(kw_only=True)
class ChangePriorityResult:
    """The priority of an execution before and after a change."""

    execution_id: ExecutionId
    old_priority: int
    priority: int


@attrs.frozen(kw_only=True)
class ReplayExecutionArgs:
    """An ended execution to run again."""

    execution_id: ExecutionId


@attrs.frozen(kw_only=True)
class ReplayExecutionResult:
    """The state of an execution after its replay."""

    execution_id: ExecutionId
    state: PublicState


@attrs.frozen(kw_only=True)
class RevokeLeaseArgs:
    """A lease to revoke.

    Attributes:
        expected_lease_id: refuse the call if another lease holds the execution.
        worker_instance_id: do nothing if another worker instance holds the execution.
    """

    execution_id: ExecutionId
    reason: str = ""
    expected_lease_id: str | None = None
    worker_instance_id: str | None = None


@attrs.frozen(kw_only=True)
class Revoked:
    """The lease that was revoked."""

    lease_id: str
    lease_epoch: int


@attrs.frozen(kw_only=True)
class AlreadySatisfied:
    """Nothing had to be done; `reason` says why."""

    reason: str


RevokeLeaseResult = Revoked | AlreadySatisfied
