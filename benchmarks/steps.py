"""Steps: how many a handler records in a second, one after the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Runtime, Worker, WorkerSettings, current

STEPS: Final = 1000
_HANDLERS = (1, 8)
_ROUNDS: Final = 3
_LEAST: Final = 1500


def table() -> Table:
    """Measure one handler, and eight at the same time, in one worker process."""
    return table_of({count: _rates(count) for count in _HANDLERS})


def _rates(handlers: int) -> list[float]:
    """Steps per second of all handlers together, in each round."""
    with Server() as server:
        worker = Worker("benchmark", server.url)

        @worker.task
        def walk() -> list[float]:
            context = current()
            context.step("warm up", int)
            began = time.time()
            for number_ in range(STEPS - 1):
                context.step(f"step {number_}", int)
            return [began, time.time()]

        runtime = Runtime(worker, WorkerSettings(threads=handlers))
        runtime.start()
        rates = []
        for _ in range(_ROUNDS):
            spans = [run.result(timeout=120) for run in walk.submit_many([()] * handlers)]
            took = max(end for _, end in spans) - min(began for began, _ in spans)
            rates.append(handlers * (STEPS - 1) / took)
        runtime.stop()
        worker.close()
    return rates


def table_of(rates: dict[int, Sequence[float]]) -> Table:
    """Return the medians, and whether one handler is fast enough."""

    def line(handlers: int, rounds: Sequence[float]) -> list[str]:
        rate = statistics.median(rounds)
        judged = [f"{_LEAST:,}", verdict([rate >= _LEAST])] if handlers == 1 else [NOTHING, NOTHING]
        return [str(handlers), number(rate), number(rate / handlers), *judged]

    return Table(
        title="Sequential steps",
        headings=["handlers at the same time", "steps per s", "per handler", "must reach", "reached"],
        rows=[line(handlers, rounds) for handlers, rounds in rates.items()],
        notes=[f"{STEPS:,} steps of a handler that return at once; medians of {_ROUNDS} rounds, one worker process."],
    )
