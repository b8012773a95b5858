"""The operations of the area budgets: what must be there before each, and the call; and calls that are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import BudgetId, ExecutionId
from flowfabric_worker.engine.types.budgets import CreateBudgetArgs, RecordSpendArgs, UsageDimensions
from tests.support.budgets import HOUR, TEAM, budget, definition, spend, tokens
from tests.support.executions import LANE, created, running

Act: TypeAlias = Callable[[], Any]
Case: TypeAlias = tuple[str, Callable[[Engine], Act]]
CREATION = CreateBudgetArgs(budget_id=TEAM, definition=definition(100, 80, reset_interval=HOUR))
MANY_DIMENSIONS = UsageDimensions(custom={f"d{number}": 1 for number in range(64)})


def _plain(act: Callable[[Engine], Any]) -> Callable[[Engine], Act]:
    return lambda engine: lambda: act(engine)


def _with_budget(act: Callable[[Engine], Any], **changes: Any) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        budget(engine, **changes)
        spend(engine, 60, "before")
        return lambda: act(engine)

    return arrange


def _for_execution(act: Callable[[Engine, ExecutionId], Any]) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        budget(engine)
        execution = created(engine)
        return lambda: act(engine, execution)

    return arrange


def record(execution: ExecutionId, amount: int = 5, name: BudgetId = TEAM, key: str | None = None) -> RecordSpendArgs:
    """Return a report that is kept per execution."""
    return RecordSpendArgs(execution_id=execution, budget_id=name, usage=tokens(amount, key))


def _released(engine: Engine) -> Act:
    budget(engine)
    execution = created(engine)
    engine.record_spend(record(execution))
    return lambda: engine.release_budget(TEAM, execution)


BUDGET_HOLDING: dict[str, Callable[[Engine, Handle], Any]] = {
    "report_usage": lambda engine, handle: engine.report_usage(handle, TEAM, tokens(5)),
    "reserve_budget": lambda engine, handle: engine.reserve_budget(handle, TEAM, "k", tokens(5), HOUR),
    "settle_budget": lambda engine, handle: engine.settle_budget(handle, TEAM, "k", tokens(5)),
}


def _held(act: Callable[[Engine, Handle], Any], **changes: Any) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        budget(engine, **changes)
        spend(engine, 60, "before")
        handle = running(engine, lane=LANE).handle
        return lambda: act(engine, handle)

    return arrange


def _reserved(act: Callable[[Engine, Handle], Any]) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        budget(engine)
        handle = running(engine, lane=LANE).handle
        engine.reserve_budget(handle, TEAM, "k", tokens(40), HOUR)
        return lambda: act(engine, handle)

    return arrange


BUDGET_OPERATIONS: dict[str, Callable[[Engine], Act]] = {
    "create_budget": _plain(lambda engine: engine.create_budget(CREATION)),
    "create_budget: that exists": _with_budget(
        lambda engine: engine.create_budget(CREATION), hard=100, soft=80, reset_interval=HOUR
    ),
    "update_budget": _with_budget(lambda engine: engine.update_budget(TEAM, definition(50, reset_interval=HOUR))),
    "reset_budget": _with_budget(lambda engine: engine.reset_budget(TEAM), reset_interval=HOUR),
    "delete_budget": _with_budget(lambda engine: engine.delete_budget(TEAM), reset_interval=HOUR),
    "get_budget_status": _with_budget(lambda engine: engine.get_budget_status(TEAM)),
    "list_budgets": _with_budget(lambda engine: engine.list_budgets()),
    "report_usage_admin": _with_budget(lambda engine: spend(engine, 5)),
    "report_usage_admin: with a key": _with_budget(lambda engine: spend(engine, 5, "k")),
    "report_usage_admin: with a key, above the limit": _with_budget(lambda engine: spend(engine, 50, "k")),
    "report_usage": _held(lambda engine, handle: engine.report_usage(handle, TEAM, tokens(5))),
    "report_usage: with a key": _held(lambda engine, handle: engine.report_usage(handle, TEAM, tokens(5, "k"))),
    "report_usage: above the limit": _held(lambda engine, handle: engine.report_usage(handle, TEAM, tokens(50, "k"))),
    "report_usage: above a limit that suspends": _held(
        lambda engine, handle: engine.report_usage(handle, TEAM, tokens(50)), on_hard_limit="suspend"
    ),
    "report_usage: above a limit that fails": _held(
        lambda engine, handle: engine.report_usage(handle, TEAM, tokens(50)), on_hard_limit="fail"
    ),
    "reserve_budget": _held(lambda engine, handle: engine.reserve_budget(handle, TEAM, "k", tokens(5), HOUR)),
    "reserve_budget: that does not fit": _held(
        lambda engine, handle: engine.reserve_budget(handle, TEAM, "k", tokens(50), HOUR)
    ),
    "settle_budget": _reserved(lambda engine, handle: engine.settle_budget(handle, TEAM, "k", tokens(50))),
    "complete: with an open reservation": _reserved(lambda engine, handle: engine.complete(handle)),
    "record_spend": _for_execution(lambda engine, execution: engine.record_spend(record(execution))),
    "release_budget": _released,
}


def _defining(**changes: Any) -> Callable[[Engine], Any]:
    return lambda engine: engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=definition(**changes)))


def _unknown(act: Callable[[Engine], Any]) -> Case:
    return "budget_not_found", _plain(act)


def _full(engine: Engine) -> Act:
    budget(engine)
    engine.report_usage_admin(TEAM, MANY_DIMENSIONS)
    execution = created(engine)
    return lambda: engine.record_spend(record(execution))


BUDGET_REFUSALS: dict[str, Case] = {
    "create_budget: of something else": ("invalid_input", _plain(lambda engine: engine.create_budget(None))),
    "create_budget: with other limits": (
        "conflict",
        _with_budget(lambda engine: engine.create_budget(CREATION)),
    ),
    "create_budget: soft above hard": ("invalid_input", _plain(_defining(hard=5, soft=6))),
    "create_budget: with a limit of zero": ("invalid_input", _plain(_defining(hard=0))),
    "create_budget: with a limit that no store counts to": ("invalid_input", _plain(_defining(hard=2**53))),
    "create_budget: for another action": ("invalid_input", _plain(_defining(on_hard_limit="explode"))),
    "create_budget: that is reset all the time": ("invalid_input", _plain(_defining(reset_interval=timedelta()))),
    "update_budget: unknown": _unknown(lambda engine: engine.update_budget(TEAM, definition())),
    "update_budget: to something else": (
        "invalid_input",
        _with_budget(lambda engine: engine.update_budget(TEAM, None)),
    ),
    "reset_budget: unknown": _unknown(lambda engine: engine.reset_budget(TEAM)),
    "delete_budget: unknown": _unknown(lambda engine: engine.delete_budget(TEAM)),
    "get_budget_status: unknown": _unknown(lambda engine: engine.get_budget_status(TEAM)),
    "get_budget_status: of no name": (
        "invalid_input",
        _plain(lambda engine: engine.get_budget_status(BudgetId(""))),
    ),
    "list_budgets: behind nothing": ("invalid_cursor", _plain(lambda engine: engine.list_budgets(""))),
    "list_budgets: too many": ("invalid_input", _plain(lambda engine: engine.list_budgets(limit=1001))),
    "report_usage_admin: unknown": _unknown(lambda engine: spend(engine, 5)),
    "report_usage_admin: below zero": ("invalid_input", _with_budget(lambda engine: spend(engine, -1))),
    "report_usage_admin: more than a store counts": (
        "invalid_input",
        _with_budget(lambda engine: spend(engine, 2**53)),
    ),
    "report_usage_admin: in too many dimensions": (
        "too_many_dimensions",
        _with_budget(lambda engine: engine.report_usage_admin(TEAM, MANY_DIMENSIONS)),
    ),
    "report_usage: unknown": (
        "budget_not_found",
        _held(lambda engine, handle: engine.report_usage(handle, BudgetId("other"), tokens(1))),
    ),
    "report_usage: of something else": (
        "invalid_input",
        _held(lambda engine, handle: engine.report_usage(handle, TEAM, None)),
    ),
    "reserve_budget: what can never fit": (
        "reservation_never_fits",
        _held(lambda engine, handle: engine.reserve_budget(handle, TEAM, "k", tokens(101), HOUR)),
    ),
    "reserve_budget: for no time": (
        "invalid_input",
        _held(lambda engine, handle: engine.reserve_budget(handle, TEAM, "k", tokens(1), timedelta())),
    ),
    "reserve_budget: under no key": (
        "invalid_input",
        _held(lambda engine, handle: engine.reserve_budget(handle, TEAM, "", tokens(1), HOUR)),
    ),
    "settle_budget: under no key": (
        "invalid_input",
        _held(lambda engine, handle: engine.settle_budget(handle, TEAM, "", tokens(1))),
    ),
    "record_spend: unknown": (
        "budget_not_found",
        _for_execution(lambda engine, execution: engine.record_spend(record(execution, name=BudgetId("other")))),
    ),
    "record_spend: of no execution": (
        "execution_not_found",
        _with_budget(lambda engine: engine.record_spend(record(ExecutionId.mint(engine.partitions)))),
    ),
    "record_spend: in too many dimensions": ("too_many_dimensions", _full),
    "release_budget: unknown": _unknown(
        lambda engine: engine.release_budget(TEAM, ExecutionId.mint(engine.partitions))
    ),
}
