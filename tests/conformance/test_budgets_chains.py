"""Budgets of other partitions: a caller that dies between two steps leaves nothing stuck and nothing counted twice."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.budgets import UsageOutcome
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from tests.conftest import Clock
from tests.support.budgets import TEAM, budget, spend, tokens, used
from tests.support.dumps import Dump
from tests.support.executions import LANE, claim_one, claimed_ids, created, creation, ids_in, running, upkeep_all
from tests.support.stepped_store import killed_after

pytestmark = pytest.mark.usefixtures("clock")
MINUTE = timedelta(minutes=1)
LONG = timedelta(hours=5)
# More than the calls of any of these chains.
MOST_STEPS = 11


def holding(engine: Engine, **changes: object) -> Claimed:
    """Return a new execution that a worker holds, in another partition than the budget's where there are several."""
    home, _ = engine._budget(TEAM)
    (minted,) = ids_in(engine, (home + 1) % engine.partitions, 1)
    return running(engine, execution_id=minted, lane=LANE, lease=LONG, **changes)


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_a_killed_refusal_leaves_its_execution_able_to_go_on(engine: Engine, clock: Clock, steps: int) -> None:
    budget(engine, 100)
    spend(engine, 60)
    claimed = holding(engine)

    killed_after(engine, steps, lambda tried: tried.report_usage(claimed.handle, TEAM, tokens(50, "k")))
    engine.reset_budget(TEAM)
    upkeep_all(engine)

    again = claimed if not claimed_now(engine, claimed) else claim_one(engine, LANE, lease=LONG)
    assert again.execution_id == claimed.execution_id
    assert engine.report_usage(again.handle, TEAM, tokens(50, "k")).outcome is UsageOutcome.OK
    engine.complete(again.handle)
    assert used(engine) == 50


def claimed_now(engine: Engine, claimed: Claimed) -> bool:
    """Return whether an execution is waiting for a worker again."""
    return engine.read_execution_state(claimed.execution_id) != "active"


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_a_killed_end_frees_its_reservation_and_passes_the_space_on(
    engine: Engine, clock: Clock, steps: int, dump: Dump
) -> None:
    budget(engine, 100)
    claimed, waiting = holding(engine), holding(engine)
    boom = FailureReason(message="boom")

    def use_and_fail(tried: Engine) -> None:
        tried.reserve_budget(claimed.handle, TEAM, "k", tokens(80), MINUTE)
        tried.fail(claimed.handle, boom, FailureClass.PERMANENT)

    killed_after(engine, steps, use_and_fail)
    engine.reserve_budget(waiting.handle, TEAM, "k", tokens(90), LONG)
    clock.move(2 * MINUTE)
    upkeep_all(engine)
    upkeep_all(engine)

    status = engine.get_budget_status(TEAM)
    state = engine.read_execution_state(waiting.execution_id)
    # Either it got its amount at once, or it waited for the other one and is ready now.
    assert (state, status.reserved) in (("active", {"tokens": 90}), ("waiting", {}))
    assert status.usage == {"tokens": 0}
    assert not [key for key in dump() if "owed" in key]


@pytest.mark.parametrize("steps", range(1, MOST_STEPS))
def test_upkeep_tells_news_of_a_budget_whose_teller_was_killed(engine: Engine, clock: Clock, steps: int) -> None:
    budget(engine, 100)
    home, _ = engine._budget(TEAM)
    (minted,) = ids_in(engine, (home + 1) % engine.partitions, 1)
    created(engine, execution_id=minted, policy=ExecutionPolicy(budget_ids=(TEAM,)))

    killed_after(engine, steps, lambda tried: spend(tried, 100, "k"))
    spend(engine, 100, "k")
    upkeep_all(engine)
    assert claimed_ids(engine, LANE) == []

    killed_after(engine, steps, lambda tried: tried.reset_budget(TEAM))
    engine.reset_budget(TEAM)
    upkeep_all(engine)
    assert claimed_ids(engine, LANE) == [minted]


def test_children_spend_from_the_budgets_of_their_parents_once(engine: Engine) -> None:
    budget(engine, 10)
    budget(engine, 8, name=BudgetId("own"))
    root = running(engine, lane=LANE, lease=LONG, policy=ExecutionPolicy(budget_ids=(TEAM,)))
    engine.spawn(root.handle, "child", creation(lane="children", policy=ExecutionPolicy(budget_ids=("own",))))
    child = claim_one(engine, "children", lease=LONG)
    engine.spawn(child.handle, "grandchild", creation(lane="grandchildren"))
    grandchild = claim_one(engine, "grandchildren", lease=LONG)

    assert child.policy.budget_ids == (TEAM, "own")
    assert grandchild.policy.budget_ids == (TEAM, "own")
    for each in child.policy.budget_ids:
        assert engine.report_usage(child.handle, BudgetId(each), tokens(6)).outcome is UsageOutcome.OK
    assert engine.report_usage(grandchild.handle, TEAM, tokens(6)).outcome is UsageOutcome.HARD_BREACH
    assert (used(engine), used(engine, BudgetId("own"))) == (6, 6)
