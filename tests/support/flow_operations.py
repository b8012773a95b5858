"""Every operation on flows at least once, and those that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from uuid import uuid4

import attrs

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import EdgeId, ExecutionId, FlowId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.edges import AnyOf, Outgoing, Quorum
from flowfabric_worker.engine.types.flows import (
    CancelFlowArgs,
    CancelFlowPolicy,
    CancelFlowWait,
    CreateFlowArgs,
    FlowGraph,
)
from tests.support.executions import creation, ids_in, request, running
from tests.support.flows import DIAMOND, Run, apply, edge, executions_beside, flow_with, graph_of, member, stage

Act: TypeAlias = Callable[[], Any]

# A fixed id, so that what a store holds is the same each time.
FLOW = FlowId("0190a0b0-0000-7000-8000-000000000001")
NO_WAIT = CancelFlowWait.no_wait()
ELSEWHERE = ExecutionId(999, FLOW)


def _graph(**changes: Any) -> FlowGraph:
    return graph_of(*DIAMOND, flow_id=FLOW, **changes)


def _run(act: Callable[[Engine, Run], Any], *rounds: str) -> Callable[[Engine], Act]:
    """Return an operation on a submitted flow, some members of which have run before."""

    def arrange(engine: Engine) -> Act:
        run = Run(engine, _graph())
        for key in rounds:
            run.claim()
            run.complete(key)
        return lambda: act(engine, run)

    return arrange


def _built(act: Callable[[_Built], Any]) -> Callable[[Engine], Act]:
    """Return an operation on a flow that is not sealed."""

    def arrange(engine: Engine) -> Act:
        built = _Built(engine)
        return lambda: act(built)

    return arrange


def _parent(act: Callable[[Engine, Handle], Any]) -> Callable[[Engine], Act]:
    """Return an operation on an execution that runs."""

    def arrange(engine: Engine) -> Act:
        handle = running(engine, lane="parents").handle
        return lambda: act(engine, handle)

    return arrange


def _page_of_inputs(engine: Engine, run: Run) -> Any:
    run.claim()
    return engine.read_inputs(run.held["b"].handle, "000000000000:")


class _Built:
    """A flow of three members with an edge e from the first to the second, and ids of what does not exist."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.flow, (self.a, self.b, self.c) = flow_with(engine, 3, flow_id=FLOW)
        self.d = executions_beside(engine, self.flow, 1)[0]
        self.unknown = FlowId(ids_in(engine, self.a.partition_number, 1)[0].uuid)
        self.missing = ExecutionId(self.a.partition_number, str(uuid4()))
        stage(engine, self.flow, "e", (self.a, self.b))

    def add(self, execution: ExecutionId, flow: FlowId | None = None) -> Any:
        return self.engine.add_execution_to_flow(member(flow or self.flow, execution))

    def stage(self, name: str, up: ExecutionId, down: ExecutionId, revision: int | None = None) -> Any:
        return stage(self.engine, self.flow, name, (up, down), revision)

    def link(self, up: ExecutionId, down: ExecutionId, flow: FlowId | None = None) -> Any:
        return self.engine.link(edge(flow or self.flow, "x", (up, down)))

    def apply(self, name: str, flow: FlowId | None = None) -> Any:
        return apply(self.engine, flow or self.flow, name)

    def set_policy(self, execution: ExecutionId, flow: FlowId | None = None, policy: Any = None) -> Any:
        return self.engine.set_edge_group_policy(flow or self.flow, execution, policy or AnyOf())


def cancelled(built: _Built) -> None:
    built.engine.cancel_flow_header(CancelFlowArgs(flow_id=built.flow, policy=CancelFlowPolicy.FLOW_ONLY))


def sealed(built: _Built) -> None:
    built.engine.seal_flow(built.flow)


def nothing(_: _Built) -> None:
    """Change nothing before a call."""


def all_run(built: _Built) -> None:
    claimed = built.engine.claim_many(request(limit=4))
    assert len(claimed) == 4
    built.held = claimed[0].handle


# The code with which a call is refused, what happens before it, and the call.
REFUSED: dict[str, tuple[str, Callable[[_Built], None], Callable[[_Built], Any]]] = {
    "add_execution_to_flow: unknown flow": ("flow_not_found", nothing, lambda x: x.add(x.a, x.unknown)),
    "add_execution_to_flow: unknown execution": ("execution_not_found", nothing, lambda x: x.add(x.missing)),
    "add_execution_to_flow: elsewhere": (
        "partition_mismatch",
        nothing,
        lambda x: x.add(ELSEWHERE),
    ),
    "add_execution_to_flow: cancelled flow": ("flow_already_terminal", cancelled, lambda x: x.add(x.missing)),
    "add_execution_to_flow: sealed flow": ("flow_sealed", sealed, lambda x: x.add(x.missing)),
    "link: to itself": ("self_referencing_edge", nothing, lambda x: x.link(x.a, x.a, x.unknown)),
    "link: unknown flow": ("flow_not_found", nothing, lambda x: x.link(x.a, x.b, x.unknown)),
    "link: no member above": ("execution_not_in_flow", nothing, lambda x: x.link(x.missing, x.a)),
    "link: no member below": ("execution_not_in_flow", nothing, lambda x: x.link(x.a, x.missing)),
    "stage_dependency_edge: cancelled flow": ("flow_already_terminal", cancelled, lambda x: x.stage("x", x.b, x.c, 0)),
    "stage_dependency_edge: sealed flow": ("flow_sealed", sealed, lambda x: x.stage("x", x.b, x.c, 0)),
    "stage_dependency_edge: old revision": ("stale_graph_revision", nothing, lambda x: x.stage("e", x.b, x.a, 0)),
    "stage_dependency_edge: cycle": ("cycle_detected", nothing, lambda x: x.stage("e", x.b, x.a)),
    "stage_dependency_edge: another edge": (
        "dependency_already_exists",
        nothing,
        lambda x: x.stage("e", x.b, x.c),
    ),
    "stage_dependency_edge: onto what runs": ("edge_group_fired", all_run, lambda x: x.stage("x", x.b, x.c)),
    "apply_dependency_to_child: unknown flow": ("flow_not_found", nothing, lambda x: x.apply("e", x.unknown)),
    "apply_dependency_to_child: unknown edge": ("edge_not_found", nothing, lambda x: x.apply("x")),
    "apply_dependency_to_child: onto what runs": ("edge_group_fired", all_run, lambda x: x.apply("e")),
    "set_edge_group_policy: unknown flow": ("flow_not_found", nothing, lambda x: x.set_policy(x.a, x.unknown)),
    "set_edge_group_policy: no member": ("execution_not_in_flow", nothing, lambda x: x.set_policy(x.missing)),
    "set_edge_group_policy: after an edge": ("edge_group_policy_fixed", nothing, lambda x: x.set_policy(x.b)),
    "set_edge_group_policy: cancelled flow": ("flow_already_terminal", cancelled, lambda x: x.set_policy(x.c)),
    "set_edge_group_policy: none": ("invalid_input", nothing, lambda x: x.set_policy(x.c, policy="any_of")),
    "create_flow: of another kind": (
        "conflict",
        nothing,
        lambda x: x.engine.create_flow(CreateFlowArgs(flow_id=x.flow, kind="other")),
    ),
    "submit_flow: another flow": ("conflict", nothing, lambda x: x.engine.submit_flow(_graph())),
    "read_inputs: after another lease": (
        "stale_lease",
        all_run,
        lambda x: x.engine.read_inputs(attrs.evolve(x.held, lease_epoch=9), "c"),
    ),
    "spawn: with an id": ("invalid_input", all_run, lambda x: x.engine.spawn(x.held, "n", creation(execution_id=x.a))),
    "spawn: without a name": ("invalid_input", all_run, lambda x: x.engine.spawn(x.held, "", creation())),
    "spawn: after another lease": (
        "stale_lease",
        all_run,
        lambda x: x.engine.spawn(attrs.evolve(x.held, lease_epoch=9), "n", creation()),
    ),
    "wait_children: for none": ("invalid_input", all_run, lambda x: x.engine.wait_children(x.held, 0)),
    "wait_children: for one twice": (
        "duplicate_in_call",
        all_run,
        lambda x: x.engine.wait_children(x.held, names=["a", "a"]),
    ),
    "cancel_flow: unknown flow": (
        "flow_not_found",
        nothing,
        lambda x: x.engine.cancel_flow(x.unknown, CancelFlowPolicy.CANCEL_ALL, NO_WAIT),
    ),
    "cancel_flow_header: unknown flow": (
        "flow_not_found",
        nothing,
        lambda x: x.engine.cancel_flow_header(CancelFlowArgs(flow_id=x.unknown, policy=CancelFlowPolicy.CANCEL_ALL)),
    ),
    "ack_cancel_member: no flow id": ("invalid_input", nothing, lambda x: x.engine.ack_cancel_member("f", x.a)),
    "purge_flow: a living flow": ("flow_not_terminal", nothing, lambda x: x.engine.purge_flow(x.flow)),
    "describe_flow: no flow id": ("invalid_input", nothing, lambda x: x.engine.describe_flow("nightly")),
    "describe_edge: no edge id": ("invalid_input", nothing, lambda x: x.engine.describe_edge(x.flow, "")),
    "list_edges: of no direction": ("invalid_input", nothing, lambda x: x.engine.list_edges(x.flow, x.a)),
    "list_flow_members: unknown flow": ("flow_not_found", nothing, lambda x: x.engine.list_flow_members(x.unknown)),
    "list_flows: a wrong cursor": ("invalid_cursor", nothing, lambda x: x.engine.list_flows(0, "x")),
    "seal_flow: unknown flow": ("flow_not_found", nothing, lambda x: x.engine.seal_flow(x.unknown)),
    "seal_flow: cancelled flow": ("flow_already_terminal", cancelled, lambda x: x.engine.seal_flow(x.flow)),
}


FLOW_OPERATIONS: dict[str, Callable[[Engine], Act]] = {
    "create_flow": lambda engine: lambda: engine.create_flow(CreateFlowArgs(flow_id=FLOW, kind="dag", tags={"a": "b"})),
    "add_execution_to_flow": _built(lambda x: x.add(x.d)),
    "stage_dependency_edge": _built(lambda x: x.stage("x", x.b, x.c)),
    "apply_dependency_to_child": _built(lambda x: x.apply("e")),
    "link": _built(lambda x: x.link(x.b, x.c)),
    "set_edge_group_policy": _built(lambda x: x.set_policy(x.c, policy=Quorum(2))),
    "seal_flow": _built(lambda x: x.engine.seal_flow(x.flow)),
    "submit_flow": lambda engine: lambda: engine.submit_flow(_graph(tags={"a": "b"}, idempotency_key=None)),
    "cancel_flow": _run(
        lambda engine, run: engine.cancel_flow(run.flow_id, CancelFlowPolicy.CANCEL_ALL, NO_WAIT, "why")
    ),
    "cancel_flow_header": _run(
        lambda engine, run: engine.cancel_flow_header(
            CancelFlowArgs(flow_id=run.flow_id, policy=CancelFlowPolicy.CANCEL_ALL)
        )
    ),
    "ack_cancel_member": _run(
        lambda engine, run: (
            engine.cancel_flow_header(CancelFlowArgs(flow_id=run.flow_id, policy=CancelFlowPolicy.CANCEL_ALL)),
            engine.ack_cancel_member(run.flow_id, run.ids["a"]),
        )
    ),
    "purge_flow": _run(lambda engine, run: engine.purge_flow(run.flow_id), "a", "b", "c", "d"),
    "claim_many: with inputs": _run(lambda _, run: run.claim(), "a"),
    "complete: sets a member free": _run(lambda _, run: (run.claim(), run.complete("a"))),
    "fail: skips members": _run(lambda _, run: (run.claim(), run.fail("a"))),
    "read_inputs": _run(_page_of_inputs, "a"),
    "spawn": _parent(lambda engine, handle: engine.spawn(handle, "a", creation())),
    "spawn: again": _parent(lambda engine, handle: [engine.spawn(handle, "a", creation()) for _ in range(2)]),
    "wait_children: for one": _parent(
        lambda engine, handle: (engine.spawn(handle, "a", creation()), engine.wait_children(handle, names=["a"]))
    ),
    "cancel_execution: of a parent": _parent(
        lambda engine, handle: (
            engine.spawn(handle, "a", creation()),
            engine.cancel_execution(CancelExecutionArgs(execution_id=handle.execution_id)),
        )
    ),
    "describe_flow": _run(lambda engine, run: engine.describe_flow(run.flow_id), "a"),
    "describe_edge": _run(lambda engine, run: engine.describe_edge(run.flow_id, EdgeId("e0000001"))),
    "list_edges": _run(lambda engine, run: engine.list_edges(run.flow_id, Outgoing(run.ids["a"]))),
    "list_flow_members": _run(lambda engine, run: engine.list_flow_members(run.flow_id)),
    "list_flows": _run(lambda engine, run: engine.list_flows(run.ids["a"].partition_number)),
}


def _refusals() -> dict[str, tuple[str, Callable[[Engine], Act]]]:
    """Return the calls that must be refused, as `REFUSALS` has them."""
    return {name: (code, _after(before, act)) for name, (code, before, act) in REFUSED.items()}


def _after(before: Callable[[_Built], None], act: Callable[[_Built], Any]) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        built = _Built(engine)
        before(built)
        return lambda: act(built)

    return arrange


FLOW_REFUSALS = _refusals()
