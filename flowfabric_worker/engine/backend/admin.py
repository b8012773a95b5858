"""The operations of the area admin, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from collections.abc import Mapping

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    CancelExecutionResult,
    ChangePriorityArgs,
    ChangePriorityResult,
    ReplayExecutionArgs,
    ReplayExecutionResult,
    RevokeLeaseArgs,
    RevokeLeaseResult,
)


class AdminBackend:
    """What operators and producers do to executions and lanes, without a lease."""

    def cancel_execution(self, args: CancelExecutionArgs) -> CancelExecutionResult:
        """End an execution as cancelled, in any phase.

        Args:
            args: the execution, the reason, and who cancels it.

        Returns:
            The cancelled execution, also if it was cancelled before.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, the execution has ended with another outcome.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("cancel_execution")

    def change_priority(self, args: ChangePriorityArgs) -> ChangePriorityResult:
        """Change the priority of a runnable execution, also of a delayed or a blocked one.

        Args:
            args: the execution and its new priority, 0 to 9000; values outside are clamped.

        Returns:
            The priority before and the new one.

        Raises:
            NotFoundError: `execution_not_found`.
            ContentionError: `execution_not_eligible`, the execution runs or has ended.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("change_priority")

    def replay_execution(self, args: ReplayExecutionArgs) -> ReplayExecutionResult:
        """Run an ended execution again, as a new attempt in a new place.

        Retries are counted from zero again. Steps and answered waits are kept, unless the arguments say otherwise. A
        wait that is forgotten begins with another waitpoint; tokens of the one before get `waitpoint_closed`.

        Args:
            args: the execution, and which steps to keep.

        Returns:
            The execution and its new public state.

        Raises:
            NotFoundError: `execution_not_found`; `step_not_found`, nothing was recorded under `from_step`.
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("replay_execution")

    def revoke_lease(self, args: RevokeLeaseArgs) -> RevokeLeaseResult:
        """Take a lease away from its holder, which then gets `lease_revoked`; the execution is ready again.

        Args:
            args: the execution, the reason, and which lease or worker instance is expected to hold it.

        Returns:
            `Revoked` with the lease and its epoch, or `AlreadySatisfied` with the reason why nothing was revoked.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`; `stale_lease`, another lease than the expected one holds the execution.
        """
        raise UnavailableError("revoke_lease")

    def pause_lane(self, lane: str) -> bool:
        """Stop handing out a lane's work. The lane keeps its work and accepts more.

        Args:
            lane: the lane.

        Returns:
            False if the lane was paused before.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("pause_lane")

    def resume_lane(self, lane: str) -> bool:
        """Hand out a paused lane's work again.

        Args:
            lane: the lane.

        Returns:
            False if the lane was not paused.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("resume_lane")

    def set_tags(self, execution_id: ExecutionId, tags: Mapping[str, str]) -> int:
        """Add tags to an execution and replace those that it has.

        Args:
            execution_id: the execution.
            tags: values by key; a value has at most 1 KiB.

        Returns:
            How many tags the execution has now.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_tag_key`; `invalid_input`, no tags, or more than 64 in all.
        """
        raise UnavailableError("set_tags")

    def purge(self, execution_id: ExecutionId) -> None:
        """Remove an ended execution with all its keys before its retention is over, or a damaged one in any phase.

        Args:
            execution_id: the execution.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_terminal`; `flow_not_terminal`, it is a member of a flow that has not ended.
        """
        raise UnavailableError("purge")
