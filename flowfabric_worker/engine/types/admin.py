"""The arguments and results of the area admin."""

from __future__ import annotations

from enum import StrEnum

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types import checks
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


class ReplaySteps(StrEnum):
    """What a replay does with the steps and the answered waits of the run before."""

    KEEP = "keep"
    FORGET = "forget"


def _steps(value: ReplaySteps | str) -> ReplaySteps:
    return checks.word(ReplaySteps, value, "steps")


@attrs.frozen(kw_only=True)
class ReplayExecutionArgs:
    """An ended execution to run again.

    Attributes:
        steps: whether steps and answered waits are kept or forgotten.
        from_step: the name of a step or of a wait: what was recorded before it is kept, it and what came after is
            forgotten.
    """

    execution_id: ExecutionId
    steps: ReplaySteps = attrs.field(default=ReplaySteps.KEEP, converter=_steps)
    from_step: str | None = attrs.field(default=None, validator=attrs.validators.optional(checks.name))

    def __attrs_post_init__(self) -> None:
        if self.from_step is not None and self.steps is ReplaySteps.FORGET:
            raise ValidationError("invalid_input", "from_step keeps some steps, steps='forget' none: give one of them.")


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
