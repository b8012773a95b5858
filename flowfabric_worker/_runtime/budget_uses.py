"""What a handler uses of budgets: `current().use()` and `current().reserve()`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import Final, NoReturn, TypeVar

from flowfabric_worker._runtime.lease_table import LeasedExecution
from flowfabric_worker.budgets import Reservation
from flowfabric_worker.context import log_fields
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import (
    ReportUsageResult,
    ReserveBudgetResult,
    SettleBudgetResult,
    UsageDimensions,
    UsageOutcome,
)
from flowfabric_worker.outcomes import Interrupted

log = log_queue.Log(__name__)
R = TypeVar("R")

# The counters above their soft limits that this process has told of; one that has fallen meanwhile is told of again.
_told: Final[dict[tuple[str, str | None], int]] = {}
_telling = threading.Lock()


class BudgetUses:
    """The uses of one run of a handler. Each has a number, by which a repeated run is counted once.

    Args:
        execution: the execution of the handler.
        engine: where the budgets are.
        shield: defers the interruption of the handler.
    """

    def __init__(
        self, execution: LeasedExecution, engine: EngineBackend, shield: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._execution = execution
        self._engine = engine
        self._shield = shield
        self._numbers = itertools.count()

    def use(self, budget: str | None, amounts: Mapping[str, int]) -> None:
        """Count amounts against a budget, or against all of the execution."""
        claimed = self._execution.claimed
        key = f"{self._execution.key}:{claimed.handle.attempt_index}:{next(self._numbers)}"
        usage = UsageDimensions(custom=amounts, dedup_key=key)
        for each in self._budgets(budget):
            self._checked(each, self._fenced(partial(self._engine.report_usage, self._execution.handle, each, usage)))

    def reserve(self, budget: str | None, amounts: Mapping[str, int], hold: timedelta) -> Reservation:
        """Reserve amounts of a budget, or of all of the execution."""
        handle = self._execution.handle
        # A run that begins again after a wait spends again, so its reservations are others.
        key = f"{handle.lease_epoch}:{next(self._numbers)}"
        usage = UsageDimensions(custom=amounts)
        budgets = self._budgets(budget)
        for each in budgets:
            self._checked(each, self._fenced(partial(self._engine.reserve_budget, handle, each, key, usage, hold)))
        return Reservation(amounts, partial(self._settle, budgets, key))

    def _settle(self, budgets: Sequence[BudgetId], key: str, amounts: Mapping[str, int]) -> None:
        usage = UsageDimensions(custom=amounts)
        for each in budgets:
            answer = self._fenced(partial(self._engine.settle_budget, self._execution.handle, each, key, usage))
            self._tell(each, answer)

    def _budgets(self, budget: str | None) -> Sequence[BudgetId]:
        if budget is not None:
            return (BudgetId(budget),)
        return tuple(map(BudgetId, self._execution.claimed.policy.budget_ids))

    def _checked(self, budget: BudgetId, answer: ReportUsageResult | ReserveBudgetResult) -> None:
        """Leave the handler if a budget has stopped its execution; tell of a soft limit."""
        if answer.consequence is not None:
            taken = f"{answer.current_usage} of {answer.limit}"
            self._lose(f"budget {budget!r} has reached its limit of {answer.dimension}, {taken}")
        if isinstance(answer, ReportUsageResult):
            self._tell(budget, answer)

    def _tell(self, budget: BudgetId, answer: ReportUsageResult | SettleBudgetResult) -> None:
        """Log once that a counter is above its soft limit."""
        if answer.outcome is UsageOutcome.OK or answer.current_usage is None:
            return
        place = (budget, answer.dimension)
        with _telling:
            is_known = _told.get(place, answer.current_usage + 1) <= answer.current_usage
            _told[place] = answer.current_usage
        if not is_known:
            claimed = self._execution.claimed
            log.warning(
                "budget %r is above its limit of %s: %s of %s",
                budget,
                answer.dimension,
                answer.current_usage,
                answer.limit,
                extra=log_fields(claimed.task, claimed.handle.lane, claimed.handle.attempt_index, self._execution.key),
            )

    def _fenced(self, call: Callable[[], R]) -> R:
        with self._shield():
            try:
                return call()
            except StateError as error:
                self._execution.lose("lease lost")
                raise Interrupted(str(error)) from error

    def _lose(self, reason: str) -> NoReturn:
        self._execution.lose(reason)
        raise Interrupted(reason)
