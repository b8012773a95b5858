"""Counts: the commands that run inside the stored functions, and the functions that a task needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from benchmarks import work
from benchmarks.figures import per_item
from benchmarks.report import Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Runtime, Worker, WorkerSettings
from flowfabric_worker.engine.engine import Engine, open_engine

BATCH: Final = 500
_TASKS = 10_000
_MOST_CALLS_PER_TASK = 0.2
_MOST_COMMANDS = {"create": 5, "claim": 6, "complete": 5}


@attrs.frozen(kw_only=True)
class Cost:
    """The commands of one operation: per execution, per batch, and per execution by name."""

    each: float
    batch: float
    by_name: Mapping[str, float]


def tables() -> list[Table]:
    """Count the commands on a separate server."""
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        costs = _costs(engine, server)
        engine.close()
        server.clear()
        return [_commands_table(costs), _calls_table(_calls_per_task(server))]


def _costs(engine: Engine, server: Server) -> dict[str, Cost]:
    # The first use of a lane registers it, which later uses do not pay for.
    _count(engine, server, 1)
    small, large = _count(engine, server, 1), _count(engine, server, BATCH)
    return {name: cost_of(small[name], large[name], BATCH) for name in small}


def _count(engine: Engine, server: Server, size: int) -> dict[str, dict[str, int]]:
    """Return the commands of creating, claiming and completing one batch."""

    def counted(operation: Callable[[], object]) -> dict[str, int]:
        server.reset()
        operation()
        return {name: calls for name, calls in server.commands().items() if name != "fcall"}

    created = counted(lambda: work.create(engine, size))
    claimed = []
    claiming = counted(lambda: claimed.extend(work.claim(engine, size)))
    return {"create": created, "claim": claiming, "complete": counted(lambda: work.complete(engine, claimed))}


def cost_of(small: Mapping[str, int], large: Mapping[str, int], size: int) -> Cost:
    """Return the cost of an operation, from the commands of a batch of one and of a batch of `size`."""
    each, batch = per_item((1, sum(small.values())), (size, sum(large.values())))
    by_name = {name: per_item((1, small.get(name, 0)), (size, calls))[0] for name, calls in large.items()}
    return Cost(each=each, batch=batch, by_name=by_name)


def _calls_per_task(server: Server) -> float:
    """Return how many functions are called per task while a worker of 8 threads is at full load."""
    worker = Worker("benchmark", server.url)

    @worker.task
    def noop(number: int) -> int:
        return number

    runs = noop.submit_many((number,) for number in range(_TASKS))
    runtime = Runtime(worker, WorkerSettings(threads=8))
    server.reset()
    runtime.start()
    runs[-1].result(timeout=60)
    calls = server.function_calls()
    runtime.stop()
    worker.close()
    return calls / _TASKS


def _commands_table(costs: Mapping[str, Cost]) -> Table:
    def line(name: str, cost: Cost) -> list[str]:
        most = _MOST_COMMANDS[name]
        ordered = sorted(cost.by_name.items(), key=lambda item: -item[1])
        which = ", ".join(f"{command} {number(calls)}" for command, calls in ordered if calls >= 0.01)
        return [name, number(cost.each), number(cost.batch), str(most), verdict([cost.each <= most]), which]

    return Table(
        title="Commands inside a function",
        headings=["operation", "per execution", "per batch besides", "at most", "reached", "which, per execution"],
        rows=[line(name, cost) for name, cost in costs.items()],
        notes=[f"From batches of 1 and of {BATCH}; no key, deadline, flow or gate."],
    )


def _calls_table(calls: float) -> Table:
    return Table(
        title="Round trips at full load",
        headings=["what", "measured", "at most", "reached"],
        rows=[
            [
                "function calls per task, one worker of 8 threads",
                number(calls),
                number(_MOST_CALLS_PER_TASK),
                verdict([calls <= _MOST_CALLS_PER_TASK]),
            ]
        ],
        notes=[f"{_TASKS:,} no-op tasks."],
    )
