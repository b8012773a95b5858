"""What executions share, third part: budgets and quotas."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import BudgetId, ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetStatus,
    CreateBudgetArgs,
    CreateBudgetResult,
    ListBudgetsPage,
    RecordSpendArgs,
    ReleaseBudgetResult,
    ReportUsageResult,
    ResetBudgetResult,
    UsageDimensions,
)
from flowfabric_worker.engine.types.quotas import (
    CheckAdmissionArgs,
    CheckAdmissionResult,
    CreateQuotaPolicyArgs,
    CreateQuotaPolicyResult,
    ListQuotasPage,
    QuotaPolicy,
    QuotaPolicyStatus,
)


class AccountingBackend:
    """The operations of the rooms budgets and quotas. Both are known inside the engine's namespace only."""

    # ── budgets ──

    def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        """Creates a budget, all of whose counters are zero.

        Args:
            args: its id and its limits.

        Returns:
            Whether it was created now; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a budget of that id exists with other limits; see `update_budget`.
        """
        raise UnavailableError("create_budget")

    def update_budget(self, budget_id: BudgetId, definition: BudgetDefinition) -> BudgetStatus:
        """Gives a budget other limits. Counters stay, also of dimensions that are limited no more.

        Args:
            budget_id: the budget.
            definition: the limits in place of the present ones.

        Returns:
            The budget as it is now.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("update_budget")

    def reset_budget(self, budget_id: BudgetId) -> ResetBudgetResult:
        """Sets a budget's counters to zero and lets the executions go on that it held back.

        Args:
            budget_id: the budget.

        Returns:
            When it resets itself next.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("reset_budget")

    def get_budget_status(self, budget_id: BudgetId) -> BudgetStatus:
        """Reads a budget and its counters at one moment.

        Args:
            budget_id: the budget.

        Returns:
            The budget.

        Raises:
            NotFoundError: `budget_not_found`.
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("get_budget_status")

    def list_budgets(self, cursor: str | None = None, limit: int = 100) -> ListBudgetsPage:
        """Lists the namespace's budgets by id.

        Args:
            cursor: the page before's `next_cursor`; None begins.
            limit: rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_budgets")

    def report_usage(self, handle: Handle, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        """Adds what an execution used to a budget: everything, or nothing if a hard limit would be passed.

        Args:
            handle: the execution's.
            budget_id: the budget.
            dimensions: what was used; with a `dedup_key` the report may be sent again.

        Returns:
            How the budget stands to its limits; a repeated report gets its first answer, marked.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
            StateError: the lease is over.
        """
        raise UnavailableError("report_usage")

    def report_usage_admin(self, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        """Adds usage to a budget for an operator; otherwise as `report_usage`.

        Args:
            budget_id: the budget.
            dimensions: what was used.

        Returns:
            How the budget stands to its limits.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("report_usage_admin")

    def record_spend(self, args: RecordSpendArgs) -> ReportUsageResult:
        """Adds usage to a budget and remembers it per execution, so that `release_budget` can take it back.

        Args:
            args: the execution, the budget, and what was used.

        Returns:
            As `report_usage`.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
        """
        raise UnavailableError("record_spend")

    def release_budget(self, budget_id: BudgetId, execution_id: ExecutionId) -> ReleaseBudgetResult:
        """Takes back exactly what an execution recorded with `record_spend`; no counter falls below zero.

        Args:
            budget_id: the budget.
            execution_id: the execution.

        Returns:
            What was taken back; the same call again takes nothing more.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("release_budget")

    # ── quotas ──

    def create_quota_policy(self, args: CreateQuotaPolicyArgs) -> CreateQuotaPolicyResult:
        """Creates a quota policy.

        Args:
            args: its id and what it allows.

        Returns:
            Whether it was created now; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, one of that id exists that allows something else; see
                `update_quota_policy`.
        """
        raise UnavailableError("create_quota_policy")

    def read_quota_policy(self, quota_policy_id: QuotaPolicyId) -> QuotaPolicyStatus | None:
        """Reads a quota policy and what it counts at one moment.

        Args:
            quota_policy_id: the policy.

        Returns:
            The policy, or None when there is none.

        Raises:
            ValidationError: `corruption`, with the field.
        """
        raise UnavailableError("read_quota_policy")

    def update_quota_policy(self, quota_policy_id: QuotaPolicyId, policy: QuotaPolicy) -> QuotaPolicyStatus:
        """Lets a quota policy allow something else. Slots that are held stay held.

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
        """Lists the namespace's quota policies by id.

        Args:
            cursor: the page before's `next_cursor`; None begins.
            limit: rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_quotas")

    def check_admission(self, args: CheckAdmissionArgs) -> CheckAdmissionResult:
        """Asks whether an execution may run now, and takes its slot if it may.

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
        """Gives an execution's slot back before its run ends. The window still counts its start.

        Args:
            quota_policy_id: the policy.
            execution_id: the execution.

        Returns:
            Whether it held one.

        Raises:
            NotFoundError: `quota_policy_not_found`.
        """
        raise UnavailableError("release_admission")
