"""Budgets as gates: at a hard limit no work that names the budget is handed out, until there is space."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId, ExecutionId
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.budgets import HOUR, TEAM, budget, definition, spend, tokens
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    claim_one,
    claimed_ids,
    created,
    creation,
    depths,
    ids_in,
    refused,
    request,
    tenant,
    upkeep_all,
)

TEAMS = ExecutionPolicy(budget_ids=(TEAM,))


@pytest.fixture(params=["beside", "elsewhere"])
def place(engine: Engine, request: pytest.FixtureRequest) -> int:
    """Provide a partition for executions: that of the budget, or another one where there are several."""
    home, _ = engine._budget(TEAM)
    return home if request.param == "beside" else (home + 1) % engine.partitions


def waiting(engine: Engine, place: int, count: int = 1, **changes: object) -> list[ExecutionId]:
    """Create work of a partition that names the budget."""
    ids = ids_in(engine, place, count)
    return [created(engine, execution_id=each, **{"policy": TEAMS, **changes}) for each in ids]


def state_of(engine: Engine, execution: ExecutionId) -> PublicState | None:
    return engine.read_execution_state(execution)


def test_work_of_a_full_budget_is_rate_limited_until_it_is_raised(engine: Engine, clock: Clock, place: int) -> None:
    budget(engine, 100)
    spend(engine, 99)
    first, second = waiting(engine, place, 2)
    assert claimed_ids(engine, LANE, limit=1) == [first]
    free = created(engine)
    other = tenant(engine, "other")

    spend(engine, 1)

    assert state_of(engine, second) is PublicState.RATE_LIMITED
    assert depths(engine, LANE) == {PublicState.RATE_LIMITED: 1, PublicState.WAITING: 1, PublicState.ACTIVE: 1}
    explanation = engine.explain_execution(second)
    assert explanation.code == "rate_limited"
    assert "'team'" in explanation.text
    assert claimed_ids(engine, LANE) == [free]
    engine.update_budget(TEAM, definition(101))
    assert state_of(engine, second) is PublicState.WAITING
    assert claimed_ids(engine, LANE) == [second]
    other.close()


def test_a_scheduled_reset_opens_the_gate_and_the_next_claim_sees_it(engine: Engine, clock: Clock, place: int) -> None:
    budget(engine, 100, reset_interval=HOUR)
    spend(engine, 100)
    (execution,) = waiting(engine, place)
    assert claimed_ids(engine, LANE) == []

    clock.move(HOUR)
    upkeep_all(engine)

    assert claimed_ids(engine, LANE) == [execution]


def test_all_budgets_of_an_execution_must_have_space(engine: Engine, clock: Clock, place: int) -> None:
    both = ExecutionPolicy(budget_ids=(TEAM, "a, b"))
    budget(engine, 100)
    budget(engine, 100, name=BudgetId("a, b"))
    spend(engine, 100)
    spend(engine, 100, name=BudgetId("a, b"))
    (execution,) = waiting(engine, place, policy=both)

    engine.reset_budget(TEAM)
    assert claimed_ids(engine, LANE) == []
    engine.reset_budget(BudgetId("a, b"))

    claimed = claim_one(engine, LANE)
    assert claimed.execution_id == execution
    assert claimed.policy.budget_ids == (TEAM, "a, b")


def test_reservations_close_the_gate_and_their_end_opens_it(engine: Engine, clock: Clock, place: int) -> None:
    budget(engine, 10)
    waiting(engine, place, 2)
    holder = claim_one(engine, LANE)

    engine.reserve_budget(holder.handle, TEAM, "k", tokens(10), HOUR)
    assert claimed_ids(engine, LANE) == []
    engine.settle_budget(holder.handle, TEAM, "k", tokens(9))

    assert len(claimed_ids(engine, LANE)) == 1


def test_unknown_budgets_are_refused_and_those_in_use_stay(engine: Engine, clock: Clock, place: int) -> None:
    with refused("budget_not_found"):
        waiting(engine, place)
    budget(engine)
    (execution,) = waiting(engine, place)

    with refused("budget_in_use"):
        engine.delete_budget(TEAM)
    engine.complete(claim_one(engine, LANE).handle)
    engine.delete_budget(TEAM)

    assert state_of(engine, execution) is PublicState.COMPLETED
    with refused("budget_not_found"):
        waiting(engine, place)


def test_an_idle_worker_is_woken_when_the_budget_gets_space(engine: Engine, place: int) -> None:
    budget(engine, 100)
    spend(engine, 100)
    (execution,) = waiting(engine, place)
    got: list[Claimed] = []

    def wait() -> None:
        for _ in range(20):
            got.extend(engine.claim_many(request(LANE, max_wait=timedelta(seconds=8))))
            if got:
                return

    worker = threading.Thread(target=wait)
    worker.start()
    engine.reset_budget(TEAM)
    worker.join(6)

    assert [each.execution_id for each in got] == [execution]


def test_news_that_comes_late_or_twice_changes_nothing(engine: Engine, clock: Clock) -> None:
    budget(engine, 100)
    home, address = engine._budget(TEAM)
    away = (home + 1) % engine.partitions
    (execution,) = waiting(engine, away)
    _, old = engine.call("use_from", home, [address, str(away)])
    spend(engine, 100)
    spend_again = engine.call("use_from", home, [address, str(away)])[1]
    engine.reset_budget(TEAM)

    for news in (spend_again, old, spend_again):
        if home != away:
            engine.call("pay", away, ["tell", address, news])

    assert claimed_ids(engine, LANE) == [execution]


def test_a_class_of_a_deleted_budget_leaves_no_trace(engine: Engine, clock: Clock, place: int, dump: Dump) -> None:
    budget(engine)
    execution = created(
        engine,
        execution_id=ids_in(engine, place, 1)[0],
        policy=ExecutionPolicy(budget_ids=(TEAM,), retention=timedelta(seconds=1)),
    )
    engine.complete(claim_one(engine, LANE).handle)
    clock.move(timedelta(seconds=2))
    upkeep_all(engine)
    assert state_of(engine, execution) is None

    engine.delete_budget(TEAM)

    assert not [key for key in dump() if "gate" in key or "budget" in key]


def test_many_creations_in_one_call_may_name_budgets(engine: Engine, clock: Clock) -> None:
    budget(engine, 100)
    args = [creation(policy=TEAMS, idempotency_key=f"k{number}") for number in range(20)]

    engine.create_executions(args)

    assert len(claimed_ids(engine, LANE)) == 20
