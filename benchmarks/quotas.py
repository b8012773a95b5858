"""Quotas: what admission costs a task under one hot quota, beside none."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import attrs

from benchmarks import work
from benchmarks.report import Table, number
from benchmarks.server import Server
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import QuotaPolicyId
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy

TASKS: Final = 5_000
_ROUNDS: Final = 3
_QUOTA: Final = QuotaPolicyId("hot")
# It admits all of them: what is measured is the admission, not the waiting.
_LIMITS: Final = QuotaPolicy(max_concurrent=1_000, max_requests_per_window=1_000_000)
_POLICIES: Final = {"none": ExecutionPolicy(), "one hot quota": ExecutionPolicy(quota_policy_id=_QUOTA)}


@attrs.frozen(kw_only=True)
class Admission:
    """What a task costs the server, in microseconds: to claim it and to complete it."""

    claim_us: float
    complete_us: float


def table() -> Table:
    """Measure on a server of its own."""
    found: dict[tuple[str, int], list[Admission]] = {}
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=_QUOTA, policy=_LIMITS))
        for _ in range(_ROUNDS):
            for size in (1, 50):
                for quota in _POLICIES:
                    found.setdefault((quota, size), []).append(_measure(engine, server, quota, size))
        engine.close()
    return table_of(found)


def _measure(engine: Engine, server: Server, quota: str, size: int) -> Admission:
    """Create, claim and complete tasks, `size` of them in each call."""
    tasks = TASKS * size // 50
    claim_us = complete_us = 0.0
    for _ in range(0, tasks, size):
        work.create(engine, size, policy=_POLICIES[quota])
        server.reset()
        claimed = work.claim(engine, size)
        claim_us += server.function_microseconds()
        server.reset()
        work.complete(engine, claimed)
        complete_us += server.function_microseconds()
    return Admission(claim_us=claim_us / tasks, complete_us=complete_us / tasks)


def table_of(found: dict[tuple[str, int], Sequence[Admission]]) -> Table:
    """Return the medians, in the order in which they were measured."""
    return Table(
        title="Admission under one hot quota, in the server",
        headings=["quota", "tasks per call", "us to claim one", "us to complete one"],
        rows=[
            [
                quota,
                number(size),
                number(statistics.median(each.claim_us for each in rounds)),
                number(statistics.median(each.complete_us for each in rounds)),
            ]
            for (quota, size), rounds in found.items()
        ],
    )
