"""What a handler uses of budgets: `current().use()` and `current().reserve()`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import LeasedExecution
from flowfabric_worker._streams.frame_values import budget_limit_frame
from flowfabric_worker.budgets import Reservation
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, StateError
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import (
    OnHardLimit,
    ReportUsageResult,
    ReserveBudgetResult,
    SettleBudgetResult,
    UsageDimensions,
    passed_limit,
)
from flowfabric_worker.outcomes import Interrupted

log = log_queue.Log(__name__)
R = TypeVar("R")


class BudgetUses:
    """The uses of one run of a handler. Each has a number, by which a repeated run is counted once.

    Args:
        execution: the execution of the handler.
        engine: where the budgets are.
        hooks: are called when a budget stops the handler, and when a soft limit is passed.
    """

    def __init__(self, execution: LeasedExecution, engine: EngineBackend, hooks: Hooks) -> None:
        self._execution = execution
        self._engine = engine
        self._hooks = hooks
        self._numbers = itertools.count()

    def use(self, budget: str | None, amounts: Mapping[str, int]) -> None:
        """Count amounts against a budget, or against all of the execution."""
        claimed = self._execution.claimed
        key = f"{self._execution.key}:{claimed.handle.attempt_index}:{next(self._numbers)}"
        usage = UsageDimensions(custom=amounts, dedup_key=key)
        for each in self._budgets(budget):
            answer = self._fenced(partial(self._engine.report_usage, self._execution.handle, each, usage))
            self._check(each, answer)
            self._tell(each, amounts, answer)

    def reserve(self, budget: str | None, amounts: Mapping[str, int], hold: timedelta) -> Reservation:
        """Reserve amounts of a budget, or of all of the execution."""
        handle = self._execution.handle
        # A run that begins again after a wait spends again, so its reservations are others.
        key = f"{handle.lease_epoch}:{next(self._numbers)}"
        usage = UsageDimensions(custom=amounts)
        budgets = self._budgets(budget)
        for each in budgets:
            self._check(each, self._fenced(partial(self._engine.reserve_budget, handle, each, key, usage, hold)))
        return Reservation(amounts, partial(self._settle, budgets, key))

    def _settle(self, budgets: Sequence[BudgetId], key: str, amounts: Mapping[str, int]) -> None:
        usage = UsageDimensions(custom=amounts)
        for each in budgets:
            answer = self._fenced(partial(self._engine.settle_budget, self._execution.handle, each, key, usage))
            self._tell(each, amounts, answer)

    def _budgets(self, budget: str | None) -> Sequence[BudgetId]:
        if budget is not None:
            return (BudgetId(budget),)
        return tuple(map(BudgetId, self._execution.claimed.policy.budget_ids))

    def _check(self, budget: BudgetId, answer: ReportUsageResult | ReserveBudgetResult) -> None:
        """Leave the handler if a budget has stopped its execution."""
        if answer.consequence is None:
            return
        taken = f"{answer.current_usage} of {answer.limit}"
        reason = f"budget {budget!r} has reached its limit of {answer.dimension}, {taken}"
        failed = answer.consequence is OnHardLimit.FAIL
        execution = self._execution
        execution.lose(reason, partial(self._hooks.stopped_by_budget, execution, reason, budget, failed=failed))
        raise Interrupted(reason)

    def _tell(
        self, budget: BudgetId, amounts: Mapping[str, int], answer: ReportUsageResult | SettleBudgetResult
    ) -> None:
        """Tell by log, hook and frame that a use has passed a limit: the one use that did, of all workers."""
        passed = passed_limit(amounts, answer)
        if passed is None:
            return
        name, used, limit = passed
        text = f"budget {budget!r} is above its limit of {name}: {used} of {limit}"
        log.warning("%s", text, extra=self._execution.fields)
        self._hooks.tell("on_soft_limit", self._execution, text, budget=budget)
        frame = budget_limit_frame(budget, name, used, limit)
        try:
            self._fenced(partial(self._engine.append_frame, self._execution.handle, frame))
        except EngineError as error:
            # The amounts are counted, so a stream that is full or away must not fail the handler.
            log.warning("The stream does not tell that %s: %s", text, error, extra=self._execution.fields)

    def _fenced(self, call: Callable[[], R]) -> R:
        with self._execution.shield():
            try:
                return call()
            except StateError as error:
                self._execution.lose("lease lost")
                raise Interrupted(str(error)) from error
