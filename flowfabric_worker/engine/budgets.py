"""The operations on budgets, which limit what executions spend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.budget_replies import (
    definition_item,
    report_of,
    reservation_of,
    settlement_of,
    status_of,
)
from flowfabric_worker.engine.conditions import to_postfix
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import BudgetId, ExecutionId, check_execution_id, check_name, uuid7
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.pages import page_size, read_cursor, read_rows
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.submission import Submission
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
    UsageOutcome,
    passed_limit,
)
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.conditions import OperatorOnly
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.wire import pack

log = logging.getLogger(__name__)


class Budgets(Submission):
    """The operations of the area budgets."""

    def create_budget(self, args: CreateBudgetArgs) -> CreateBudgetResult:
        check_record(args, CreateBudgetArgs)
        definition = definition_item(check_record(args.definition, BudgetDefinition))
        answer = self._operate("create_budget", args.budget_id, *definition)
        return CreateBudgetResult(budget_id=args.budget_id, created=answer[0] == b"created")

    def update_budget(self, budget_id: BudgetId, definition: BudgetDefinition) -> BudgetStatus:
        item = definition_item(check_record(definition, BudgetDefinition))
        return self._budget_status(budget_id, self._operate("update_budget", budget_id, *item)[1:])

    def reset_budget(self, budget_id: BudgetId) -> ResetBudgetResult:
        _, following = self._operate("reset_budget", budget_id)
        return ResetBudgetResult(budget_id=budget_id, next_reset_at_ms=int(following) if following else None)

    def delete_budget(self, budget_id: BudgetId) -> None:
        partition, budget = self._budget(budget_id)
        call_id = new_call_id()
        self.known_gates.clear()
        for other in range(self.partitions):
            while other != partition and self.call("disuse_budget", other, [budget])[0] == b"more":
                # Its classes were removed in part: each call removes a bounded number of them.
                continue
        while self.call("delete_budget", partition, [budget, call_id])[0] == b"more":
            continue

    def get_budget_status(self, budget_id: BudgetId) -> BudgetStatus:
        partition, budget = self._budget(budget_id)
        return self._budget_status(budget_id, self.call("read_budget", partition, [budget])[1:])

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
        page = tuple(self._budget_row(name, rows[name]) for name in names[:count])
        return ListBudgetsPage(budgets=page, next_cursor=names[count - 1] if len(names) > count else None)

    def report_usage(self, handle: Handle, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        key = check_record(dimensions, UsageDimensions).dedup_key or ""
        return report_of(self._use("report", handle, budget_id, key, dimensions))

    def reserve_budget(
        self, handle: Handle, budget_id: BudgetId, key: str, usage: UsageDimensions, hold: timedelta
    ) -> ReserveBudgetResult:
        held = milliseconds(hold, "hold", least=1)
        return reservation_of(self._use("reserve", handle, budget_id, check_name(key, "key"), usage, str(held)))

    def settle_budget(
        self, handle: Handle, budget_id: BudgetId, key: str, usage: UsageDimensions
    ) -> SettleBudgetResult:
        return settlement_of(self._use("settle", handle, budget_id, check_name(key, "key"), usage))

    def report_usage_admin(self, budget_id: BudgetId, dimensions: UsageDimensions) -> ReportUsageResult:
        partition, item = self._spend(budget_id, dimensions)
        return self._report(budget_id, dimensions, partition, [*item, "", ""])

    def record_spend(self, args: RecordSpendArgs) -> ReportUsageResult:
        check_record(args, RecordSpendArgs)
        execution = check_execution_id(args.execution_id)
        partition, item = self._spend(args.budget_id, args.usage)
        there = self.check_partition(execution.partition_number)
        if there == partition:
            return self._report(args.budget_id, args.usage, partition, [*item, execution.uuid, "here"])
        # The execution notes the budget first, so that a share never outlives it.
        before = self.call("spend", partition, [*item, "", "check"])
        if before[0] != b"checked":
            return report_of(before)
        self.call("note_budget", there, [execution.uuid, self._packed_namespace, item[0]])
        return self._report(args.budget_id, args.usage, partition, [*item, execution.uuid, "there"])

    def _report(self, name: BudgetId, usage: UsageDimensions, partition: int, arguments: Item) -> ReportUsageResult:
        """Spend what a report says that belongs to no handler; log it if the report has passed a soft limit."""
        report = report_of(self._paid(partition, self.call("spend", partition, arguments)))
        passed = passed_limit(usage.amounts(), report) if report.outcome is UsageOutcome.SOFT_BREACH else None
        if passed is not None:
            log.warning("Budget %r is above its limit of %s: %s of %s.", str(name), *passed)
        return report

    def release_budget(self, budget_id: BudgetId, execution_id: ExecutionId) -> ReleaseBudgetResult:
        execution = check_execution_id(execution_id)
        _, *released = self._operate("release_budget", budget_id, execution.uuid)
        names = (name.decode() for name in released[::2])
        amounts = dict(zip(names, map(int, released[1::2]), strict=True))
        return ReleaseBudgetResult(budget_id=budget_id, released=amounts)

    def _use(
        self, what: str, handle: Handle, budget_id: BudgetId, key: str, usage: UsageDimensions, hold: str = ""
    ) -> Reply:
        """Use a budget on behalf of the holder of an execution; return the answer.

        If the two are in different partitions this is a chain: the lease is checked, the budget is used, and the
        execution is stopped if the budget says so. Each step may be repeated, and a chain that breaks off leaves
        nothing that time or upkeep does not clear.
        """
        there, uuid, fence = self.fenced(handle)
        here, budget = self._budget(budget_id)
        amounts = _packed(check_record(usage, UsageDimensions))
        call_id = new_call_id()
        use: list[Argument] = [what, budget, call_id, key, amounts, hold]
        suspension: list[Argument] = [str(uuid7()), pack(to_postfix(OperatorOnly()))]
        if here == self.check_partition(there):
            return self._paid(here, self.call("use_budget", here, [uuid, fence, *use, *suspension]))
        begun = self.call("begin_use", there, [uuid, fence, call_id, budget, ""])
        if begun[0] != b"begun":
            return begun
        answer = self.call("apply_use", here, [*use, uuid, str(there), begun[1]])
        if answer[1] == b"reserved":
            # The end of the execution frees what its record names; if this step is not reached, time does.
            self.owing.add(there)
            self.call("begin_use", there, [uuid, fence, call_id, budget, "1"])
        if what != "settle" and answer[1] == b"hard_breach":
            self.owing.add(there)
            answer = self.call("stop_use", there, [uuid, fence, call_id, budget, *suspension, *answer])
            self.pay(there)
        return self._paid(here, answer)

    def _paid(self, partition: int, answer: Reply) -> Reply:
        """Pay what a partition owes after a use of a budget, if its answer says so; return the answer."""
        if answer[0].endswith(b"o"):
            self.pay(partition)
        return answer

    def _operate(self, function: str, budget_id: BudgetId, *arguments: Argument) -> Reply:
        """Call a function that changes a budget once; return its reply."""
        partition, budget = self._budget(budget_id)
        answer = self.call(function, partition, [budget, new_call_id(), *arguments])
        self.pay(partition)
        return answer

    def _spend(self, budget_id: BudgetId, usage: UsageDimensions) -> tuple[int, list[Argument]]:
        """Return the partition of a budget, and the arguments that every report of usage has."""
        check_record(usage, UsageDimensions)
        partition, budget = self._budget(budget_id)
        return partition, [budget, new_call_id(), usage.dedup_key or "", _packed(usage), self._packed_namespace]

    def _budgets_of(self, partition: int, first: bytes, count: int) -> Iterator[Reply]:
        return read_rows(
            lambda after, most: self.call("list_budgets", partition, [self._packed_namespace, after, most]),
            first,
            count,
        )

    def _budget_status(self, budget_id: str, parts: Reply) -> BudgetStatus:
        return status_of(budget_id, self.namespace, parts)

    def _budget_row(self, name: str, parts: Reply) -> BudgetStatus | DamagedRow:
        if len(parts) == 1:
            return DamagedRow(name, parts[0].decode("utf-8", "replace"))
        return self._budget_status(name, parts)


def _packed(usage: UsageDimensions) -> bytes:
    """Encode what was used, by dimension."""
    return pack(text for name, amount in usage.amounts().items() for text in (name, str(amount)))
