"""The arguments and results of the area budgets: limits on what executions may spend, and what they spent."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import BudgetId, ExecutionId
from flowfabric_worker.engine.limits import MAX_BUDGET_DIMENSIONS, MAX_COUNT
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow

_limit = checks.integer(1, MAX_COUNT)
_amount = checks.integer(0, MAX_COUNT)


class OnHardLimit(StrEnum):
    """What happens to an execution whose report or reservation does not fit under a hard limit."""

    FAIL = "fail"
    SUSPEND = "suspend"
    BLOCK = "block"


class OnSoftLimit(StrEnum):
    """What happens after a report passes a soft limit."""

    WARN = "warn"


def _on_hard_limit(word: str) -> OnHardLimit:
    return checks.word(OnHardLimit, word, "on_hard_limit")


def _on_soft_limit(word: str) -> OnSoftLimit:
    return checks.word(OnSoftLimit, word, "on_soft_limit")


@attrs.frozen(kw_only=True)
class BudgetDimension:
    """One counter of a budget; None is no limit. A counter may reach its limit, and breaches it above."""

    name: str = attrs.field(validator=checks.name)
    hard_limit: int | None = attrs.field(default=None, validator=optional(_limit))
    soft_limit: int | None = attrs.field(default=None, validator=optional(_limit))

    def __attrs_post_init__(self) -> None:
        if self.hard_limit is not None and self.soft_limit is not None and self.soft_limit > self.hard_limit:
            raise ValidationError(
                "invalid_input",
                f"The soft limit of {self.name}, {self.soft_limit}, is above its hard limit, {self.hard_limit}; "
                "lower it.",
            )


@attrs.frozen(kw_only=True)
class BudgetDefinition:
    """What a budget limits.

    Attributes:
        dimensions: its counters, at most 64, each name once.
        on_hard_limit: what a breach of a hard limit by the holder of an execution causes. New work always waits at the
            limit.
        on_soft_limit: what a breach of a soft limit causes.
        reset_interval: how often the counters are set to zero, at least 1 ms; None for never.
    """

    dimensions: tuple[BudgetDimension, ...] = attrs.field(
        converter=checks.as_tuple, validator=checks.at_most(MAX_BUDGET_DIMENSIONS)
    )
    on_hard_limit: OnHardLimit = attrs.field(default=OnHardLimit.BLOCK, converter=_on_hard_limit)
    on_soft_limit: OnSoftLimit = attrs.field(default=OnSoftLimit.WARN, converter=_on_soft_limit)
    reset_interval: timedelta | None = attrs.field(default=None, validator=optional(checks.duration(1)))

    def __attrs_post_init__(self) -> None:
        names = [checks.check_record(dimension, BudgetDimension).name for dimension in self.dimensions]
        if len(set(names)) < len(names):
            raise ValidationError("invalid_input", "A budget names each dimension once.")


@attrs.frozen(kw_only=True)
class CreateBudgetArgs:
    """A budget to create, in the engine's namespace."""

    budget_id: BudgetId = attrs.field(validator=checks.name)
    definition: BudgetDefinition


@attrs.frozen(kw_only=True)
class CreateBudgetResult:
    """A budget that exists now; `created` is False when the same one existed before."""

    budget_id: BudgetId
    created: bool


@attrs.frozen(kw_only=True)
class ResetBudgetResult:
    """A budget whose counters are zero; `next_reset_at_ms` is None when it has no interval."""

    budget_id: BudgetId
    next_reset_at_ms: int | None


def _amounts(record: object, field: attrs.Attribute[Any], value: Mapping[str, int]) -> None:
    checks.names(record, field, value)
    for amount in value.values():
        _amount(record, field, amount)


@attrs.frozen(kw_only=True)
class UsageDimensions:
    """What was used.

    Attributes:
        input_tokens: counts as the dimension `input_tokens`.
        output_tokens: counts as the dimension `output_tokens`.
        wall_ms: milliseconds of wall-clock time; count as the dimension `wall_ms`.
        custom: further dimensions by name.
        dedup_key: the same key at the same budget is the same report.
    """

    input_tokens: int | None = attrs.field(default=None, validator=optional(_amount))
    output_tokens: int | None = attrs.field(default=None, validator=optional(_amount))
    wall_ms: int | None = attrs.field(default=None, validator=optional(_amount))
    custom: Mapping[str, int] = attrs.field(factory=dict, converter=checks.as_dict, validator=_amounts)
    dedup_key: str | None = attrs.field(default=None, validator=optional(checks.name))

    def __attrs_post_init__(self) -> None:
        typed = self._typed()
        if twice := sorted(typed.keys() & self.custom.keys()):
            raise ValidationError("invalid_input", f"The dimension '{twice[0]}' is given twice.")
        if len(typed) + len(self.custom) > MAX_BUDGET_DIMENSIONS:
            raise ValidationError("invalid_input", f"A report has at most {MAX_BUDGET_DIMENSIONS} dimensions.")

    def amounts(self) -> dict[str, int]:
        """Return every dimension that was given, by name, in the order of names."""
        return dict(sorted({**self._typed(), **self.custom}.items()))

    def _typed(self) -> dict[str, int]:
        fields = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "wall_ms": self.wall_ms,
        }
        return {name: amount for name, amount in fields.items() if amount is not None}


class UsageOutcome(StrEnum):
    """How the counters compare with the limits after a report."""

    OK = "ok"
    SOFT_BREACH = "soft_breach"
    HARD_BREACH = "hard_breach"


@attrs.frozen(kw_only=True)
class ReportUsageResult:
    """The answer to a report of usage.

    Attributes:
        outcome: OK and SOFT_BREACH added everything, HARD_BREACH added nothing.
        dimension: the first one that passed its limit by this report, else the first one that is above it, by name.
        current_usage: its counter, after a soft breach with the report; after a hard one without it, but with what is
            reserved.
        limit: the limit that it passed.
        already_applied: whether this answers a repeated report; nothing was added again.
        consequence: what a breach of a hard limit by a holder did to its execution, whose lease has ended; else None.
    """

    outcome: UsageOutcome
    dimension: str | None = None
    current_usage: int | None = None
    limit: int | None = None
    already_applied: bool = False
    consequence: OnHardLimit | None = None


@attrs.frozen(kw_only=True)
class ReserveBudgetResult:
    """The answer to a reservation.

    Attributes:
        expires_at_ms: until when the amounts are reserved; None if they do not fit, and nothing is reserved.
        dimension: the first one in which they do not fit, by name.
        current_usage: what is used or reserved of it.
        limit: its hard limit.
        already_applied: whether the same reservation was made before.
        consequence: what the refusal did to the execution, whose lease has ended.
    """

    expires_at_ms: int | None
    dimension: str | None = None
    current_usage: int | None = None
    limit: int | None = None
    already_applied: bool = False
    consequence: OnHardLimit | None = None


@attrs.frozen(kw_only=True)
class SettleBudgetResult:
    """The answer to the settlement of a reservation; what was used is counted in any case.

    Attributes:
        outcome: how the counters compare with the limits; HARD_BREACH if one is above its hard limit now.
        dimension: the first one that is above its limit, by name.
        current_usage: its counter.
        limit: the limit that it passed.
        late: whether no reservation was open, because its time was over or there was none.
        already_applied: whether this answers a repeated settlement; nothing was added again.
    """

    outcome: UsageOutcome
    dimension: str | None = None
    current_usage: int | None = None
    limit: int | None = None
    late: bool = False
    already_applied: bool = False


def passed_limit(
    amounts: Mapping[str, int], answer: ReportUsageResult | SettleBudgetResult
) -> tuple[str, int, int] | None:
    """Return the limit that counted amounts have passed: its dimension, the counter and the limit.

    None if they passed no limit: the counter was above it before, or another call told of it.
    """
    name, used, limit = answer.dimension, answer.current_usage, answer.limit
    if name is None or used is None or limit is None or answer.already_applied or used - amounts[name] > limit:
        return None
    return name, used, limit


@attrs.frozen(kw_only=True)
class RecordSpendArgs:
    """A report of usage that is kept per execution, so that `release_budget` can take it back."""

    execution_id: ExecutionId
    budget_id: BudgetId = attrs.field(validator=checks.name)
    usage: UsageDimensions


@attrs.frozen(kw_only=True)
class ReleaseBudgetResult:
    """What was taken back, by dimension; empty if the execution had recorded nothing."""

    budget_id: BudgetId
    released: Mapping[str, int]


@attrs.frozen(kw_only=True)
class BudgetStatus:
    """A budget and its counters at one moment.

    Attributes:
        usage: the counter of every dimension that was ever reported or defined.
        reserved: what is reserved of each dimension and not settled yet; zeros are left out.
        breach_count: reports that broke a hard limit.
        soft_breach_count: reports that passed a soft limit.
        last_breach_at_ms: when a hard limit was last broken since the last reset.
        last_breach_dimension: and which one.
    """

    budget_id: BudgetId
    namespace: str
    definition: BudgetDefinition
    usage: Mapping[str, int]
    reserved: Mapping[str, int]
    breach_count: int
    soft_breach_count: int
    last_breach_at_ms: int | None
    last_breach_dimension: str | None
    next_reset_at_ms: int | None
    created_at_ms: int


@attrs.frozen(kw_only=True)
class ListBudgetsPage:
    """A page of budgets by id; `next_cursor` is None on the last one."""

    budgets: tuple[BudgetStatus | DamagedRow, ...]
    next_cursor: str | None
