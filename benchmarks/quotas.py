"""Gates: what admission costs a task under one hot quota or budget, beside none, on both kinds of store."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import attrs

from benchmarks import work
from benchmarks.postgres_server import PostgresBench
from benchmarks.report import Table, number
from benchmarks.server import Server
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import BudgetId, QuotaPolicyId
from flowfabric_worker.engine.types.budgets import BudgetDefinition, BudgetDimension, CreateBudgetArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy

TASKS: Final = 2_500
_ROUNDS: Final = 3
_QUOTA: Final = QuotaPolicyId("hot")
# It admits all of them: what is measured is the admission, not the waiting.
_LIMITS: Final = QuotaPolicy(max_concurrent=1_000, max_requests_per_window=1_000_000)
_BUDGET: Final = BudgetId("hot")
_POLICIES: Final = {
    "none": ExecutionPolicy(),
    "one hot quota": ExecutionPolicy(quota_policy_id=_QUOTA),
    "one hot budget": ExecutionPolicy(budget_ids=(_BUDGET,)),
}

# Runs something and returns what it costs.
Cost: TypeAlias = Callable[[Callable[[], object]], float]


Found: TypeAlias = "dict[tuple[str, str, int], list[Admission]]"


@attrs.frozen(kw_only=True)
class Admission:
    """What a task costs, in microseconds: to claim it and to complete it.

    On Valkey that is the server's time, on Postgres the time of the calls.
    """

    claim_us: float
    complete_us: float


def table() -> Table:
    """Measure on servers of their own."""
    found: Found = {}
    with Server() as valkey:

        def in_the_server(operate: Callable[[], object]) -> float:
            valkey.reset()
            operate()
            return valkey.function_microseconds()

        _measure_all(found, "Valkey", valkey.url, in_the_server)
    with PostgresBench() as postgres:
        _measure_all(found, "Postgres", postgres.url, _elapsed)
    return table_of(found)


def _elapsed(operate: Callable[[], object]) -> float:
    """Return how long something takes, in microseconds."""
    began = time.perf_counter()
    operate()
    return (time.perf_counter() - began) * 1e6


def _measure_all(found: Found, store: str, url: str, cost: Cost) -> None:
    engine = open_engine(url)
    engine.prepare()
    engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=_QUOTA, policy=_LIMITS))
    limit = BudgetDefinition(dimensions=[BudgetDimension(name="tokens", hard_limit=1_000_000)])
    engine.create_budget(CreateBudgetArgs(budget_id=_BUDGET, definition=limit))
    for _ in range(_ROUNDS):
        for size in (1, 50):
            for gate in _POLICIES:
                found.setdefault((store, gate, size), []).append(_measure(engine, cost, gate, size))
    engine.close()


def _measure(engine: Engine, cost: Cost, gate: str, size: int) -> Admission:
    """Create, claim and complete tasks, `size` of them in each call."""
    tasks = TASKS * size // 50
    claim_us = complete_us = 0.0
    for _ in range(0, tasks, size):
        work.create(engine, size, policy=_POLICIES[gate])
        claimed: list[Claimed] = []
        claim_us += cost(lambda claimed=claimed: claimed.extend(work.claim(engine, size)))  # type: ignore[misc]
        complete_us += cost(lambda claimed=claimed: work.complete(engine, claimed))  # type: ignore[misc]
    return Admission(claim_us=claim_us / tasks, complete_us=complete_us / tasks)


def table_of(found: Mapping[tuple[str, str, int], Sequence[Admission]]) -> Table:
    """Return the medians, in the order in which they were measured."""
    return Table(
        title="Admission under one hot quota or budget",
        headings=["store", "gate", "tasks per call", "us to claim one", "us to complete one"],
        rows=[
            [
                store,
                gate,
                number(size),
                number(statistics.median(each.claim_us for each in rounds)),
                number(statistics.median(each.complete_us for each in rounds)),
            ]
            for (store, gate, size), rounds in found.items()
        ],
    )
