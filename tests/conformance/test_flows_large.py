"""A flow of thousands of nodes: what a call costs the server is bounded, whatever the size.

A run by hand takes 20,000 nodes: FLOWFABRIC_TEST_NODES=20000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.flows import CancelFlowPolicy, CancelFlowWait, FlowGraph, FlowState
from tests.support.executions import raw_client
from tests.support.flows import Run, graph_of
from tests.support.measuring import Measuring
from tests.support.servers import ValkeyServer

NODES = int(os.environ.get("FLOWFABRIC_TEST_NODES", "2000"))
# The most commands that a call may send, however large the flow; 6,000 nodes need 962 in upkeep, which skips members.
MOST_COMMANDS = 1000


@pytest.fixture
def counting(valkey: ValkeyServer) -> Iterator[tuple[Engine, Measuring]]:
    """Provide an engine on a server, and its store, which counts."""
    engine = open_engine(f"{valkey.url}?prefix=w{uuid4().hex[:12]}")
    store = Measuring(engine.store, raw_client(engine))
    tried = Engine(lambda: (store, None))
    tried.prepare(testing=True)
    yield tried, store
    engine.close()


def fan_of(nodes: int) -> FlowGraph:
    """Return a graph that fans out to so many nodes, and in again."""
    middle = [f"n{number}" for number in range(nodes)]
    return graph_of(*(("first", each) for each in middle), *((each, "last") for each in middle), task="step")


def finish(run: Run) -> FlowState:
    """Let upkeep do what calls left over, and return the state of the flow."""
    while run.engine.run_upkeep().more:
        pass
    return run.flow.state


def test_no_call_of_a_large_flow_sends_more_than_1000_commands(counting: tuple[Engine, Measuring]) -> None:
    engine, store = counting
    run = Run(engine, fan_of(NODES))
    while ready := run.claim():
        engine.complete_many([Completion(handle=run.held.pop(key).handle) for key in ready])
    assert finish(run) is FlowState.COMPLETED

    failing = Run(engine, fan_of(NODES))
    failing.claim()
    failing.fail("first")
    assert finish(failing) is FlowState.FAILED
    assert failing.counts() == {"failed": 1, "skipped": NODES + 1}

    cancelled = Run(engine, fan_of(NODES))
    cancelled.claim()
    engine.complete_many([Completion(handle=cancelled.held.pop("first").handle)])
    engine.cancel_flow(cancelled.flow_id, CancelFlowPolicy.CANCEL_ALL, CancelFlowWait(None))
    assert finish(cancelled) is FlowState.CANCELLED

    assert {name: most for name, most in store.commands.items() if most > MOST_COMMANDS} == {}
    # A node is stored, claimed, ended and passed on by calls that take many.
    assert store.calls < NODES
