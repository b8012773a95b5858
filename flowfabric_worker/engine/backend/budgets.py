"""The operations of the area budgets, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import BudgetId, ExecutionId
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


class BudgetsBackend:
    """Limit what executions spend."""

    def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        """Create a budget, all of whose counters are zero.

        Args:
            args: its id and its limits.

        Returns:
            Whether this call created it; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a budget of that id exists with other limits; see `update_budget`.
        """
        raise UnavailableError("create_budget")

    def update_budget(self, budget_id: BudgetId, definition: BudgetDefinition) -> BudgetStatus:
        """Give a budget other limits. Counters stay, also of dimensions that are limited no more.

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
        """Set a budget's counters to zero and let the executions go on that it held back.

        Args:
            budget_id: the budget.

        Returns:
            When it resets itself next.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("reset_budget")

    def get_budget_status(self, budget_id: BudgetId) -> BudgetStatus:
        """Read a budget and its counters at one moment.

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
        """List the namespace's budgets by id.

        Args:
            cursor: the `next_cursor` of the page before; None for the first page.
            limit: most rows of the page, 1 to 1,000.

        Returns:
            A page.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_budgets")

    def report_usage(self, handle: Handle, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        """Add what an execution used to a budget: everything, or nothing if a hard limit would be passed.

        Args:
            handle: the lease of the execution.
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
        """Add usage to a budget for an operator; otherwise as `report_usage`.

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
        """Add usage to a budget and remember it per execution, so that `release_budget` can take it back.

        Args:
            args: the execution, the budget, and what was used.

        Returns:
            As `report_usage`.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
        """
        raise UnavailableError("record_spend")

    def release_budget(self, budget_id: BudgetId, execution_id: ExecutionId) -> ReleaseBudgetResult:
        """Take back exactly what an execution recorded with `record_spend`; no counter falls below zero.

        Args:
            budget_id: the budget.
            execution_id: the execution.

        Returns:
            What was taken back; the same call again takes nothing more.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("release_budget")
