"""The operations of the area quotas, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric_worker.engine.errors import UnavailableError

if TYPE_CHECKING:
    from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId
    from flowfabric_worker.engine.types.quotas import (
        CheckAdmissionArgs,
        CheckAdmissionResult,
        CreateQuotaPolicyArgs,
        CreateQuotaPolicyResult,
        ListQuotasPage,
        QuotaPolicy,
        QuotaPolicyStatus,
    )


class QuotasBackend:
    """Limit how many executions start and run."""

    def create_quota_policy(self, args: CreateQuotaPolicyArgs) -> CreateQuotaPolicyResult:
        """Create a quota policy.

        Args:
            args: the id of the policy, and what it allows.

        Returns:
            Whether the policy was created by this call; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a policy with that id differs; see `update_quota_policy`.
            ValidationError: `corruption`.
        """
        raise UnavailableError("create_quota_policy")

    def read_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus | None:
        """Read a quota policy and its counters.

        Args:
            quota_policy_id: the policy.

        Returns:
            The policy, or None if it does not exist.

        Raises:
            ValidationError: `corruption`; the message names the field.
        """
        raise UnavailableError("read_quota_policy")

    def update_quota_policy(self, quota_policy_id: QuotaPolicyId, policy: QuotaPolicy) -> QuotaPolicyStatus:
        """Change what a quota policy allows; slots that are held stay held.

        Args:
            quota_policy_id: the policy.
            policy: what it allows from now on.

        Returns:
            The policy as it is now.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        raise UnavailableError("update_quota_policy")

    def reset_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus:
        """Forget the attempts that a quota policy counts in its window; slots that are held stay held.

        Args:
            quota_policy_id: the policy.

        Returns:
            The policy as it is now.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        raise UnavailableError("reset_quota_policy")

    def delete_quota_policy(self, quota_policy_id: QuotaPolicyId) -> None:
        """Remove a quota policy that no execution needs.

        Args:
            quota_policy_id: the policy.

        Raises:
            NotFoundError: `quota_policy_not_found`.
            ConflictError: `quota_policy_in_use`, executions that have not ended name it.
        """
        raise UnavailableError("delete_quota_policy")

    def list_quotas(self, cursor: str | None = None, limit: int = 100) -> ListQuotasPage:
        """List the quota policies of the namespace by id.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most policies of the page, 1 to 1,000.

        Returns:
            A page of quota policies.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_quotas")

    def check_admission(self, args: CheckAdmissionArgs) -> CheckAdmissionResult:
        """Take a slot for an execution if it may run now.

        The slot is that of its next run, or of the present one. It is given back when that run ends, when `args.lease`
        is over and no run has begun, or by `release_admission`. The execution need not name the policy.

        Args:
            args: the policy and the execution.

        Returns:
            Whether the execution is admitted and, if not, which limit forbids it; a refusal is not counted.

        Raises:
            NotFoundError: `quota_policy_not_found`, `execution_not_found`.
            StateError: `execution_not_active`, the execution has ended.
            ConflictError: `admitted_elsewhere`, it has a slot of another policy.
        """
        raise UnavailableError("check_admission")

    def release_admission(self, quota_policy_id: QuotaPolicyId, execution_id: ExecutionId) -> bool:
        """Release the slot of an execution before its run ends; the window still counts its start.

        Args:
            quota_policy_id: the policy.
            execution_id: the execution.

        Returns:
            True if the execution held a slot.

        Raises:
            NotFoundError: `quota_policy_not_found`, `execution_not_found`.
        """
        raise UnavailableError("release_admission")
