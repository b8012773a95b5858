"""No call about a flow does much at once, however many edges and children there are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.flow_graphs import children_id, member_id
from flowfabric_worker.engine.limits import MAX_EDGES_SEARCHED
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.edges import AnyOf, OnSatisfied
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import all_created, creation, refused, upkeep_all
from tests.support.flows import Run, flow_with, graph_of, stage
from tests.support.measuring import Measuring, claimed_all, stored


def jobs(engine: Engine) -> list[str]:
    """Return the names of the jobs that calls left to upkeep."""
    client, key = stored(engine, "due")
    return [each.decode()[1:].partition(":")[0] for each in client.zrange(key, 0, -1) if each.startswith(b"j")]


def test_the_dependants_of_a_sibling_are_looked_at_by_several_calls(measured: Engine) -> None:
    downs = [f"d{number}" for number in range(300)]
    pairs = [("a", "join"), ("b", "join"), *((up, each) for each in downs for up in ("b", "c"))]
    policies = {"join": AnyOf(OnSatisfied.CANCEL_REMAINING), **{each: AnyOf() for each in downs}}
    run = Run(measured, graph_of(*pairs, policies=policies, task="step"))
    assert run.claim() == {"a", "b", "c"}
    run.complete("c")
    upkeep_all(measured)

    run.complete("a")

    assert jobs(measured) == ["others"]
    upkeep_all(measured)
    assert measured.read_execution_state(run.ids["b"]) is PublicState.CANCELLED


def test_the_groups_that_cover_a_failure_are_looked_at_by_several_calls(measured: Engine) -> None:
    joins = [f"j{number}" for number in range(300)]
    pairs = [(up, each) for each in joins for up in ("good", "bad")]
    run = Run(measured, graph_of(*pairs, policies={each: AnyOf() for each in joins}, task="step"))
    assert run.claim() == {"good", "bad"}
    run.fail("bad")
    run.complete("good")
    upkeep_all(measured)
    claimed = claimed_all(measured)
    measured.complete_many([Completion(handle=each.handle) for each in claimed])

    assert jobs(measured) == ["decide"]
    upkeep_all(measured)
    assert run.flow.state is FlowState.COMPLETED


def test_the_search_for_a_cycle_sends_few_commands(measured: Engine) -> None:
    flow, members = flow_with(measured, MAX_EDGES_SEARCHED + 102)
    middle = len(members) // 2
    for number, ends in enumerate(pairwise(members)):
        if number != middle:
            stage(measured, flow, f"edge {number}", ends)

    with refused("cycle_search_limit"):
        stage(measured, flow, "bridge", (members[middle], members[middle + 1]))
    store = measured.store
    assert isinstance(store, Measuring)
    assert store.commands["stage_dependency_edge"] <= 2 * MAX_EDGES_SEARCHED + 50


def parent_of(engine: Engine, count: int) -> Claimed:
    """Return a claimed parent of so many children, which are ready."""
    all_created(engine, [creation()])
    (parent,) = claimed_all(engine)
    for number in range(count):
        engine.spawn(parent.handle, f"child {number:03}", creation(lane="children"))
    return parent


def test_children_that_end_while_a_wait_counts_them_count_once(measured: Engine) -> None:
    parent = parent_of(measured, 450)
    children = claimed_all(measured, "children")
    words: list[bytes] = []
    send = measured.store.call

    def call(name: str, *arguments: Any) -> Reply:
        reply = send(name, *arguments)
        if name == "wait_children":
            words.append(reply[0])
            ended = [Completion(handle=each.handle) for each in children[len(words) :: 100]]
            measured.complete_many(ended)
            del children[len(words) :: 100]
        return reply

    measured.store.call = call  # type: ignore[method-assign]
    measured.wait_children(parent.handle)

    assert words == [b"more", b"more", b"ok"]
    measured.complete_many([Completion(handle=each.handle) for each in children[1:]])
    assert claimed_all(measured) == []
    measured.complete(children[0].handle)
    assert [each.execution_id for each in claimed_all(measured)] == [parent.execution_id]


def test_a_wait_that_was_left_half_counted_is_begun_again(measured: Engine) -> None:
    parent = parent_of(measured, 250)
    children = claimed_all(measured, "children")
    half = [parent.handle.execution_id.uuid, parent.handle.fence, "", "", "an earlier call"]
    assert measured.store.call("wait_children", 0, half) == [b"more"]

    measured.wait_children(parent.handle, names=["child 000", "child 249"])

    named = {str(each.execution_id): each for each in children}
    for name in ("child 000", "child 249"):
        assert claimed_all(measured) == []
        spawned = member_id(children_id(parent.execution_id, 1), name, 0)
        measured.complete(named[str(spawned)].handle)
    assert [each.execution_id for each in claimed_all(measured)] == [parent.execution_id]
