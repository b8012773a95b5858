"""The operations of the area quotas, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
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
            args: the id of the policy and what it allows.

        Returns:
            Whether the policy was created by this call; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a policy of that id allows something else; see `update_quota_policy`.
        """
        raise UnavailableError("create_quota_policy")

    def read_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus | None:
        """Read a quota policy and its counters at one moment.

        Args:
            quota_policy_id: the policy.

        Returns:
            The policy, or None when there is none.

        Raises:
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("read_quota_policy")

    def update_quota_policy(self, quota_policy_id: QuotaPolicyId, policy: QuotaPolicy) -> QuotaPolicyStatus:
        """Change what a quota policy allows. Slots that are held stay held.

        Args:
            quota_policy_id: the policy.
            policy: what it allows from now on.

        Returns:
            The policy as it is now.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        raise UnavailableError("update_quota_policy")

    def list_quotas(self, cursor: str | None = None, limit: int = 100) -> ListQuotasPage:
        """List the namespace's quota policies by id.

        Args:
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_quotas")

    def check_admission(self, args: CheckAdmissionArgs) -> CheckAdmissionResult:
        """Ask whether an execution may run now, and take its slot if it may.

        The slot is held until that run ends, however it ends, or `release_admission` gives it back.

        Args:
            args: the policy and the execution.

        Returns:
            Whether it is admitted; if not, which limit forbids it. A refusal counts nothing.

        Raises:
            NotFoundError: `quota_policy_not_found`, `execution_not_found`.
        """
        raise UnavailableError("check_admission")

    def release_admission(self, quota_policy_id: QuotaPolicyId, execution_id: ExecutionId) -> bool:
        """Give an execution's slot back before its run ends. The window still counts its start.

        Args:
            quota_policy_id: the policy.
            execution_id: the execution.

        Returns:
            Whether it held one.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        raise UnavailableError("release_admission")
