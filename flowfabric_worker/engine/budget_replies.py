"""How budgets travel: their definitions to the stored functions, and their states and answers back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetDimension,
    BudgetStatus,
    OnHardLimit,
    OnSoftLimit,
    ReportUsageResult,
    ReserveBudgetResult,
    SettleBudgetResult,
    UsageOutcome,
)
from flowfabric_worker.engine.wire import pack, unpack_text


def definition_item(definition: BudgetDefinition) -> list[Argument]:
    """Encode a definition: on_hard, on_soft, interval in ms or empty, limits."""
    interval = definition.reset_interval
    limits = (
        text
        for each in definition.dimensions
        for text in (each.name, _limit_text(each.hard_limit), _limit_text(each.soft_limit))
    )
    return [
        definition.on_hard_limit,
        definition.on_soft_limit,
        "" if interval is None else str(milliseconds(interval, "reset_interval")),
        pack(limits),
    ]


def _limit_text(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def status_of(name: str, namespace: str, parts: Reply) -> BudgetStatus:
    """Decode a budget from the parts of its entry, which the stored function has checked."""
    created, on_hard, on_soft, interval, following, limits, counters, hard, soft, at, breached = parts[:11]
    counted = [(each, int(used), int(reserved)) for each, used, reserved in _triples(counters)]
    try:
        actions = {"on_hard_limit": OnHardLimit(on_hard.decode()), "on_soft_limit": OnSoftLimit(on_soft.decode())}
    except ValueError as error:
        raise ValidationError("corruption", f"The budget {name} is damaged: {error}.", field="on_hard_limit") from error
    definition: dict[str, Any] = {
        "dimensions": [
            BudgetDimension(name=each, hard_limit=_number(hard), soft_limit=_number(soft))
            for each, hard, soft in _triples(limits)
        ],
        "reset_interval": timedelta(milliseconds=int(interval)) if interval else None,
        **actions,
    }
    defined = {each.name: 0 for each in definition["dimensions"]}
    return BudgetStatus(
        budget_id=BudgetId(name),
        namespace=namespace,
        definition=BudgetDefinition(**definition),
        usage={**defined, **{each: used for each, used, _ in counted}},
        reserved={each: reserved for each, _, reserved in counted if reserved},
        breach_count=int(hard),
        soft_breach_count=int(soft),
        last_breach_at_ms=_number(at),
        last_breach_dimension=breached.decode() or None,
        next_reset_at_ms=_number(following),
        created_at_ms=int(created),
    )


def _triples(packed: bytes) -> list[Sequence[str]]:
    parts = unpack_text(packed)
    return [parts[at : at + 3] for at in range(0, len(parts), 3)]


def _number(text: bytes | str) -> int | None:
    return int(text) if text else None


def report_of(reply: Reply) -> ReportUsageResult:
    """Decode the answer to a report of usage."""
    again, outcome, *breach = reply
    return ReportUsageResult(
        outcome=UsageOutcome(outcome.decode()),
        already_applied=again[:1] == b"1",
        **_breach_of(breach),
        **_consequence(breach),
    )


def reservation_of(reply: Reply) -> ReserveBudgetResult:
    """Decode the answer to a reservation."""
    again, outcome, *rest = reply
    if outcome == b"reserved":
        return ReserveBudgetResult(expires_at_ms=int(rest[0]), already_applied=again[:1] == b"1" or len(rest) > 1)
    return ReserveBudgetResult(expires_at_ms=None, **_breach_of(rest), **_consequence(rest))


def settlement_of(reply: Reply) -> SettleBudgetResult:
    """Decode the answer to a settlement."""
    again, outcome, *rest = reply
    return SettleBudgetResult(
        outcome=UsageOutcome(outcome.decode()),
        late=rest[3] == b"late",
        already_applied=again[:1] == b"1",
        **_breach_of(rest),
    )


def _breach_of(breach: Reply) -> dict[str, Any]:
    if not breach or not breach[0]:
        return {}
    return {"dimension": breach[0].decode(), "current_usage": int(breach[1]), "limit": int(breach[2])}


def _consequence(breach: Reply) -> dict[str, Any]:
    return {"consequence": OnHardLimit(breach[3].decode())} if len(breach) > 3 else {}
