"""The cost of a full store: claims and completions beside a million executions; and the cost of idle workers."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

import attrs

from benchmarks import work
from benchmarks.comparison import Tell
from benchmarks.environments import ROOT
from benchmarks.peers.base import stop
from benchmarks.peers.flowfabric import run_command
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Client
from flowfabric_worker.engine.engine import Engine, open_engine

T = TypeVar("T")

FEW: Final = 1000
_MOST_TIMES = 1.3
_BATCHES = (1, 100)
_REPEATS = 200
_IN_SERVER = ", in the server"
_ROUND_TRIP = ", round trip"
_A_DAY = timedelta(days=1)

_IDLE_WORKERS = 8
_IDLE_SECONDS = 20.0
_SETTLED_AFTER = 3.0
_READY_WITHIN = 30.0
_MOST_CALLS = 5.0
_MOST_CORE_PERCENT = 1.0


@attrs.frozen(kw_only=True)
class State:
    """A store that is measured: its server and engine, and what was put into it."""

    name: str
    server: Server
    engine: Engine
    samples: dict[str, list[float]] = attrs.field(factory=dict)

    def note(self, what: str, value: float) -> None:
        self.samples.setdefault(what, []).append(value)

    def medians(self) -> dict[str, float]:
        return {what: statistics.median(values) for what, values in self.samples.items()}


def tables(*, queued: int, tell: Tell) -> list[Table]:
    """Measure both, on servers of their own.

    Args:
        queued: how many executions a full store holds.
        tell: is told how far it is.
    """
    return [_full_store(queued, tell), _idle_workers(tell)]


def _full_store(queued: int, tell: Tell) -> Table:
    """Measure the same operations on three stores, in turns, so that other load on the machine affects all of them."""
    with contextlib.ExitStack() as stack:
        few = stack.enter_context(_state(f"{FEW:,} queued"))
        many = stack.enter_context(_state(f"{queued:,} queued"))
        delayed = stack.enter_context(_state(f"{queued:,} delayed"))
        empty = many.server.memory()
        tell(f"Queueing {queued:,} executions in one store, delayed ones in another")
        _fill(((many, queued, None), (delayed, queued, _A_DAY), (few, FEW, None)))
        each = (many.server.memory() - empty) / queued
        work.fill(delayed.server.url, FEW)
        tell("Claiming and completing")
        states = [few, many, delayed]
        for _ in range(_REPEATS):
            for state in random.sample(states, len(states)):
                for size in _BATCHES:
                    _measure(state, size)
        return _full_table(few, [many, delayed], each)


def _fill(wanted: Sequence[tuple[State, int, timedelta | None]]) -> None:
    """Make executions in several stores at the same time: while one server works, the process of another one does."""
    with ProcessPoolExecutor(len(wanted), get_context("spawn")) as pool:
        filling = [pool.submit(work.fill, state.server.url, count, delay) for state, count, delay in wanted]
        for each in filling:
            each.result()


@contextlib.contextmanager
def _state(name: str) -> Iterator[State]:
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        yield State(name=name, server=server, engine=engine)
        engine.close()


def _measure(state: State, size: int) -> None:
    """Claim and complete one batch, and make another in its place, so that as many stay queued."""
    claimed = _timed(state, f"claim {size}", lambda: work.claim(state.engine, size))
    _timed(state, f"complete {size}", lambda: work.complete(state.engine, claimed))
    work.create(state.engine, size)


def _timed(state: State, what: str, operation: Callable[[], T]) -> T:
    state.server.reset()
    began = time.perf_counter()
    result = operation()
    elapsed = time.perf_counter() - began
    state.note(f"{what}{_IN_SERVER}", state.server.function_microseconds())
    state.note(f"{what}{_ROUND_TRIP}", elapsed * 1e6)
    return result


def _full_table(few: State, full: Sequence[State], bytes_each: float) -> Table:
    base = few.medians()
    medians = [state.medians() for state in full]

    def line(what: str) -> list[str]:
        ratios = [values[what] / base[what] for values in medians]
        columns = [text for values, times in zip(medians, ratios, strict=True) for text in (values[what], times)]
        # The round trip is shown but not judged: it depends on the other load of the machine.
        judged = what.endswith(_IN_SERVER)
        verdicts = [f"{_MOST_TIMES:g} x", verdict([times <= _MOST_TIMES for times in ratios])]
        return [what, number(base[what]), *map(number, columns), *(verdicts if judged else [NOTHING, NOTHING])]

    titles = [text for state in full for text in (state.name, "times")]
    return Table(
        title="A full store",
        headings=["batch, in microseconds", few.name, *titles, "at most", "reached"],
        rows=[line(what) for what in base],
        notes=[
            f"Medians of {_REPEATS} calls, the stores in turns; the delayed stand beside {FEW:,} queued ones.",
            f"A queued execution takes {number(bytes_each)} bytes in the server.",
        ],
    )


def _idle_workers(tell: Tell) -> Table:
    """Measure what idle workers cost."""
    with Server() as server, Client(server.url) as client:
        client.engine.prepare()
        tell(f"Starting {_IDLE_WORKERS} idle workers")
        running = [_start(server.url) for _ in range(_IDLE_WORKERS)]
        try:
            _wait_until_ready(client)
            time.sleep(_SETTLED_AFTER)
            before = [_cpu_seconds(process.pid) for process in running]
            server.reset()
            time.sleep(_IDLE_SECONDS)
            calls = server.function_calls() / _IDLE_SECONDS
            spent = [_cpu_seconds(process.pid) - at for process, at in zip(running, before, strict=True)]
        finally:
            stop(running)
    return _idle_table(calls, max(spent) / _IDLE_SECONDS * 100)


def _start(url: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(run_command(url), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait_until_ready(client: Client) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while sum(1 for _ in client.workers()) < _IDLE_WORKERS:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{_IDLE_WORKERS} workers did not start within {_READY_WITHIN} s")
        time.sleep(0.1)


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process in seconds, from fields 14 and 15 of its stat file in /proc."""
    behind_name = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(behind_name[11]) + int(behind_name[12])) / os.sysconf("SC_CLK_TCK")


def _idle_table(calls: float, percent: float) -> Table:
    return Table(
        title=f"{_IDLE_WORKERS} idle workers",
        headings=["what", "measured", "at most", "reached"],
        rows=[
            [
                "function calls per second, all together",
                number(calls),
                number(_MOST_CALLS),
                verdict([calls < _MOST_CALLS]),
            ],
            [
                "percent of a core, the busiest of them",
                number(percent),
                number(_MOST_CORE_PERCENT),
                verdict([percent < _MOST_CORE_PERCENT]),
            ],
        ],
        notes=[f"Over {_IDLE_SECONDS:g} s."],
    )
