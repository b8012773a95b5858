"""Flows: how many are submitted and run in a second, on both kinds of store."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs

from benchmarks.postgres_server import PostgresBench
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Runtime, Task, Worker, WorkerSettings, chain

THREADS: Final = 8
_ROUNDS: Final = 3
_WIDTH: Final = 1_000
# The flows of ten nodes in a row that a second must run on Valkey.
_LEAST_CHAINS: Final = 300

# Adds the nodes of a flow that begins with a number.
Shape: TypeAlias = Callable[[Task[[int], int], Task[[list[int]], int]], object]


@attrs.frozen(kw_only=True)
class Rate:
    """How many flows a second one process submits, and how many one worker of 8 threads then runs to their ends."""

    submitted: float
    run: float


Found: TypeAlias = "dict[tuple[str, str], list[Rate]]"


def _chain(one: Task[[int], int], _: Task[[list[int]], int]) -> object:
    return chain(*[one] * 10).node(1)


def _five(one: Task[[int], int], join: Task[[list[int]], int]) -> object:
    first = one.node(1)
    return join.node([one.node(first) for _ in range(3)])


def _fan(one: Task[[int], int], join: Task[[list[int]], int]) -> object:
    first = one.node(1)
    return join.node([one.node(first) for _ in range(_WIDTH)])


# The shapes of flows, and how many of each are run.
SHAPES: Final[Mapping[str, tuple[Shape, int]]] = {
    "10 in a row": (_chain, 1_000),
    "1 to 3 to 1": (_five, 1_000),
    "1 to 1,000 to 1": (_fan, 2),
}


def table() -> Table:
    """Measure on servers of their own."""
    found: Found = {}
    with Server() as valkey:
        _measure_all(found, "Valkey", valkey.url, SHAPES)
    with PostgresBench() as postgres:
        _measure_all(found, "Postgres", postgres.url, SHAPES)
    return table_of(found)


def _measure_all(found: Found, store: str, url: str, shapes: Mapping[str, tuple[Shape, int]]) -> None:
    for _ in range(_ROUNDS):
        for name, (shape, count) in shapes.items():
            found.setdefault((store, name), []).append(measure(url, shape, count))


def measure(url: str, shape: Shape, count: int) -> Rate:
    """Submit flows of a shape, and then run them all."""
    worker = Worker("benchmark", url)
    with worker.flow("benchmark") as flow:
        shape(worker.task(one), worker.task(join))
    worker.engine.prepare()
    submitted_in, runs = _timed(lambda: [flow.submit() for _ in range(count)])
    runtime = Runtime(worker, WorkerSettings(threads=THREADS))

    def run_all() -> None:
        runtime.start()
        for run in runs:
            run.result(120)

    try:
        run_in, _ = _timed(run_all)
    finally:
        runtime.stop()
        worker.close()
    return Rate(submitted=count / submitted_in, run=count / run_in)


def one(number: int) -> int:
    return number


def join(numbers: list[int]) -> int:
    return len(numbers)


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Return how many seconds something takes, and what it returns."""
    began = time.perf_counter()
    result = act()
    return time.perf_counter() - began, result


def table_of(found: Mapping[tuple[str, str], Sequence[Rate]]) -> Table:
    """Return the medians, in the order in which they were measured."""
    rows = []
    for (store, shape), rates in found.items():
        run = statistics.median(each.run for each in rates)
        has_target = (store, shape) == ("Valkey", "10 in a row")
        rows.append(
            [
                store,
                shape,
                number(statistics.median(each.submitted for each in rates)),
                number(run),
                f"at least {_LEAST_CHAINS}" if has_target else NOTHING,
                verdict([run >= _LEAST_CHAINS]) if has_target else NOTHING,
            ]
        )
    return Table(
        title=f"Flows per second, one worker of {THREADS} threads",
        headings=["store", "nodes", "submitted per s", "run per s", "target", "reached"],
        rows=rows,
    )
