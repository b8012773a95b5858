"""The operations of the area budgets, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from typing import TYPE_CHECKING

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle

if TYPE_CHECKING:
    from datetime import timedelta

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
        ReserveBudgetResult,
        ResetBudgetResult,
        SettleBudgetResult,
        UsageDimensions,
    )


class BudgetsBackend:
    """Limit what executions spend."""

    def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        """Create a budget, whose counters are zero.

        Args:
            args: the id and the limits of the budget.

        Returns:
            Whether this call created the budget; the same call again changes nothing.

        Raises:
            ConflictError: `conflict`, a budget with that id has other limits; see `update_budget`.
        """
        raise UnavailableError("create_budget")

    def update_budget(self, budget_id: BudgetId, definition: BudgetDefinition) -> BudgetStatus:
        """Change the limits of a budget; counters are kept, also those of dimensions without a limit.

        Args:
            budget_id: the budget.
            definition: the new limits.

        Returns:
            The budget as it is now.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("update_budget")

    def reset_budget(self, budget_id: BudgetId) -> ResetBudgetResult:
        """Set the counters of a budget to zero, and let the executions continue that it had blocked.

        What is reserved stays reserved. An automatic reset follows one interval later.

        Args:
            budget_id: the budget.

        Returns:
            The time of its next automatic reset.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("reset_budget")

    def delete_budget(self, budget_id: BudgetId) -> None:
        """Remove a budget.

        Args:
            budget_id: the budget.

        Raises:
            NotFoundError: `budget_not_found`.
            ConflictError: `budget_in_use`, executions that have not ended name it.
        """
        raise UnavailableError("delete_budget")

    def get_budget_status(self, budget_id: BudgetId) -> BudgetStatus:
        """Read a budget and its counters.

        Args:
            budget_id: the budget.

        Returns:
            The budget.

        Raises:
            NotFoundError: `budget_not_found`.
            ValidationError: `corruption`; the message names the field.
        """
        raise UnavailableError("get_budget_status")

    def list_budgets(self, cursor: str | None = None, limit: int = 100) -> ListBudgetsPage:
        """List the budgets of the namespace by id.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most budgets of the page, 1 to 1,000.

        Returns:
            A page of budgets.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_budgets")

    def report_usage(self, handle: Handle, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        """Add what an execution used to a budget; add nothing if that would exceed a hard limit.

        After a breach the lease has ended, in the same step: the execution is blocked or suspended until the budget has
        space for the report, or it has failed, as the budget's `on_hard_limit` says.

        Args:
            handle: the lease of the execution.
            budget_id: the budget.
            dimensions: what was used; with a `dedup_key` the report may be sent again.

        Returns:
            How the budget compares with its limits; a repeated report gets its first answer, which is marked.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
            ValidationError: `too_many_dimensions`, the budget would count in more than 64 dimensions.
            StateError: the lease has ended.
        """
        raise UnavailableError("report_usage")

    def reserve_budget(
        self, handle: Handle, budget_id: BudgetId, key: str, usage: UsageDimensions, hold: timedelta
    ) -> ReserveBudgetResult:
        """Reserve amounts of a budget for an execution before they are used.

        What is reserved counts against the hard limits until it is settled, its time is over, or the execution has
        ended. If the amounts do not fit, nothing is reserved, and the lease has ended as after a breach of
        `report_usage`.

        Args:
            handle: the lease of the execution.
            budget_id: the budget.
            key: the name of the reservation in the execution; the same key is the same reservation.
            usage: the amounts.
            hold: for how long they are reserved.

        Returns:
            Until when the amounts are reserved, or in which dimension they do not fit.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
            ValidationError: `reservation_never_fits`, an amount is above its hard limit; `too_many_dimensions`.
            ResourceExhaustedError: `too_many_reservations`, the execution has 100 open ones at the budget.
            StateError: the lease has ended; `reservation_settled`.
        """
        raise UnavailableError("reserve_budget")

    def settle_budget(
        self, handle: Handle, budget_id: BudgetId, key: str, usage: UsageDimensions
    ) -> SettleBudgetResult:
        """Add what was used to a budget in place of what was reserved, even if it is more or the reservation is over.

        Args:
            handle: the lease of the execution.
            budget_id: the budget.
            key: the name of the reservation in the execution.
            usage: what was used.

        Returns:
            How the budget compares with its limits, and whether a reservation was open; the same key gets the first
            answer again, which is marked.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
            ValidationError: `too_many_dimensions`.
            StateError: the lease has ended.
        """
        raise UnavailableError("settle_budget")

    def report_usage_admin(self, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        """Add usage to a budget on behalf of an operator; otherwise the same as `report_usage`.

        A report that passes a soft limit is logged, because it belongs to no handler whose hooks could be called.

        Args:
            budget_id: the budget.
            dimensions: what was used.

        Returns:
            How the budget stands to its limits.

        Raises:
            NotFoundError: `budget_not_found`.
            ValidationError: `too_many_dimensions`.
        """
        raise UnavailableError("report_usage_admin")

    def record_spend(self, args: RecordSpendArgs) -> ReportUsageResult:
        """Add usage to a budget, and record it per execution, so that `release_budget` can take it back.

        Args:
            args: the execution, the budget, and what was used.

        Returns:
            The same as `report_usage`.

        Raises:
            NotFoundError: `budget_not_found`, `execution_not_found`.
            ValidationError: `too_many_dimensions`.
        """
        raise UnavailableError("record_spend")

    def release_budget(self, budget_id: BudgetId, execution_id: ExecutionId) -> ReleaseBudgetResult:
        """Take back exactly what an execution spent by `record_spend`; no counter falls below zero.

        Args:
            budget_id: the budget.
            execution_id: the execution.

        Returns:
            What was taken back; the same call again takes nothing more.

        Raises:
            NotFoundError: `budget_not_found`.
        """
        raise UnavailableError("release_budget")
