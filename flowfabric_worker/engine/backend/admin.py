"""The operations of the area admin, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

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
    """What operators and producers do to an execution without a lease."""

    def cancel_execution(self, args: CancelExecutionArgs) -> CancelExecutionResult:
        """End an execution as cancelled, in any phase; of a cancelled one the same answer again.

        Raises:
            NotFoundError: `execution_not_found`.
            StateError: `execution_not_active`, it ended otherwise.
        """
        raise UnavailableError("cancel_execution")

    def change_priority(self, args: ChangePriorityArgs) -> ChangePriorityResult:
        """Change the priority of an execution that waits to run, whatever it waits for.

        Raises:
            ContentionError: `execution_not_eligible`, it runs or has ended.
        """
        raise UnavailableError("change_priority")

    def replay_execution(self, args: ReplayExecutionArgs) -> ReplayExecutionResult:
        """Run an ended execution again: a new attempt from a new place, retries counted anew, recorded steps kept.

        Raises:
            StateError: `execution_not_terminal`, `max_replays_exhausted`.
        """
        raise UnavailableError("replay_execution")

    def revoke_lease(self, args: RevokeLeaseArgs) -> RevokeLeaseResult:
        """Take a lease away: the work is ready again, and its old holder gets `lease_revoked`.

        Raises:
            StateError: `execution_not_active`, `stale_lease` when another lease than the expected one holds it.
        """
        raise UnavailableError("revoke_lease")

    def pause_lane(self, lane: str) -> bool:
        """Make a lane hand nothing out; it loses nothing. False if it was paused."""
        raise UnavailableError("pause_lane")

    def resume_lane(self, lane: str) -> bool:
        """Make a paused lane hand work out again. False if it was not paused."""
        raise UnavailableError("resume_lane")

    def set_tags(self, execution_id: ExecutionId, tags: Mapping[str, str]) -> int:
        """Add and replace tags; return how many the execution has now.

        Raises:
            ValidationError: `invalid_tag_key`, no tags, or more than 64 in all.
        """
        raise UnavailableError("set_tags")

    def purge(self, execution_id: ExecutionId) -> None:
        """Remove an ended execution with everything that it ever had, before its retention is over.

        A damaged execution is removed in any state.

        Raises:
            StateError: `execution_not_terminal`.
        """
        raise UnavailableError("purge")
