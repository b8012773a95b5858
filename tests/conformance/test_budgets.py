"""Budgets: what is counted, what limits refuse, resets, and what repeats."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetDimension,
    BudgetStatus,
    CreateBudgetArgs,
    CreateBudgetResult,
    RecordSpendArgs,
    ReleaseBudgetResult,
    ReportUsageResult,
    UsageDimensions,
    UsageOutcome,
)
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.wire import pack
from tests.conftest import Clock
from tests.support.budget_operations import record
from tests.support.budgets import HOUR, OK, TEAM, breach, budget, definition, spend, tokens, used
from tests.support.dumps import Dump
from tests.support.executions import created, ids_in, raw_client, raw_key, refused, running, tenant, upkeep_all

pytestmark = pytest.mark.usefixtures("clock")
SOFT, HARD = UsageOutcome.SOFT_BREACH, UsageOutcome.HARD_BREACH


def home(engine: Engine, name: BudgetId = TEAM) -> int:
    """Return the partition of a budget."""
    partition, _ = engine._budget(name)
    return partition


def test_a_new_budget_tells_its_definition_and_zero_counters(engine: Engine, clock: Clock) -> None:
    asked = definition(1000, 800, reset_interval=HOUR)

    first = engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=asked))
    again = engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=asked))

    assert (first, again) == (
        CreateBudgetResult(budget_id=TEAM, created=True),
        CreateBudgetResult(budget_id=TEAM, created=False),
    )
    assert engine.get_budget_status(TEAM) == BudgetStatus(
        budget_id=TEAM,
        namespace="default",
        definition=asked,
        usage={"tokens": 0},
        reserved={},
        breach_count=0,
        soft_breach_count=0,
        last_breach_at_ms=None,
        last_breach_dimension=None,
        next_reset_at_ms=clock.ms + 3_600_000,
        created_at_ms=clock.ms,
    )


def test_a_report_passes_the_soft_limit_and_never_the_hard_one(engine: Engine) -> None:
    budget(engine, 100, 80)

    answers = [spend(engine, amount) for amount in (60, 20, 5, 50, 15)]

    assert answers == [OK, OK, breach(SOFT, 85, 80), breach(HARD, 85, 100), breach(SOFT, 100, 80)]
    status = engine.get_budget_status(TEAM)
    assert (status.usage, status.breach_count, status.soft_breach_count) == ({"tokens": 100}, 1, 2)


def test_an_operators_report_that_passes_a_soft_limit_is_logged_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    budget(engine, 100, 50)
    execution = created(engine)

    def recorded(amount: int) -> None:
        engine.record_spend(RecordSpendArgs(execution_id=execution, budget_id=TEAM, usage=tokens(amount)))

    spend(engine, 50)
    spend(engine, 1)
    recorded(9)
    spend(engine, 50)
    engine.reset_budget(TEAM)
    recorded(60)

    told = [each.getMessage() for each in caplog.records if "limit" in each.getMessage()]
    assert told == [f"Budget 'team' is above its limit of tokens: {used} of 50." for used in (51, 60)]


def test_a_report_names_the_soft_limit_that_it_passes_before_others(engine: Engine) -> None:
    dimensions = [BudgetDimension(name=name, soft_limit=10) for name in ("calls", "cents", "tokens")]
    engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=BudgetDefinition(dimensions=dimensions)))

    both = {"calls": 1, "cents": 1}
    amounts = [{"cents": 11}, both, {**both, "tokens": 12}, {"cents": 1, "tokens": 1}]
    answers = [engine.report_usage_admin(TEAM, UsageDimensions(custom=each)) for each in amounts]

    assert [(each.outcome, each.dimension, each.current_usage) for each in answers] == [
        (SOFT, "cents", 11), (SOFT, "cents", 12), (SOFT, "tokens", 12), (SOFT, "cents", 14),
    ]  # fmt: skip
    assert engine.get_budget_status(TEAM).soft_breach_count == 4


def test_a_breach_in_one_dimension_counts_nothing_in_any(engine: Engine, clock: Clock) -> None:
    dimensions = [BudgetDimension(name="cents", hard_limit=50), BudgetDimension(name="tokens")]
    engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=BudgetDefinition(dimensions=dimensions)))

    answer = engine.report_usage_admin(TEAM, UsageDimensions(custom={"calls": 1, "cents": 51, "tokens": 10}))

    assert answer == ReportUsageResult(outcome=HARD, dimension="cents", current_usage=0, limit=50)
    status = engine.get_budget_status(TEAM)
    assert status.usage == {"cents": 0, "tokens": 0}
    assert (status.last_breach_at_ms, status.last_breach_dimension) == (clock.ms, "cents")


def test_typed_dimensions_and_those_without_a_limit_are_counted(engine: Engine) -> None:
    budget(engine)

    most = {"z": 2**53 - 1}
    engine.report_usage_admin(TEAM, UsageDimensions(input_tokens=3, output_tokens=4, wall_ms=0, custom=most))

    assert engine.get_budget_status(TEAM).usage == {
        "tokens": 0, "input_tokens": 3, "output_tokens": 4, "wall_ms": 0, **most,
    }  # fmt: skip
    assert engine.report_usage_admin(TEAM, UsageDimensions(custom={"z": 1})).outcome is HARD


def test_a_key_counts_once_for_a_day_and_a_breach_leaves_it_unused(engine: Engine, clock: Clock) -> None:
    budget(engine)

    first, again = spend(engine, 60, "k"), spend(engine, 7, "k")
    refused_once = spend(engine, 50, "big")
    engine.reset_budget(TEAM)

    assert (first, again) == (OK, ReportUsageResult(outcome=UsageOutcome.OK, already_applied=True))
    assert refused_once == breach(HARD, 60, 100)
    assert spend(engine, 50, "big") == OK
    clock.move(timedelta(hours=23))
    assert spend(engine, 1, "k").already_applied
    clock.move(HOUR)
    assert spend(engine, 1, "k") == OK
    assert used(engine) == 51


def test_one_key_means_another_report_at_another_budget(engine: Engine) -> None:
    other = budget(engine, name=BudgetId("other"))
    budget(engine)

    assert [spend(engine, 5, "k"), spend(engine, 5, "k", other)] == [OK, OK]


def test_answers_are_forgotten_by_upkeep_when_their_time_is_over(engine: Engine, clock: Clock, dump: Dump) -> None:
    budget(engine)
    clock.move(HOUR)
    upkeep_all(engine)
    assert not [key for key in dump() if "report" in key]
    for number in range(3):
        spend(engine, 0, f"k{number}")
    spend(engine, 0)
    assert [key for key in dump() if "report" in key]

    clock.move(25 * HOUR)
    upkeep_all(engine)

    assert not [key for key in dump() if "report" in key]


def test_update_keeps_counters_and_a_new_limit_holds_at_once(engine: Engine) -> None:
    budget(engine, 100)
    spend(engine, 60)

    status = engine.update_budget(TEAM, definition(70, 10))

    assert (status.usage, status.definition) == ({"tokens": 60}, definition(70, 10))
    assert spend(engine, 11) == breach(HARD, 60, 70)
    assert engine.update_budget(TEAM, definition(None)).usage == {"tokens": 60}
    assert spend(engine, 1000) == OK


def test_a_reset_clears_counters_and_keeps_the_totals_of_breaches(engine: Engine, clock: Clock) -> None:
    budget(engine, 100, reset_interval=HOUR)
    spend(engine, 60)
    spend(engine, 60)
    clock.move(HOUR / 2)

    answer = engine.reset_budget(TEAM)

    status = engine.get_budget_status(TEAM)
    assert answer.next_reset_at_ms == status.next_reset_at_ms == clock.ms + 3_600_000
    assert (status.usage, status.breach_count, status.last_breach_dimension) == ({"tokens": 0}, 1, None)


@pytest.mark.parametrize("swept", [True, False])
def test_scheduled_resets_stay_on_their_grid_and_missed_ones_are_one(engine: Engine, clock: Clock, swept: bool) -> None:
    start = clock.ms
    budget(engine, 100, reset_interval=HOUR)
    spend(engine, 90)
    clock.move(HOUR - timedelta(milliseconds=1))
    assert used(engine) == 90

    clock.move(2.5 * HOUR)
    if swept:
        upkeep_all(engine)

    status = engine.get_budget_status(TEAM)
    assert (status.usage, status.next_reset_at_ms) == ({"tokens": 0}, start + 4 * 3_600_000)
    assert spend(engine, 90) == OK
    clock.move(HOUR)
    upkeep_all(engine)
    assert used(engine) == 0


def test_recorded_spend_is_taken_back_once_and_from_its_execution_alone(engine: Engine) -> None:
    budget(engine)
    first, second = created(engine), created(engine)
    for execution, amount in ((first, 5), (first, 7), (second, 8)):
        engine.record_spend(record(execution, amount))
    assert engine.record_spend(record(first, 81)) == breach(HARD, 20, 100)

    released = [engine.release_budget(TEAM, first) for _ in range(2)]

    assert [each.released for each in released] == [{"tokens": 12}, {}]
    assert used(engine) == 8
    engine.reset_budget(TEAM)
    assert engine.release_budget(TEAM, second) == ReleaseBudgetResult(budget_id=TEAM, released={"tokens": 8})
    assert used(engine) == 0


def test_nothing_of_an_execution_is_left_at_its_budgets_in_its_partition(
    engine: Engine, clock: Clock, dump: Dump
) -> None:
    budget(engine)
    (near,) = ids_in(engine, home(engine), 1)
    claimed = running(engine, execution_id=near, policy=ExecutionPolicy(retention=timedelta(seconds=1)))
    engine.record_spend(record(claimed.execution_id))
    assert [key for key in dump() if "share" in key]
    engine.complete(claimed.handle)

    clock.move(timedelta(seconds=2))
    upkeep_all(engine)

    assert not [key for key in dump() if "share" in key]


def test_budgets_are_listed_by_id_page_by_page_in_their_namespace(engine: Engine) -> None:
    names = [BudgetId(name) for name in ("alpha", "bravo", "charlie", "d e", "ö")]
    for name in reversed(names):
        budget(engine, name=name)
    other = tenant(engine, "other")
    budget(other, 7)

    pages = [engine.list_budgets(limit=2)]
    while pages[-1].next_cursor:
        pages.append(engine.list_budgets(pages[-1].next_cursor, 2))

    listed = [row.budget_id for page in pages for row in page.budgets if isinstance(row, BudgetStatus)]
    assert listed == names
    assert [len(page.budgets) for page in pages] == [2, 2, 1]
    with refused("budget_not_found"):
        engine.get_budget_status(TEAM)
    other.close()


def test_a_deleted_budget_is_gone_and_a_new_one_begins_at_zero(engine: Engine, dump: Dump) -> None:
    before = dump()
    budget(engine, reset_interval=HOUR)
    spend(engine, 60, "k")
    engine.record_spend(record(created(engine)))
    engine.delete_budget(TEAM)

    left = {key for key in dump() if "budget" in key or "report" in key or "share" in key}
    budget(engine)

    assert left == {key for key in before if "budget" in key}
    assert spend(engine, 5, "k") == OK
    assert used(engine) == 5


@pytest.mark.parametrize(("part", "damage"), [(7, b"junk"), (1, b"x"), (5, b"x"), (None, b"")])
def test_a_damaged_budget_is_told_and_harms_no_other(engine: Engine, part: int | None, damage: bytes) -> None:
    budget(engine)
    budget(engine, name=BudgetId("sound"))
    parts = [b"1", b"block", b"warn", b"", b"", b"", b"", b"0", b"0", b"", b"", b"", b"", b"0"]
    if part is not None:
        parts[part - 1] = damage
    entry = pack(parts) if part is not None else damage
    client, key = raw_client(engine, home(engine)), raw_key(engine, home(engine), "budget")
    client.hset(key, pack(("default",)) + TEAM.encode(), entry)  # type: ignore[arg-type]

    rows = engine.list_budgets().budgets

    assert [isinstance(row, DamagedRow) for row in rows] == [False, True]
    for act in (lambda: spend(engine, 5), lambda: engine.get_budget_status(TEAM), lambda: engine.reset_budget(TEAM)):
        with refused("corruption") as caught:
            act()
        assert TEAM in str(caught.value)
    upkeep_all(engine)
    assert spend(engine, 5, name=BudgetId("sound")) == OK
    engine.delete_budget(TEAM)


def test_reports_at_once_never_pass_the_hard_limit(engine: Engine) -> None:
    engine.create_budget(
        CreateBudgetArgs(
            budget_id=TEAM,
            definition=BudgetDefinition(dimensions=[BudgetDimension(name=each, hard_limit=50) for each in "ab"]),
        )
    )

    def report(number: int) -> ReportUsageResult:
        order = {"a": 1, "b": 1} if number % 2 else {"b": 1, "a": 1}
        return engine.report_usage_admin(TEAM, UsageDimensions(custom=order))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(report, range(80)))

    assert [answer.outcome for answer in answers].count(UsageOutcome.OK) == 50
    assert engine.get_budget_status(TEAM).usage == {"a": 50, "b": 50}


def test_a_budget_of_64_dimensions_is_full(engine: Engine) -> None:
    budget(engine)
    engine.report_usage_admin(TEAM, UsageDimensions(custom={f"d{number}": 1 for number in range(64)}))

    with refused("too_many_dimensions"):
        engine.report_usage_admin(TEAM, tokens(1))
    assert len(engine.get_budget_status(TEAM).usage) == 65
