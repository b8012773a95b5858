"""Helpers of the tests of budgets: a budget, what it holds, and usage of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetDimension,
    CreateBudgetArgs,
    ReportUsageResult,
    UsageDimensions,
    UsageOutcome,
)

TEAM = BudgetId("team")
HOUR = timedelta(hours=1)
OK = ReportUsageResult(outcome=UsageOutcome.OK)


def definition(hard: int | None = 100, soft: int | None = None, **changes: Any) -> BudgetDefinition:
    """Return a budget of one dimension, tokens."""
    dimension = BudgetDimension(name="tokens", hard_limit=hard, soft_limit=soft)
    return BudgetDefinition(**{"dimensions": [dimension], **changes})


def budget(engine: Engine, hard: int | None = 100, soft: int | None = None, **changes: Any) -> BudgetId:
    """Create a budget of one dimension, tokens."""
    name: BudgetId = changes.pop("name", TEAM)
    engine.create_budget(CreateBudgetArgs(budget_id=name, definition=definition(hard, soft, **changes)))
    return name


def tokens(amount: int, key: str | None = None) -> UsageDimensions:
    """Return the usage of some tokens."""
    return UsageDimensions(custom={"tokens": amount}, dedup_key=key)


def spend(engine: Engine, amount: int, key: str | None = None, name: BudgetId = TEAM) -> ReportUsageResult:
    """Report the usage of some tokens on behalf of an operator."""
    return engine.report_usage_admin(name, tokens(amount, key))


def used(engine: Engine, name: BudgetId = TEAM) -> int:
    """Return how many tokens a budget counts."""
    return engine.get_budget_status(name).usage["tokens"]


def breach(outcome: UsageOutcome, current: int, limit: int, **changes: Any) -> ReportUsageResult:
    """Return the answer that a limit of the tokens was passed."""
    return ReportUsageResult(outcome=outcome, dimension="tokens", current_usage=current, limit=limit, **changes)
