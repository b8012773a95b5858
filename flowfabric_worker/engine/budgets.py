"""The operations on budgets, which limit what executions spend."""

from __future__ import annotations

from collections.abc import Iterator

from flowfabric_worker.engine.budget_replies import definition_item, report_of, status_of
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.core import EngineCore
from flowfabric_worker.engine.ids import BudgetId, ExecutionId, check_execution_id, check_name
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.stores.base import Argument, Reply
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
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.wire import pack


class Budgets(EngineCore):
    """The operations of the area budgets."""

    def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        check_record(args, CreateBudgetArgs)
        definition = definition_item(check_record(args.definition, BudgetDefinition))
        answer = self._operate("create_budget", args.budget_id, *definition)
        return CreateBudgetResult(budget_id=args.budget_id, created=answer[0] == b"created")

    def update_budget(self, budget_id: BudgetId, definition: BudgetDefinition) -> BudgetStatus:
        item = definition_item(check_record(definition, BudgetDefinition))
        return self._status(budget_id, self._operate("update_budget", budget_id, *item)[1:])

    def reset_budget(self, budget_id: BudgetId) -> ResetBudgetResult:
        _, following = self._operate("reset_budget", budget_id)
        return ResetBudgetResult(budget_id=budget_id, next_reset_at_ms=int(following) if following else None)

    def delete_budget(self, budget_id: BudgetId) -> None:
        self._operate("delete_budget", budget_id)

    def get_budget_status(self, budget_id: BudgetId) -> BudgetStatus:
        partition, budget = self._budget(budget_id)
        return self._status(budget_id, self.call("read_budget", partition, [budget])[1:])

    def list_budgets(self, cursor: str | None = None, limit: int = 100) -> ListBudgetsPage:
        count = page_size(limit)
        first = b""
        if cursor is not None:
            name = read_cursor(lambda: check_name(cursor, "the cursor"), "a budget's id")
            first = self._packed_namespace + name.encode()
        if not count:
            return ListBudgetsPage(budgets=(), next_cursor=None)
        rows: dict[str, Reply] = {}
        for partition in range(self.partitions):
            for address, *parts in self._budgets_of(partition, first, count + 1):
                rows[address[len(self._packed_namespace) :].decode()] = parts
        names = sorted(rows)[: count + 1]
        page = tuple(self._row(name, rows[name]) for name in names[:count])
        return ListBudgetsPage(budgets=page, next_cursor=names[count - 1] if len(names) > count else None)

    def report_usage_admin(self, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        partition, item = self._spend(budget_id, dimensions)
        return report_of(self.call("spend", partition, [*item, "", ""]))

    def record_spend(self, args: RecordSpendArgs) -> ReportUsageResult:
        check_record(args, RecordSpendArgs)
        execution = check_execution_id(args.execution_id)
        partition, item = self._spend(args.budget_id, args.usage)
        there = self.check_partition(execution.partition_number)
        if there == partition:
            return report_of(self.call("spend", partition, [*item, execution.uuid, "here"]))
        # The execution notes the budget first, so that a share never outlives it.
        before = self.call("spend", partition, [*item, "", "check"])
        if before[0] != b"checked":
            return report_of(before)
        self.call("note_budget", there, [execution.uuid, self._packed_namespace, item[0]])
        return report_of(self.call("spend", partition, [*item, execution.uuid, "there"]))

    def release_budget(self, budget_id: BudgetId, execution_id: ExecutionId) -> ReleaseBudgetResult:
        execution = check_execution_id(execution_id)
        _, *released = self._operate("release_budget", budget_id, execution.uuid)
        names = (name.decode() for name in released[::2])
        amounts = dict(zip(names, map(int, released[1::2]), strict=True))
        return ReleaseBudgetResult(budget_id=budget_id, released=amounts)

    def _operate(self, function: str, budget_id: BudgetId, *arguments: Argument) -> Reply:
        """Call a function that changes a budget once; return its reply."""
        partition, budget = self._budget(budget_id)
        return self.call(function, partition, [budget, new_call_id(), *arguments])

    def _budget(self, budget_id: object) -> tuple[int, bytes]:
        """Return the partition of a budget, and its address there."""
        name = check_name(budget_id, "a budget's id")
        partition = partition_of_names((self.namespace, "budget", name), self.partitions)
        return partition, self._packed_namespace + name.encode()

    def _spend(self, budget_id: BudgetId, usage: UsageDimensions) -> tuple[int, list[Argument]]:
        """Return the partition of a budget, and the arguments that every report of usage has."""
        check_record(usage, UsageDimensions)
        partition, budget = self._budget(budget_id)
        amounts = pack(text for name, amount in usage.amounts().items() for text in (name, str(amount)))
        return partition, [budget, new_call_id(), usage.dedup_key or "", amounts, self._packed_namespace]

    def _budgets_of(self, partition: int, first: bytes, count: int) -> Iterator[Reply]:
        return read_rows(
            lambda after, most: self.call("list_budgets", partition, [self._packed_namespace, after, most]),
            first,
            count,
        )

    def _status(self, budget_id: str, parts: Reply) -> BudgetStatus:
        return status_of(budget_id, self.namespace, parts)

    def _row(self, name: str, parts: Reply) -> BudgetStatus | DamagedRow:
        if len(parts) == 1:
            return DamagedRow(name, parts[0].decode("utf-8", "replace"))
        return self._status(name, parts)
