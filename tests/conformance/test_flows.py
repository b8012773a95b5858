"""Whole graphs: what submitting one promises, and what the end of a member sets free."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.flow_graphs import member_id
from flowfabric_worker.engine.partitions import partition_of_uuid
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ChangePriorityArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.edges import AllEnded, AnyOf, EdgeGroupState, EdgeState, Incoming, Outgoing, Quorum
from flowfabric_worker.engine.types.flows import FlowGraph, FlowState, FlowSummary
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, RETRYING, TASK, refused, request, upkeep_all
from tests.support.flows import DIAMOND, Run, graph_of
from tests.support.lossy_store import LosingStore
from tests.support.stepped_store import Killed

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
CHAIN = (("a", "b", "x"), ("b", "c", "x"), ("c", "d", "x"))


def test_a_graph_runs_in_the_order_of_its_edges_and_completes(engine: Engine) -> None:
    run = Run(engine, graph_of(*DIAMOND))
    assert run.flow.state is FlowState.OPEN
    assert run.counts() == {"waiting": 1, "waiting_children": 3}

    assert run.drain() == [{"a"}, {"b", "c"}, {"d"}]

    assert run.flow.state is FlowState.COMPLETED
    assert run.counts() == {"completed": 4}
    assert (run.flow.node_count, run.flow.edge_count) == (4, 4)
    assert {group.state for group in run.flow.edge_groups} == {EdgeGroupState.SATISFIED}


def test_the_state_of_a_flow_follows_its_members_in_the_same_step(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b"), ("b", "c"), nodes=["late"]))
    seen = []
    later = datetime.now(UTC) + HOUR
    for act in (
        run.claim,
        lambda: run.complete("a"),
        lambda: engine.delay(run.held.pop("late").handle, later),
        run.claim,
        lambda: engine.delay(run.held.pop("b").handle, later),
    ):
        act()
        seen.append(run.flow.state)

    assert seen == [FlowState.RUNNING] * 4 + [FlowState.BLOCKED]
    assert run.counts() == {"completed": 1, "delayed": 2, "waiting_children": 1}


def test_a_flow_of_delayed_roots_is_open_until_one_of_them_begins(engine: Engine, clock: Clock) -> None:
    run = Run(engine, graph_of(("a", "b"), ("late", "b"), delay=HOUR))
    seen = [run.flow.state]
    clock.move(HOUR)
    upkeep_all(engine)
    seen.append(run.flow.state)
    assert run.claim() == {"a", "late"}
    seen.append(run.flow.state)
    for key in ("a", "late"):
        engine.delay(run.held.pop(key).handle, HOUR)
    seen.append(run.flow.state)
    clock.move(HOUR)
    upkeep_all(engine)
    seen.append(run.flow.state)

    assert seen == [FlowState.BLOCKED, FlowState.OPEN, FlowState.RUNNING, FlowState.BLOCKED, FlowState.RUNNING]


def test_a_success_after_a_failure_leaves_a_skipped_child_as_it_is(engine: Engine) -> None:
    run = Run(engine, graph_of(("bad", "c"), ("ok", "c"), ("c", "d")))
    run.claim()
    run.fail("bad")
    skipped = engine.read_execution_info(run.ids["c"])
    run.complete("ok")

    assert engine.read_execution_info(run.ids["c"]) == skipped
    assert skipped is not None
    assert skipped.error == f"dependency_impossible {run.ids['bad']}"
    assert run.flow.state is FlowState.FAILED


def test_a_child_gets_the_results_of_its_parents_by_argument_name(engine: Engine) -> None:
    run = Run(engine, graph_of(*DIAMOND, ("a", "d", "first"), ("a", "d")))
    run.claim()
    assert run.held["a"].inputs == ()
    run.complete("a")
    run.claim()
    run.complete("c", "b")
    run.claim()

    claimed = run.held["d"]
    assert claimed.flow_id == run.flow_id
    assert claimed.inputs_cursor is None
    # In the order of the edges, not of the ends; an edge without an argument passes nothing.
    assert [(each.name, each.outcome.result) for each in claimed.inputs] == [
        ("left", b"b"), ("right", b"c"), ("first", b"a"),
    ]  # fmt: skip
    assert {each.outcome.outcome for each in claimed.inputs} == {TerminalOutcome.SUCCESS}
    assert claimed.payload == b"{}"


def test_the_inputs_come_again_with_every_attempt(engine: Engine, clock: Clock) -> None:
    run = Run(engine, graph_of(("a", "b", "x"), policy=RETRYING))
    run.claim()
    run.complete("a")
    run.claim()
    first = run.held["b"].inputs
    clock.move(timedelta(seconds=31))

    run.claim(worker="w2")

    assert run.held["b"].reclaim_count == 1
    assert run.held["b"].inputs == first
    assert [each.outcome.result for each in first] == [b"a"]


def test_large_inputs_are_read_in_pages_before_the_handler_starts(engine: Engine) -> None:
    parents = [f"p{number:03}" for number in range(150)]
    run = Run(engine, graph_of(*((each, "join", "items") for each in parents), task=TASK))
    upkeep_all(engine)
    run.claim()
    for each in parents:
        engine.complete(run.held.pop(each).handle, each.encode() * 8000)
    run.claim()

    claimed = run.held["join"]
    inputs, cursor, pages = [*claimed.inputs], claimed.inputs_cursor, 1
    while cursor is not None:
        page = engine.read_inputs(claimed.handle, cursor)
        assert page.inputs
        inputs += page.inputs
        cursor, pages = page.next_cursor, pages + 1

    assert pages > 2
    assert [each.outcome.result for each in inputs] == [each.encode() * 8000 for each in parents]


def test_a_failed_parent_skips_everything_behind_it_at_once(engine: Engine) -> None:
    run = Run(engine, graph_of(*CHAIN, ("a", "other"), nodes=["apart"]))
    run.claim()
    run.fail("a")

    assert run.states() == {
        "apart": PublicState.ACTIVE, "a": PublicState.FAILED,
        **dict.fromkeys(("b", "c", "d", "other"), PublicState.SKIPPED),
    }  # fmt: skip
    assert run.flow.state is FlowState.RUNNING
    run.complete("apart")
    assert run.flow.state is FlowState.FAILED
    assert run.flow.failed_execution_ids == (run.ids["a"],)
    outcome = engine.read_outcome(run.ids["d"])
    assert outcome is not None
    assert outcome.outcome is TerminalOutcome.SKIPPED
    assert outcome.error == f"dependency_impossible {run.ids['c']}"
    ends = [event.outcome for event in engine.subscribe_completions(None, timeout=timedelta())]
    assert sorted(ends) == ["failed", *["skipped"] * 4, "success"]


@pytest.mark.parametrize("how", ["cancelled", "expired", "reclaims exhausted"])
def test_a_parent_that_ends_in_any_other_way_skips_its_child(engine: Engine, clock: Clock, how: str) -> None:
    policy = ExecutionPolicy(execution_deadline=HOUR if how == "expired" else None, max_reclaim_count=0)
    run = Run(engine, graph_of(("a", "b"), policy=policy))
    run.claim()
    if how == "cancelled":
        engine.cancel_execution(CancelExecutionArgs(execution_id=run.ids["a"], reason="no"))
    else:
        clock.move(HOUR)
        assert run.claim() == set()

    assert run.states()["b"] in (PublicState.SKIPPED, PublicState.EXPIRED if how == "expired" else None)
    assert run.flow.state is FlowState.FAILED


def test_a_retry_keeps_the_child_waiting_until_the_last_failure(engine: Engine, clock: Clock) -> None:
    run = Run(engine, graph_of(("a", "b"), policy=RETRYING))
    for _ in range(5):
        run.claim()
        engine.fail(run.held.pop("a").handle, BOOM, FailureClass.TRANSIENT)
        assert run.states()["b"] is PublicState.WAITING_CHILDREN
        clock.move(SECOND)
    run.claim()
    run.fail("a")

    assert run.states()["b"] is PublicState.SKIPPED


def test_a_delayed_child_runs_when_its_parents_and_its_delay_are_over(engine: Engine, clock: Clock) -> None:
    run = Run(engine, graph_of(("a", "b"), delay=HOUR))
    assert run.states() == {"a": PublicState.DELAYED, "b": PublicState.WAITING_CHILDREN}
    clock.move(HOUR)
    assert run.claim() == {"a"}
    run.complete("a")
    assert run.claim() == {"b"}


def test_the_same_graph_again_gets_the_same_executions(engine: Engine, dump: Dump) -> None:
    graph = graph_of(*DIAMOND, idempotency_key=None)
    first = engine.submit_flow(graph)
    before = dump()
    second = engine.submit_flow(graph)

    assert (first.created, second.created) == (True, False)
    assert second.execution_ids == first.execution_ids
    assert dump() == before
    with refused("conflict"):
        engine.submit_flow(graph_of(*DIAMOND[:2], flow_id=graph.flow_id))
    assert dump() == before


WRONG: dict[str, tuple[str, Callable[[], FlowGraph]]] = {
    "a key twice": ("invalid_graph", lambda: attrs.evolve(graph_of(("a", "b")), nodes=graph_of(nodes="aa").nodes * 2)),
    "an unknown node": (
        "invalid_graph",
        lambda: attrs.evolve(graph_of(("a", "b")), nodes=()),
    ),
    "an edge to itself": ("self_referencing_edge", lambda: graph_of(("a", "a"))),
    "a cycle of two": ("cycle_detected", lambda: graph_of(("a", "b"), ("b", "a"))),
    "a cycle behind a node": ("cycle_detected", lambda: graph_of(("a", "b"), ("b", "c"), ("c", "d"), ("d", "b"))),
    "more successes than edges": ("invalid_graph", lambda: graph_of(("a", "b"), policies={"b": Quorum(2)})),
    "any of no edges": ("invalid_graph", lambda: graph_of(nodes=["a"], policies={"a": AnyOf()})),
    "a flow id that is none": ("invalid_input", lambda: graph_of(("a", "b"), flow_id="nightly")),
    "a node without a lane": ("invalid_input", lambda: graph_of(("a", "b"), lane="")),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_graph_that_is_wrong_is_refused_and_leaves_no_trace(engine: Engine, dump: Dump, why: str) -> None:
    code, graph = WRONG[why]
    before = dump()
    with refused(code):
        engine.submit_flow(graph())
    assert dump() == before


def test_a_flow_without_nodes_is_completed_at_once(engine: Engine) -> None:
    run = Run(engine, graph_of())
    assert run.flow.state is FlowState.COMPLETED
    assert run.flow.node_count == 0


class DyingStore(LosingStore):
    """A store whose caller dies when it sends the second part of a graph."""

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        if function == "submit_flow" and int(arguments[1][7]) > 0:
            raise Killed
        return super().call(function, *arguments, **options)


def half_built(engine: Engine) -> FlowGraph:
    """Return a graph whose submission died after its first call."""
    store = DyingStore(engine.store)
    graph = graph_of(*((f"p{number}", "join") for number in range(150)), task=TASK)
    with pytest.raises(Killed):
        Engine(lambda: (store, None), retry_for=0).submit_flow(graph)
    return graph


def test_a_half_built_flow_is_hidden_and_none_of_it_runs(engine: Engine) -> None:
    graph = half_built(engine)
    partition = partition_of_uuid(UUID(graph.flow_id), engine.partitions)
    member = member_id(graph.flow_id, "p0", partition)

    assert engine.claim_many(request(limit=500)) == []
    assert engine.describe_flow(graph.flow_id) is None
    assert engine.list_flows(partition).flows == ()
    assert engine.describe_execution(member) is None
    assert engine.list_executions(limit=500).executions == ()
    for act in (
        lambda: engine.cancel_execution(CancelExecutionArgs(execution_id=member)),
        lambda: engine.replay_execution(ReplayExecutionArgs(execution_id=member)),
        lambda: engine.change_priority(ChangePriorityArgs(execution_id=member, priority=5)),
        lambda: engine.read_outcome(member),
        lambda: engine.purge(member),
    ):
        with refused("execution_not_found"):
            act()

    assert engine.submit_flow(graph).created
    upkeep_all(engine)
    assert len(engine.claim_many(request(limit=500))) == 150
    assert len(engine.list_executions(limit=500).executions) == 151


def test_a_half_built_flow_is_removed_after_an_hour(engine: Engine, clock: Clock, dump: Dump) -> None:
    half_built(engine)
    clock.move(HOUR - timedelta(milliseconds=1))
    upkeep_all(engine)
    assert any(":flow:" in key for key in dump())

    clock.move(timedelta(milliseconds=1))
    upkeep_all(engine)

    left = {key for key in dump() if ":x:" in key or ":flow" in key or ":links" in key or ":build" in key}
    assert left == set()


def test_a_flow_is_removed_with_its_members_by_the_longest_retention(engine: Engine, clock: Clock, dump: Dump) -> None:
    graph = graph_of(("a", "b", "x"), ("b", "c"), policy=ExecutionPolicy(retention=HOUR))
    run = Run(engine, graph)
    run.claim()
    run.complete("a")
    clock.move(HOUR * 3)
    upkeep_all(engine)
    # A member is kept as long as its flow, however long ago it ended.
    assert run.claim() == {"b"}
    assert [each.outcome.result for each in run.held["b"].inputs] == [b"a"]
    run.complete("b")
    run.claim()
    run.complete("c")
    clock.move(HOUR - timedelta(milliseconds=1))
    upkeep_all(engine)
    assert run.flow.state is FlowState.COMPLETED

    clock.move(timedelta(milliseconds=1))
    upkeep_all(engine)

    assert engine.describe_flow(run.flow_id) is None
    assert [key for key in dump() if any(each in key for each in (run.flow_id, ":x:", ":flows", ":jobs"))] == []


def test_reads_of_flows_and_edges_are_ordered_and_paged(engine: Engine) -> None:
    run = Run(engine, graph_of(*DIAMOND))
    partition = run.ids["a"].partition_number
    edges = engine.list_edges(run.flow_id, Outgoing(run.ids["a"])).edges
    assert [each.edge_id for each in edges] == ["e0000000", "e0000001"]  # type: ignore[union-attr]
    assert [each.state for each in edges] == [EdgeState.APPLIED] * 2  # type: ignore[union-attr]
    incoming = engine.list_edges(run.flow_id, Incoming(run.ids["d"]), limit=1)
    assert incoming.next_cursor == "e0000002"
    rest = engine.list_edges(run.flow_id, Incoming(run.ids["d"]), incoming.next_cursor)
    assert ([each.edge_id for each in rest.edges], rest.next_cursor) == (["e0000003"], None)  # type: ignore[union-attr]
    assert engine.describe_edge(run.flow_id, edges[0].edge_id) == edges[0]  # type: ignore[union-attr]
    assert engine.describe_edge(run.flow_id, "nothing") is None  # type: ignore[arg-type]

    found, cursor = [], None
    while True:
        page = engine.list_edges(run.flow_id, None, cursor, 3)
        found += page.edges
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(found) == 4
    members = engine.list_flow_members(run.flow_id, limit=3)
    assert len(members.members) == 3
    assert len(engine.list_flow_members(run.flow_id, members.next_cursor).members) == 1
    (row,) = engine.list_flows(partition).flows
    assert isinstance(row, FlowSummary)
    assert (row.flow_id, row.state) == (run.flow_id, FlowState.OPEN)
    assert engine.resolve_execution_flow_id(run.ids["b"]) == run.flow_id


def test_many_members_may_end_in_one_call(engine: Engine) -> None:
    run = Run(engine, graph_of(*((f"p{number}", "join") for number in range(60)), policies={"join": AllEnded()}))
    run.claim()
    engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in run.held.values()])

    run.held = {}
    assert run.claim() == {"join"}
    group = run.flow.edge_groups[0]
    assert (group.total_count, group.satisfied_count, group.running_count) == (60, 60, 0)


def test_a_member_of_a_flow_that_has_not_ended_cannot_be_purged(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b")))
    run.claim()
    run.complete("a")
    with refused("flow_not_terminal"):
        engine.purge(run.ids["a"])
    with refused("flow_not_terminal"):
        engine.purge_flow(run.flow_id)
    run.drain()

    engine.purge_flow(run.flow_id)

    assert engine.describe_flow(run.flow_id) is None
    assert engine.describe_execution(run.ids["a"]) is None
    with refused("flow_not_found"):
        engine.purge_flow(run.flow_id)


def test_a_flow_of_another_namespace_is_not_found(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b")))
    other = Engine(lambda: (engine.store, None), namespace="other")

    assert other.describe_flow(run.flow_id) is None
    assert other.list_flows(run.ids["a"].partition_number).flows == ()
    with refused("flow_not_found"):
        other.seal_flow(run.flow_id)
