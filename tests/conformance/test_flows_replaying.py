"""Replays inside a flow: what was skipped behind a member waits again, and what had run does not run twice."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.edges import AnyOf, EdgeState, Incoming, OnSatisfied, Quorum
from flowfabric_worker.engine.types.flows import CancelFlowPolicy, CancelFlowWait, FlowState
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import TASK, info_of, upkeep_all
from tests.support.flows import DIAMOND, Run, graph_of

CHAIN = (("a", "b", "x"), ("b", "c", "x"))
WAITING_CHILDREN, SKIPPED = PublicState.WAITING_CHILDREN, PublicState.SKIPPED


def replay(engine: Engine, execution: ExecutionId) -> PublicState:
    return engine.replay_execution(ReplayExecutionArgs(execution_id=execution)).state


def test_a_repaired_member_lets_run_what_was_skipped_behind_it(engine: Engine) -> None:
    run = Run(engine, graph_of(*CHAIN))
    run.claim()
    run.fail("a")
    assert run.flow.state is FlowState.FAILED

    assert replay(engine, run.ids["a"]) is PublicState.WAITING
    assert run.states() == {"a": PublicState.WAITING, "b": WAITING_CHILDREN, "c": WAITING_CHILDREN}
    assert run.flow.state is FlowState.RUNNING
    assert run.drain() == [{"a"}, {"b"}, {"c"}]
    assert run.flow.state is FlowState.COMPLETED
    assert run.flow.failed_execution_ids == ()


def test_a_replay_that_fails_again_skips_again_and_announces_it(engine: Engine) -> None:
    run = Run(engine, graph_of(*CHAIN))
    for _ in range(2):
        run.claim()
        run.fail("a")
        assert run.states() == {"a": PublicState.FAILED, "b": SKIPPED, "c": SKIPPED}
        assert run.flow.state is FlowState.FAILED
        replay(engine, run.ids["a"])
    ends = [event.outcome.value for event in engine.subscribe_completions(None, timeout=timedelta())]
    assert ends.count("skipped") == 4
    assert run.drain() == [{"a"}, {"b"}, {"c"}]


def test_members_that_had_run_do_not_run_twice(engine: Engine) -> None:
    run = Run(engine, graph_of(*DIAMOND, ("b", "own")))
    run.claim()
    run.complete("a")
    run.claim()
    run.complete("b")
    run.fail("c")
    run.claim()
    run.complete("own")
    assert run.flow.state is FlowState.FAILED

    replay(engine, run.ids["c"])

    assert run.drain() == [{"c"}, {"d"}]
    assert run.flow.state is FlowState.COMPLETED


def test_a_skipped_member_that_is_replayed_waits_for_its_failed_parent(engine: Engine) -> None:
    run = Run(engine, graph_of(*CHAIN))
    run.claim()
    run.fail("a")

    assert replay(engine, run.ids["b"]) is WAITING_CHILDREN
    assert info_of(engine, run.ids["b"]).state.attempt_state == "pending_replay_attempt"
    (edge,) = engine.list_edges(run.flow_id, Incoming(run.ids["b"])).edges
    assert edge.state is EdgeState.APPLIED  # type: ignore[union-attr]
    assert run.states() == {"a": PublicState.FAILED, "b": WAITING_CHILDREN, "c": WAITING_CHILDREN}
    assert run.flow.state is FlowState.BLOCKED
    replay(engine, run.ids["a"])
    assert run.drain() == [{"a"}, {"b"}, {"c"}]
    assert run.flow.state is FlowState.COMPLETED


def test_a_join_with_two_failed_parents_waits_for_both_replays(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "join"), ("b", "join")))
    run.claim()
    run.fail("a", "b")
    replay(engine, run.ids["a"])
    assert run.states()["join"] is WAITING_CHILDREN
    assert run.claim() == {"a"}
    run.complete("a")
    # The other parent is still failed.
    assert run.states()["join"] is SKIPPED
    replay(engine, run.ids["b"])
    assert run.drain() == [{"b"}, {"join"}]


def test_an_impossible_quorum_opens_again_and_keeps_its_successes(engine: Engine) -> None:
    quorum = Quorum(2, OnSatisfied.LET_RUN)
    run = Run(engine, graph_of(("x", "join"), ("y", "join"), ("z", "join"), policies={"join": quorum}))
    run.claim()
    run.complete("x")
    run.fail("y", "z")
    assert run.states()["join"] is SKIPPED
    replay(engine, run.ids["join"])
    (group,) = run.flow.edge_groups
    assert (group.satisfied_count, group.failed_count, group.running_count) == (1, 0, 2)
    replay(engine, run.ids["z"])
    assert run.drain() == [{"z"}, {"join"}]
    # The failure that is left is covered by the quorum.
    assert run.flow.state is FlowState.COMPLETED


def test_a_replay_of_a_parent_that_succeeded_disturbs_no_child(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b", "x"), ("other", "b")))
    run.claim()
    run.complete("a")
    replay(engine, run.ids["a"])
    run.complete("other")
    assert run.claim() == {"a", "b"}
    # The result of the first run stands while the second runs.
    assert [each.outcome.result for each in run.held["b"].inputs] == [b"a"]
    run.fail("a")
    run.complete("b")
    assert run.flow.state is FlowState.FAILED


def test_a_replay_opens_a_flow_that_had_ended_or_was_cancelled(engine: Engine, clock: Clock) -> None:
    run = Run(engine, graph_of(*CHAIN))
    run.claim()
    engine.cancel_flow(run.flow_id, CancelFlowPolicy.CANCEL_ALL, CancelFlowWait.no_wait(), "why")
    assert run.flow.state is FlowState.CANCELLED
    replay(engine, run.ids["a"])
    run.held = {}
    assert run.claim() == {"a"}
    clock.move(timedelta(days=2))
    upkeep_all(engine)
    assert run.flow.state is FlowState.RUNNING
    assert run.flow.cancel_reason is None
    run.claim(worker="w2")
    run.complete("a")
    assert run.states()["b"] is PublicState.CANCELLED
    assert run.flow.state is FlowState.COMPLETED


def test_a_wide_replay_opens_everything_behind_it_in_bounded_calls(engine: Engine) -> None:
    children = [f"c{number}" for number in range(100)]
    pairs = [("a", each) for each in children] + [(each, "last") for each in children]
    run = Run(engine, graph_of(*pairs, task=TASK, policies={"last": AnyOf(OnSatisfied.LET_RUN)}))
    run.claim()
    run.fail("a")
    upkeep_all(engine)
    assert run.counts() == {"failed": 1, "skipped": 101}
    replay(engine, run.ids["a"])
    upkeep_all(engine)
    assert run.counts() == {"waiting": 1, "waiting_children": 101}
    run.claim()
    run.complete("a")
    upkeep_all(engine)
    run.drain()
    upkeep_all(engine)
    run.drain()
    assert run.counts() == {"completed": 102}
    assert run.flow.state is FlowState.COMPLETED


def test_a_member_cancelled_before_its_turn_waits_when_it_is_replayed(engine: Engine) -> None:
    run = Run(engine, graph_of(*CHAIN))
    engine.cancel_execution(CancelExecutionArgs(execution_id=run.ids["b"]))
    assert replay(engine, run.ids["b"]) is WAITING_CHILDREN
    assert run.states()["c"] is WAITING_CHILDREN
    assert run.drain() == [{"a"}, {"b"}, {"c"}]
    assert run.flow.state is FlowState.COMPLETED
