"""Joins: when the edges into a member let it run, and what becomes of the other upstream members."""

from __future__ import annotations

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    EdgeDependencyPolicy,
    EdgeGroupSnapshot,
    EdgeGroupState,
    OnSatisfied,
    Quorum,
)
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from tests.support.executions import TASK, info_of, upkeep_all
from tests.support.flows import Run, graph_of

CANCEL, LET = OnSatisfied.CANCEL_REMAINING, OnSatisfied.LET_RUN
CANCELLED, SKIPPED, WAITING = PublicState.CANCELLED, PublicState.SKIPPED, PublicState.WAITING


def joined(engine: Engine, count: int, policy: EdgeDependencyPolicy, *more: tuple[str, str]) -> Run:
    """Return a flow whose member `join` waits for some others, all of which are claimed."""
    parents = [f"p{number}" for number in range(count)]
    run = Run(engine, graph_of(*((each, "join", "items") for each in parents), *more, policies={"join": policy}))
    run.claim()
    return run


def group_of(run: Run, key: str = "join") -> EdgeGroupSnapshot:
    (group,) = [each for each in run.flow.edge_groups if each.downstream_execution_id == run.ids[key]]
    return group


@pytest.mark.parametrize("others", [CANCEL, LET])
def test_the_first_success_satisfies_any(engine: Engine, others: OnSatisfied) -> None:
    run = joined(engine, 3, AnyOf(others))
    run.fail("p0")
    assert run.states()["join"] is PublicState.WAITING_CHILDREN
    run.complete("p1")

    assert run.states()["join"] is WAITING
    assert run.states()["p2"] is (CANCELLED if others is CANCEL else PublicState.ACTIVE)
    if others is CANCEL:
        assert info_of(engine, run.ids["p2"]).cancel_reason == "sibling_quorum_satisfied"
    else:
        run.complete("p2")
    run.drain()
    # A failed member does not fail the flow where a success of another one covers it.
    assert run.flow.state is FlowState.COMPLETED
    group = group_of(run)
    assert (group.state, group.satisfied_count + group.failed_count) == (EdgeGroupState.SATISFIED, 3)


@pytest.mark.parametrize("others", [CANCEL, LET])
def test_a_quorum_is_impossible_as_soon_as_that_is_proved(engine: Engine, others: OnSatisfied) -> None:
    run = joined(engine, 5, Quorum(3, others), ("join", "after"))
    run.complete("p0")
    run.fail("p1", "p2")
    assert group_of(run).state is EdgeGroupState.PENDING
    run.fail("p3")

    assert group_of(run).state is EdgeGroupState.IMPOSSIBLE
    assert {run.states()[key] for key in ("join", "after")} == {SKIPPED}
    assert run.states()["p4"] is (CANCELLED if others is CANCEL else PublicState.ACTIVE)
    if others is CANCEL:
        assert info_of(engine, run.ids["p4"]).cancel_reason == "sibling_quorum_impossible"
    else:
        run.complete("p4")
    assert run.flow.state is FlowState.FAILED
    # What fired once does not fire again.
    assert run.states()["join"] is SKIPPED


def test_a_quorum_passes_its_successes_in_the_order_of_the_edges(engine: Engine) -> None:
    run = joined(engine, 4, Quorum(2, LET))
    run.fail("p1")
    run.complete("p3", "p0")
    run.claim()
    assert [each.outcome.result for each in run.held["join"].inputs] == [b"p0", b"p3"]


def test_all_ended_runs_once_after_the_last_end_with_every_outcome(engine: Engine) -> None:
    run = joined(engine, 5, AllEnded())
    run.complete("p4", "p0")
    run.fail("p1")
    engine.cancel_execution(CancelExecutionArgs(execution_id=run.ids["p2"], reason="no need"))
    assert run.states()["join"] is PublicState.WAITING_CHILDREN
    run.complete("p3")
    assert run.claim() == {"join"}

    outcomes = [each.outcome for each in run.held["join"].inputs]
    assert [each.outcome for each in outcomes] == [
        TerminalOutcome.SUCCESS, TerminalOutcome.FAILED, TerminalOutcome.CANCELLED, TerminalOutcome.SUCCESS,
        TerminalOutcome.SUCCESS,
    ]  # fmt: skip
    assert (outcomes[1].error, outcomes[1].error_class, outcomes[2].error) == ("boom", "permanent", "no need")
    run.complete("join")
    # The success of the join covers no failure.
    assert run.flow.state is FlowState.FAILED
    assert group_of(run).state is EdgeGroupState.SATISFIED


def test_all_ended_waits_for_members_that_are_skipped_behind_others(engine: Engine) -> None:
    pairs = (("a", "join"), ("b", "join"), ("d", "join"), ("a", "d"))
    run = Run(engine, graph_of(*pairs, policies={"join": AllEnded()}))
    run.claim()
    run.fail("a")
    assert run.states()["d"] is SKIPPED
    assert run.states()["join"] is PublicState.WAITING_CHILDREN
    run.complete("b")
    assert run.claim() == {"join"}


def test_all_of_may_cancel_the_others_when_one_fails_for_good(engine: Engine) -> None:
    run = joined(engine, 4, AllOf(CANCEL), ("p3", "needs"))
    run.fail("p1")

    assert {run.states()[key] for key in ("p0", "p2")} == {CANCELLED}
    assert info_of(engine, run.ids["p0"]).cancel_reason == f"sibling_failed {run.ids['p1']}"
    # Another member that is not decided still needs p3.
    assert run.states()["p3"] is PublicState.ACTIVE
    run.complete("p3")
    assert run.claim() == {"needs"}


def test_a_sibling_that_no_one_needs_any_more_is_cancelled_while_it_waits(engine: Engine) -> None:
    pairs = (("fast", "join"), ("slow", "join"), ("before", "slow"))
    run = Run(engine, graph_of(*pairs, policies={"join": AnyOf()}))
    run.claim()
    run.complete("fast")

    assert run.states() == {
        "fast": PublicState.COMPLETED, "join": WAITING, "slow": CANCELLED, "before": PublicState.ACTIVE,
    }  # fmt: skip


def test_a_failure_is_covered_only_if_every_edge_of_its_member_is(engine: Engine) -> None:
    pairs = (("a", "any"), ("b", "any"), ("a", "all"))
    run = Run(engine, graph_of(*pairs, policies={"any": AnyOf(LET)}))
    run.claim()
    run.fail("a")
    run.complete("b")
    run.drain()
    assert run.states()["all"] is SKIPPED
    assert run.flow.state is FlowState.FAILED


def test_wide_joins_cancel_every_sibling_in_bounded_calls(engine: Engine) -> None:
    parents = [f"p{number}" for number in range(120)]
    run = Run(engine, graph_of(*((each, "join") for each in parents), policies={"join": AnyOf()}, task=TASK))
    upkeep_all(engine)
    run.claim()
    run.complete("p7")
    assert run.states()["join"] is WAITING
    upkeep_all(engine)

    assert run.counts() == {"cancelled": 119, "completed": 1, "waiting": 1}
    run.held = {}
    run.drain()
    assert run.flow.state is FlowState.COMPLETED
