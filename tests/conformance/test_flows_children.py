"""Children: what spawning one promises, when their parent continues, and what becomes of them when it ends."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, claim_one, creation, refused, request, running, upkeep_all

CANCELLED = PublicState.CANCELLED


class Family:
    """An execution that runs, and its children by name."""

    def __init__(self, engine: Engine, *names: str, policy: ExecutionPolicy | None = None) -> None:
        self.engine = engine
        self.parent = running(engine, lane="parents", **({"policy": policy} if policy else {}))
        self.ids = {name: self.spawn(name) for name in names}
        self.held: dict[str, Claimed] = {}

    def spawn(self, name: str, **changes: bool) -> str:
        return self.engine.spawn(self.parent.handle, name, creation(lane="children"), **changes).execution_id

    def run(self) -> None:
        """Claim the children that are ready."""
        keys = {each: name for name, each in self.ids.items()}
        for each in self.engine.claim_many(request("children", limit=100)):
            self.held[keys[each.execution_id]] = each

    def complete(self, *names: str) -> None:
        for name in names:
            self.engine.complete(self.held.pop(name).handle, name.encode())

    def fail(self, *names: str) -> None:
        for name in names:
            self.engine.fail(self.held.pop(name).handle, BOOM, FailureClass.PERMANENT)

    @property
    def state(self) -> PublicState | None:
        return self.engine.read_execution_state(self.parent.execution_id)

    def states(self) -> dict[str, PublicState | None]:
        return {name: self.engine.read_execution_state(each) for name, each in self.ids.items()}  # type: ignore[arg-type]


def test_a_child_of_a_name_is_made_once_in_any_attempt(engine: Engine, clock: Clock) -> None:
    family = Family(engine)
    first = engine.spawn(family.parent.handle, "a", creation(lane="children"))
    again = engine.spawn(family.parent.handle, "a", creation(lane="children", payload=b"other"))
    clock.move(timedelta(minutes=1))
    family.parent = claim_one(engine, "parents", worker="w2")
    later = engine.spawn(family.parent.handle, "a", creation(lane="children"))

    assert (first.created, again.created, later.created) == (True, False, False)
    assert first.execution_id == again.execution_id == later.execution_id
    assert first.execution_id.partition_number == family.parent.execution_id.partition_number
    assert [each.payload for each in engine.claim_many(request("children", limit=5))] == [b"{}"]


def test_a_parent_continues_when_all_its_children_succeeded(engine: Engine) -> None:
    family = Family(engine, "a", "b")
    engine.wait_children(family.parent.handle)
    assert family.state is PublicState.WAITING_CHILDREN
    assert engine.claim_many(request("parents")) == []
    family.run()
    family.complete("a")
    assert family.state is PublicState.WAITING_CHILDREN
    family.complete("b")

    claimed = claim_one(engine, "parents")
    assert (claimed.handle.kind, claimed.handle.attempt_index) == (HandleKind.RESUMED, 0)
    assert claimed.retry_count == 0
    engine.wait_children(claimed.handle)
    assert family.state is PublicState.WAITING
    flow = engine.describe_flow(engine.resolve_execution_flow_id(family.ids["a"]))  # type: ignore[arg-type]
    assert flow is not None
    assert (flow.kind, flow.node_count, flow.state) == ("children", 2, FlowState.OPEN)
    claimed = claim_one(engine, "parents")
    engine.complete(claimed.handle, b"")
    flow = engine.describe_flow(flow.flow_id)
    assert flow is not None
    assert flow.state is FlowState.COMPLETED


@pytest.mark.parametrize(
    ("need", "settle", "done"), [(None, False, 1), (2, False, 3), (None, True, 4), (2, True, 2), (9, True, 4)]
)
def test_a_wait_ends_as_soon_as_enough_or_too_few_succeed(
    engine: Engine, need: int | None, settle: bool, done: int
) -> None:
    family = Family(engine, "a", "b", "c", "d")
    engine.wait_children(family.parent.handle, need, settle=settle)
    family.run()
    for name in "abcd"[:done]:
        assert family.state is PublicState.WAITING_CHILDREN
        family.fail(name)
    assert family.state is PublicState.WAITING


def test_a_wait_for_some_names_counts_no_others(engine: Engine) -> None:
    family = Family(engine, "a", "b", "c")
    engine.wait_children(family.parent.handle, names=["a", "c"])
    family.run()
    family.fail("b")
    family.complete("a")
    assert family.state is PublicState.WAITING_CHILDREN
    family.complete("c")
    assert family.state is PublicState.WAITING


def test_a_later_wait_counts_what_had_ended_before(engine: Engine) -> None:
    family = Family(engine, "a", "b")
    family.run()
    family.fail("a")
    engine.wait_children(family.parent.handle, names=["b"])
    family.complete("b")
    family.parent = claim_one(engine, "parents")
    family.ids["c"] = family.spawn("c")
    engine.wait_children(family.parent.handle, names=["b", "c"])
    assert family.state is PublicState.WAITING_CHILDREN
    family.run()
    family.complete("c")
    assert family.state is PublicState.WAITING


@pytest.mark.parametrize("how", ["cancelled", "expired", "failed", "completed"])
def test_children_go_with_a_parent_that_is_cancelled_or_expires(engine: Engine, clock: Clock, how: str) -> None:
    hour = timedelta(hours=1)
    family = Family(engine, "a", "b", policy=ExecutionPolicy(execution_deadline=hour if how == "expired" else None))
    family.ids["apart"] = family.spawn("apart", detached=True)
    family.run()
    engine.release(family.held.pop("b").handle)
    if how == "cancelled":
        engine.cancel_execution(CancelExecutionArgs(execution_id=family.parent.execution_id))
    elif how == "failed":
        engine.fail(family.parent.handle, BOOM, FailureClass.PERMANENT)
    elif how == "completed":
        engine.complete(family.parent.handle, b"")
    else:
        engine.renew(family.held["apart"].handle)
        clock.move(timedelta(seconds=29))
        for _ in range(125):
            for each in family.held.values():
                engine.renew(each.handle)
            clock.move(timedelta(seconds=29))
        upkeep_all(engine)

    goes = how in ("cancelled", "expired")
    states = family.states()
    assert states["apart"] is PublicState.ACTIVE
    assert states["a"] is (CANCELLED if goes else PublicState.ACTIVE)
    assert states["b"] is (CANCELLED if goes else PublicState.WAITING)
    with refused("execution_not_active"):
        family.spawn("late")


def test_cancelling_reaches_three_levels(engine: Engine) -> None:
    family = Family(engine, "a", "b")
    family.run()
    grand = engine.spawn(family.held["a"].handle, "g", creation(lane="grand")).execution_id
    engine.wait_children(family.held["a"].handle)
    engine.wait_children(family.parent.handle)
    engine.cancel_execution(CancelExecutionArgs(execution_id=family.parent.execution_id))
    assert {engine.read_execution_state(each) for each in (grand, *family.ids.values())} == {CANCELLED}  # type: ignore[arg-type]


def test_a_replayed_parent_finds_its_children_and_spawns_more(engine: Engine) -> None:
    family = Family(engine, "a")
    family.run()
    family.complete("a")
    engine.complete(family.parent.handle, b"")
    engine.replay_execution(ReplayExecutionArgs(execution_id=family.parent.execution_id))
    family.parent = claim_one(engine, "parents")
    assert not engine.spawn(family.parent.handle, "a", creation(lane="children")).created
    family.ids["b"] = family.spawn("b")
    engine.wait_children(family.parent.handle)
    assert family.state is PublicState.WAITING_CHILDREN
    family.run()
    family.complete("b")
    assert family.state is PublicState.WAITING


def test_a_family_is_removed_after_its_retention(engine: Engine, clock: Clock, dump: Dump) -> None:
    family = Family(engine, "a", "b")
    family.run()
    family.complete("a", "b")
    clock.move(timedelta(seconds=20))
    engine.complete(family.parent.handle, b"")
    clock.move(timedelta(days=2))
    upkeep_all(engine)
    assert [key for key in dump() if any(each in key for each in (":x:", ":flow", ":links", ":edges", ":groups"))] == []
