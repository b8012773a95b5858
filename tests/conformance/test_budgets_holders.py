"""Budgets used by holders: reports, reservations, what a hard limit does to an execution, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.budgets import (
    OnHardLimit,
    ReportUsageResult,
    ReserveBudgetResult,
    SettleBudgetResult,
    UsageOutcome,
)
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.budgets import OK, TEAM, breach, budget, definition, spend, tokens, used
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    claim_one,
    claimed_ids,
    ids_in,
    info_of,
    refused,
    running,
    upkeep_all,
)

pytestmark = pytest.mark.usefixtures("clock")
MINUTE = timedelta(minutes=1)
LONG = timedelta(hours=1)
HARD = UsageOutcome.HARD_BREACH


@pytest.fixture(params=["beside", "elsewhere"])
def place(engine: Engine, request: pytest.FixtureRequest) -> int:
    """Provide a partition for executions: that of the budget, or another one where there are several."""
    home, _ = engine._budget(TEAM)
    return home if request.param == "beside" else (home + 1) % engine.partitions


def holding(engine: Engine, place: int, **changes: object) -> Claimed:
    """Return a new execution of a partition that a worker holds."""
    (minted,) = ids_in(engine, place, 1)
    return running(engine, execution_id=minted, lane=LANE, lease=LONG, **changes)


def reserve(
    engine: Engine, claimed: Claimed, amount: int, key: str = "k", hold: timedelta = MINUTE
) -> ReserveBudgetResult:
    return engine.reserve_budget(claimed.handle, TEAM, key, tokens(amount), hold)


def settle(engine: Engine, claimed: Claimed, amount: int, key: str = "k") -> SettleBudgetResult:
    return engine.settle_budget(claimed.handle, TEAM, key, tokens(amount))


def reserved(engine: Engine) -> int:
    return engine.get_budget_status(TEAM).reserved.get("tokens", 0)


def state_of(engine: Engine, claimed: Claimed) -> PublicState | None:
    return engine.read_execution_state(claimed.execution_id)


def test_a_holder_reports_usage_until_its_lease_ends(engine: Engine, place: int) -> None:
    budget(engine, 100, 10)
    claimed = holding(engine, place)

    assert engine.report_usage(claimed.handle, TEAM, tokens(5, "a")) == OK
    assert engine.report_usage(claimed.handle, TEAM, tokens(5, "a")).already_applied
    assert engine.report_usage(claimed.handle, TEAM, tokens(6)) == breach(UsageOutcome.SOFT_BREACH, 11, 10)
    engine.complete(claimed.handle)
    with refused("execution_not_active"):
        engine.report_usage(claimed.handle, TEAM, tokens(1))
    other = holding(engine, place)
    engine.revoke_lease(RevokeLeaseArgs(execution_id=other.execution_id))
    for act in (lambda: reserve(engine, other, 1), lambda: settle(engine, other, 1)):
        with refused("lease_revoked"):
            act()
    assert (used(engine), reserved(engine)) == (11, 0)


@pytest.mark.parametrize(
    "stopping",
    [
        lambda engine, claimed: engine.report_usage(claimed.handle, TEAM, tokens(50)),
        lambda engine, claimed: reserve(engine, claimed, 50),
    ],
    ids=["report", "reserve"],
)
def test_a_blocked_execution_goes_on_when_there_is_space(
    engine: Engine, place: int, stopping: Callable[[Engine, Claimed], ReportUsageResult]
) -> None:
    budget(engine, 100)
    spend(engine, 60)
    claimed = holding(engine, place)

    answer = stopping(engine, claimed)

    assert answer.consequence is OnHardLimit.BLOCK
    assert (answer.dimension, answer.current_usage, answer.limit) == ("tokens", 60, 100)
    assert state_of(engine, claimed) is PublicState.RATE_LIMITED
    assert claimed_ids(engine, LANE) == []
    with refused("execution_not_active"):
        engine.complete(claimed.handle)
    engine.update_budget(TEAM, definition(109))
    assert claimed_ids(engine, LANE) == []
    engine.update_budget(TEAM, definition(110))
    again = claim_one(engine, LANE)
    assert (again.execution_id, again.handle.attempt_id) == (claimed.execution_id, claimed.handle.attempt_id)
    assert again.retry_count == 0


def test_a_suspended_execution_goes_on_after_a_reset_and_can_be_resumed(engine: Engine, place: int) -> None:
    budget(engine, 100, on_hard_limit="suspend")
    claimed, other = holding(engine, place), holding(engine, place)

    answers = [engine.report_usage(each.handle, TEAM, tokens(101)) for each in (claimed, other)]

    assert {answer.consequence for answer in answers} == {OnHardLimit.SUSPEND}
    assert state_of(engine, claimed) is PublicState.SUSPENDED
    assert [row.reason for row in engine.list_suspended(place).executions] == ["paused_by_budget"] * 2
    engine.resume_execution(other.execution_id)
    assert claimed_ids(engine, LANE) == [other.execution_id]
    engine.reset_budget(TEAM)
    assert claimed_ids(engine, LANE) == [claimed.execution_id]


def test_a_failing_execution_fails_for_good_in_that_step(engine: Engine, place: int) -> None:
    budget(engine, 100, on_hard_limit="fail")
    claimed = holding(engine, place)
    reserve(engine, claimed, 60)

    answer = engine.report_usage(claimed.handle, TEAM, tokens(50))

    assert answer == breach(HARD, 60, 100, consequence=OnHardLimit.FAIL)
    info = info_of(engine, claimed.execution_id)
    assert info.public_state is PublicState.FAILED
    assert (info.error, info.error_class) == ("budget_exceeded", "permanent")
    upkeep_all(engine)
    assert reserved(engine) == 0


def test_a_reservation_counts_against_the_limit_until_it_is_settled(engine: Engine, place: int, clock: Clock) -> None:
    budget(engine, 100)
    claimed = holding(engine, place)

    first, again = reserve(engine, claimed, 60), reserve(engine, claimed, 60)

    assert (first.expires_at_ms, again.expires_at_ms, again.already_applied) == (clock.ms + 60_000,) * 2 + (True,)
    assert spend(engine, 41) == breach(HARD, 60, 100)
    assert settle(engine, claimed, 30) == SettleBudgetResult(outcome=UsageOutcome.OK)
    assert settle(engine, claimed, 30) == SettleBudgetResult(outcome=UsageOutcome.OK, already_applied=True)
    assert (used(engine), reserved(engine)) == (30, 0)
    with refused("reservation_settled"):
        reserve(engine, claimed, 1)


def test_what_can_never_fit_is_refused_with_a_code_of_its_own(engine: Engine, place: int) -> None:
    budget(engine, 10)
    claimed = holding(engine, place)

    with refused("reservation_never_fits") as caught:
        reserve(engine, claimed, 12)

    assert caught.value.details["limit"] == "10"
    assert reserve(engine, claimed, 10).expires_at_ms is not None
    assert state_of(engine, claimed) is PublicState.ACTIVE


def test_an_expired_reservation_is_free_and_its_settlement_says_late(engine: Engine, place: int, clock: Clock) -> None:
    budget(engine, 100)
    claimed = holding(engine, place)
    reserve(engine, claimed, 100, hold=timedelta(seconds=2))

    clock.move(timedelta(seconds=2))
    upkeep_all(engine)

    assert reserved(engine) == 0
    assert settle(engine, claimed, 120) == SettleBudgetResult(
        outcome=HARD, dimension="tokens", current_usage=120, limit=100, late=True
    )


ENDS: dict[str, Callable[[Engine, Claimed], object]] = {
    "complete": lambda engine, claimed: engine.complete_many([Completion(handle=claimed.handle)]),
    "fail": lambda engine, claimed: engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT),
    "cancel": lambda engine, claimed: engine.cancel(claimed.handle),
    "operator": lambda engine, claimed: engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id)),
}


@pytest.mark.parametrize("end", ENDS)
def test_any_end_of_a_run_frees_what_it_reserved(engine: Engine, place: int, end: str) -> None:
    budget(engine, 100)
    claimed, waiting = holding(engine, place), holding(engine, place)
    reserve(engine, claimed, 60)
    reserve(engine, claimed, 30, "other")
    assert reserve(engine, waiting, 50).consequence is OnHardLimit.BLOCK

    ENDS[end](engine, claimed)

    assert reserved(engine) == 0
    assert claimed_ids(engine, LANE) == [waiting.execution_id]


def test_a_deadline_frees_what_was_reserved(engine: Engine, place: int, clock: Clock) -> None:
    budget(engine, 100)
    claimed = holding(engine, place, policy=ExecutionPolicy(execution_deadline=timedelta(seconds=5)))
    reserve(engine, claimed, 60, hold=LONG)

    clock.move(timedelta(seconds=5))
    upkeep_all(engine)

    assert state_of(engine, claimed) is PublicState.EXPIRED
    assert reserved(engine) == 0


def test_a_reset_keeps_reservations_and_nothing_is_ever_negative(engine: Engine, place: int) -> None:
    budget(engine, 100)
    claimed = holding(engine, place)
    spend(engine, 40)
    reserve(engine, claimed, 60)

    engine.reset_budget(TEAM)

    assert (used(engine), reserved(engine)) == (0, 60)
    settle(engine, claimed, 60)
    assert (used(engine), reserved(engine)) == (60, 0)


def test_a_reset_lets_as_many_go_on_as_fit_in_order(engine: Engine, place: int) -> None:
    budget(engine, 100)
    spend(engine, 90)
    waiting = [holding(engine, place) for _ in range(4)]
    for each, amount in zip(waiting, (50, 60, 40, 30), strict=True):
        assert reserve(engine, each, amount).consequence is OnHardLimit.BLOCK

    engine.reset_budget(TEAM)

    assert claimed_ids(engine, LANE) == [waiting[0].execution_id, waiting[2].execution_id]
    engine.cancel_execution(CancelExecutionArgs(execution_id=waiting[1].execution_id))
    engine.update_budget(TEAM, definition(200))
    assert claimed_ids(engine, LANE) == [waiting[3].execution_id]


def test_more_executions_wait_than_one_call_looks_at_and_all_go_on(engine: Engine, place: int) -> None:
    budget(engine, 100)
    spend(engine, 100)
    waiting = [holding(engine, place) for _ in range(120)]
    for number, each in enumerate(waiting):
        # The first sixty do not fit even after the raise.
        reserve(engine, each, 90 if number < 60 else 1)
    engine.update_budget(TEAM, definition(180))
    upkeep_all(engine)
    upkeep_all(engine)

    assert claimed_ids(engine, LANE) == [each.execution_id for each in waiting[60:]]


def test_parallel_reservations_never_pass_the_hard_limit(engine: Engine) -> None:
    budget(engine, 5)
    runs = [running(engine, lease=LONG) for _ in range(24)]

    def use(claimed: Claimed) -> bool:
        if reserve(engine, claimed, 1).expires_at_ms is None:
            return False
        assert used(engine) + reserved(engine) <= 5
        settle(engine, claimed, 1)
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(use, runs))

    assert made.count(True) == 5
    assert (used(engine), reserved(engine)) == (5, 0)


def test_an_execution_has_at_most_100_open_reservations(engine: Engine, place: int) -> None:
    budget(engine, None)
    claimed = holding(engine, place)
    for number in range(100):
        reserve(engine, claimed, 1, f"k{number}")

    with refused("too_many_reservations"):
        reserve(engine, claimed, 1, "one more")

    settle(engine, claimed, 1, "k0")
    assert reserve(engine, claimed, 1, "one more").expires_at_ms is not None


def test_nothing_is_left_of_uses_when_an_execution_is_removed(
    engine: Engine, place: int, clock: Clock, dump: Dump
) -> None:
    budget(engine, 100)
    claimed = holding(engine, place, policy=ExecutionPolicy(retention=timedelta(seconds=1)))
    reserve(engine, claimed, 60)
    engine.reserve_budget(claimed.handle, budget(engine, name=BudgetId("two")), "k", tokens(5), MINUTE)
    engine.complete(claimed.handle)

    clock.move(timedelta(seconds=2))
    upkeep_all(engine)

    assert not [key for key in dump() if "share" in key or "owed" in key or "blocked" in key]
