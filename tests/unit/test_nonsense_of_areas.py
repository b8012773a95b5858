"""Nonsensical arguments of the operations on flows, budgets and quotas, one argument or field at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import attrs
import pytest
from hypothesis import given

from flowfabric_worker.engine.backend.budgets import BudgetsBackend
from flowfabric_worker.engine.backend.flows import FlowsBackend
from flowfabric_worker.engine.backend.quotas import QuotasBackend
from flowfabric_worker.engine.engine import Engine, forget_memory, open_engine
from flowfabric_worker.engine.ids import BudgetId, EdgeId
from flowfabric_worker.engine.types.budgets import (
    BudgetDefinition,
    BudgetDimension,
    CreateBudgetArgs,
    RecordSpendArgs,
    UsageDimensions,
)
from flowfabric_worker.engine.types.edges import (
    AllOf,
    ApplyDependencyToChildArgs,
    DependencyEdge,
    StageDependencyEdgeArgs,
)
from flowfabric_worker.engine.types.flows import (
    AddExecutionToFlowArgs,
    CancelFlowArgs,
    CancelFlowPolicy,
    CreateFlowArgs,
)
from flowfabric_worker.engine.types.quotas import CheckAdmissionArgs, CreateQuotaPolicyArgs, QuotaPolicy
from tests.conformance.test_nonsense import FUZZING, JUNK, attempt
from tests.support.dumps import dump_of
from tests.support.executions import creation
from tests.support.flows import graph_of
from tests.support.operations import running
from tests.support.quotas import QUOTA

BUDGET = BudgetId("b")
BACKENDS = (FlowsBackend, BudgetsBackend, QuotasBackend)
OPERATIONS = {name: backend for backend in BACKENDS for name in vars(backend) if not name.startswith("_")}


def sensible(engine: Engine) -> dict[str, Any]:
    """Return an argument of each kind that makes sense, by the name of its type or else by its own."""
    graph, other = graph_of(("a", "b")), graph_of(("a", "b"))
    submitted = engine.submit_flow(graph)
    handle, usage, limit = running(engine).handle, UsageDimensions(input_tokens=1), QuotaPolicy(max_concurrent=1)
    definition = BudgetDefinition(dimensions=(BudgetDimension(name="input_tokens", hard_limit=5),))
    engine.create_budget(CreateBudgetArgs(budget_id=BUDGET, definition=definition))
    engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=limit))
    first, second = submitted.execution_ids.values()
    edge = DependencyEdge(
        flow_id=graph.flow_id, edge_id=EdgeId("e"), upstream_execution_id=first, downstream_execution_id=second
    )
    flow = {"flow_id": graph.flow_id}
    return {
        **flow, "edge_id": EdgeId("e"), "execution_id": first, "downstream_execution_id": second, "handle": handle,
        "budget_id": BUDGET, "quota_policy_id": QUOTA, "dimensions": usage, "usage": usage, "definition": definition,
        "key": "k", "hold": timedelta(minutes=1), "name": "n", "cursor": None, "limit": 5, "partition": 0,
        "reason": "r", "direction": None, "detached": False, "wait": timedelta(), "graph": other, "edge": edge,
        "CreateFlowArgs": CreateFlowArgs(flow_id=other.flow_id, kind="k"),
        "AddExecutionToFlowArgs": AddExecutionToFlowArgs(**flow, execution_id=handle.execution_id),
        "StageDependencyEdgeArgs": StageDependencyEdgeArgs(edge=edge, expected_graph_revision=0),
        "ApplyDependencyToChildArgs": ApplyDependencyToChildArgs(**flow, edge_id=EdgeId("e")),
        "CancelFlowArgs": CancelFlowArgs(**flow, policy=CancelFlowPolicy.CANCEL_ALL),
        "CreateExecutionArgs": creation(), "EdgeDependencyPolicy": AllOf(),
        "CancelFlowPolicy": CancelFlowPolicy.CANCEL_ALL, "QuotaPolicy": limit,
        "CreateBudgetArgs": CreateBudgetArgs(budget_id=BudgetId("c"), definition=definition),
        "RecordSpendArgs": RecordSpendArgs(execution_id=handle.execution_id, budget_id=BUDGET, usage=usage),
        "CreateQuotaPolicyArgs": CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=limit),
        "CheckAdmissionArgs": CheckAdmissionArgs(quota_policy_id=QUOTA, execution_id=handle.execution_id),
    }  # fmt: skip


@pytest.fixture
def engine() -> Iterator[Engine]:
    name = uuid4().hex
    engine = open_engine(f"memory://{name}")
    engine.prepare(testing=True)
    yield engine
    engine.close()
    forget_memory(name)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nonsense_for_an_operation_of_an_area_is_refused(engine: Engine, operation: str) -> None:
    good, method = sensible(engine), getattr(engine, operation)
    parameters = inspect.signature(getattr(OPERATIONS[operation], operation)).parameters
    arguments = {
        name: good[each.annotation if each.annotation in good else name]
        for name, each in parameters.items()
        if name != "self"
    }

    @FUZZING
    @given(junk=JUNK)
    def fuzz(junk: Any) -> None:
        for name, value in arguments.items():
            attempt(partial(method, **{**arguments, name: junk}), partial(dump_of, engine))
            # A handle is opaque: callers do not change its fields.
            for field in attrs.fields_dict(type(value)) if attrs.has(type(value)) and name != "handle" else ():
                attempt(partial(changed_call, method, arguments, name, field, junk), partial(dump_of, engine))

    fuzz()


def changed_call(
    method: Callable[..., object], arguments: dict[str, Any], name: str, field: str, junk: object
) -> object:
    """Call an operation with one field of one argument replaced."""
    return method(**{**arguments, name: attrs.evolve(arguments[name], **{field: junk})})
