"""A damaged member of a flow: it harms itself alone, and its flow ends once it is purged."""

from __future__ import annotations

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import damage, upkeep_all
from tests.support.flows import Run, graph_of


@pytest.mark.parametrize("field", ["priority", "state"])
def test_a_flow_goes_on_beside_a_damaged_member_and_ends_after_its_purge(engine: Engine, field: str) -> None:
    run = Run(engine, graph_of(("a", "b"), ("b", "c"), ("x", "y", "in")))
    damage(engine, run.ids["a"], field, b"junk")

    assert run.claim() == {"x"}
    run.complete("x")
    assert run.claim() == {"y"}
    run.complete("y")
    assert [row.row_id for row in engine.list_damaged().executions] == [run.ids["a"]]
    assert run.flow.state in (FlowState.RUNNING, FlowState.BLOCKED)

    engine.purge(run.ids["a"])

    states = run.states()
    assert (states["a"], states["b"], states["c"]) == (None, PublicState.SKIPPED, PublicState.SKIPPED)
    assert run.counts() == {"completed": 2, "skipped": 2}
    assert (run.flow.node_count, run.flow.state) == (4, FlowState.COMPLETED)
    upkeep_all(engine)
    engine.purge_flow(run.flow_id)
    assert engine.list_executions().executions == ()


def test_a_damaged_child_hides_no_other_behind_it(engine: Engine) -> None:
    run = Run(engine, graph_of(("a", "b"), ("a", "c"), ("a", "d")))
    damage(engine, run.ids["c"], "place", b"junk")
    run.claim()
    run.complete("a")

    assert run.claim() == {"b", "d"}
    assert [row.row_id for row in engine.list_damaged().executions] == [run.ids["c"]]
