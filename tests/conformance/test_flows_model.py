"""Random graphs, outcomes, repeats and crashes: every member ends once, with the outcome that a model says."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.edges import (
    AllEnded,
    AllOf,
    AnyOf,
    EdgeDependencyPolicy,
    EdgeGroupState,
    OnSatisfied,
    Quorum,
)
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.policies import FailureClass
from tests.conftest import Clock
from tests.support.executions import BOOM, RETRYING, request, upkeep_all
from tests.support.flows import Pair, Run, graph_of
from tests.support.lossy_store import LosingStore

LET = OnSatisfied.LET_RUN
LEASE = timedelta(seconds=30)


class Plan:
    """A random graph, how each of its members ends if it runs, and what follows from that."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        count = self.draw.randint(2, 14)
        self.keys = [f"n{number:02}" for number in range(count)]
        self.pairs: list[Pair] = [
            (upper, lower, f"from_{upper}")
            for place, lower in enumerate(self.keys)
            for upper in self.keys[:place]
            if self.draw.random() < 0.3
        ]
        self.draw.shuffle(self.pairs)
        self.policies = {key: self._policy(len(self.parents(key))) for key in self.keys if self.parents(key)}
        self.succeeds = {key: self.draw.random() < 0.75 for key in self.keys}
        self.outcomes: dict[str, str] = {}
        self.states: dict[str, EdgeGroupState] = {}
        for key in self.keys:
            self._decide(key)

    def parents(self, key: str) -> list[str]:
        return [pair[0] for pair in self.pairs if pair[1] == key]

    def _policy(self, count: int) -> EdgeDependencyPolicy:
        policies = (AllOf(), AllOf(), AllEnded(), AnyOf(LET), Quorum(self.draw.randint(1, count), LET))
        return self.draw.choice(policies)

    def _decide(self, key: str) -> None:
        """Note how a member ends: its parents, which stand before it, have ended."""
        ends = [self.outcomes[parent] for parent in self.parents(key)]
        policy = self.policies.get(key, AllOf())
        wanted = {AllOf: len(ends), AnyOf: 1, AllEnded: 0}.get(type(policy), getattr(policy, "k", 0))
        runs = ends.count("completed") >= wanted
        self.states[key] = EdgeGroupState.SATISFIED if runs else EdgeGroupState.IMPOSSIBLE
        self.outcomes[key] = "skipped" if not runs else "completed" if self.succeeds[key] else "failed"

    def flow_state(self) -> FlowState:
        """Return how the flow ends: a failure counts unless any or a quorum was satisfied behind each of its edges."""
        for key, outcome in self.outcomes.items():
            below = [pair[1] for pair in self.pairs if pair[0] == key]
            covered = below and all(
                self.states[each] is EdgeGroupState.SATISFIED and isinstance(self.policies[each], AnyOf | Quorum)
                for each in below
            )
            if outcome == "failed" and not covered:
                return FlowState.FAILED
        return FlowState.COMPLETED


def drive(run: Run, plan: Plan, clock: Clock, ran: list[str]) -> None:
    """Run members until nothing is ready: each ends as planned, after retries, lost workers and repeated calls."""
    for number in range(200):
        ready = run.claim(worker=f"w{number}", limit=plan.draw.randint(1, 5))
        if not ready:
            return
        for key in plan.draw.sample(sorted(ready), len(ready)):
            check_inputs(run, plan, key)
            chance = plan.draw.random()
            if chance < 0.1:
                # The worker dies with all that it holds; its leases lapse, and another one claims the members.
                run.held.clear()
                clock.move(LEASE)
                break
            if chance < 0.2 and run.held[key].retry_count < 3:
                run.engine.fail(run.held.pop(key).handle, BOOM, FailureClass.TRANSIENT)
                clock.move(timedelta(seconds=1))
            else:
                ran.append(key)
                end = run.complete if plan.succeeds[key] else run.fail
                held = run.held[key]
                end(key)
                if chance > 0.8:
                    # The reply was lost, and the call comes again.
                    run.held[key] = held
                    end(key)


def check_inputs(run: Run, plan: Plan, key: str) -> None:
    """Check that a member gets the results that its parents have, in the order of its edges."""
    policy = plan.policies.get(key, AllOf())
    names = [each.name.removeprefix("from_") for each in run.held[key].inputs]
    ended: Mapping[str, str] = {each: plan.outcomes[each] for each in names}
    order = plan.parents(key)
    assert names == sorted(names, key=order.index)
    if isinstance(policy, AllEnded):
        assert names == order
    else:
        assert set(ended.values()) <= {"completed"}
    if isinstance(policy, AllOf):
        assert names == order
    for each in run.held[key].inputs:
        succeeded = ended[each.name.removeprefix("from_")] == "completed"
        assert each.outcome.result == (each.name.removeprefix("from_").encode() if succeeded else None)


@pytest.mark.parametrize("seed", range(12))
def test_a_random_graph_ends_as_the_model_says(engine: Engine, clock: Clock, seed: int) -> None:
    plan = Plan(seed)
    graph = graph_of(*plan.pairs, nodes=plan.keys, policies=plan.policies, policy=RETRYING)
    store = LosingStore(engine.store)
    losing = Engine(lambda: (store, None))
    with store.losing():
        assert losing.submit_flow(graph).created
    run, ran = Run(engine, graph), []  # type: ignore[var-annotated]
    drive(run, plan, clock, ran)
    while True:
        # What lost workers held is ready again when their leases have lapsed.
        clock.move(LEASE)
        upkeep_all(engine)
        before = len(ran)
        drive(run, plan, clock, ran)
        if len(ran) == before and not engine.claim_many(request()):
            break

    assert {key: state.value for key, state in run.states().items() if state} == plan.outcomes
    assert sorted(ran) == sorted(key for key, outcome in plan.outcomes.items() if outcome != "skipped")
    assert run.flow.state is plan.flow_state()
    keys = {each: key for key, each in run.ids.items()}
    assert {keys[group.downstream_execution_id]: group.state for group in run.flow.edge_groups} == {
        key: plan.states[key] for key in plan.policies
    }
    ends = [keys[event.execution_id] for event in engine.subscribe_completions(None, timeout=timedelta())]
    assert sorted(ends) == plan.keys
