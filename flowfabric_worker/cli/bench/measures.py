"""The steps of a benchmark, each of which is bounded in time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final

import attrs

from flowfabric_worker.cli.bench.verdict import Figures, Pace, Spread, spread_of
from flowfabric_worker.config import WorkerSettings
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.runtime import Runtime
from flowfabric_worker.worker import Worker

# The steps in order, and the share of the whole time that each may take.
STEPS: Final = {
    "round trip": 0.1,
    "latency": 0.15,
    "submit one by one": 0.2,
    "submit in bulk": 0.15,
    "drain": 0.4,
}
_LANE: Final = "bench"
_MOST_CALLS: Final = 1000
_MOST_SAMPLES: Final = 300
# The longest wait for a single task, after which the benchmark fails.
_LONGEST: Final = timedelta(seconds=15)
_LOOK_EVERY: Final = 0.01

Told = Callable[[str, float], None]
"""A function that is called with the name of a step, and the part of it that is done, from 0 to 1."""


@attrs.define(kw_only=True)
class _Meter:
    """The time that a block of code takes."""

    began: float = attrs.field(factory=time.perf_counter)
    python_began: float = attrs.field(factory=time.process_time)
    seconds: float = 0.0
    python_seconds: float = 0.0
    server_seconds: float | None = None

    def pace(self, count: int) -> Pace:
        return Pace(
            count=count,
            seconds=self.seconds,
            python_seconds=self.python_seconds,
            server_seconds=self.server_seconds,
        )


class Bench:
    """Measure a store that holds nothing else.

    Args:
        url: the URL of the store.
        tasks: the most tasks to submit in bulk.
        threads: the threads of the runtime that drains them.
        seconds: how long all steps may take together.
        tell: called with the progress.
    """

    def __init__(self, url: str, *, tasks: int, threads: int, seconds: float, tell: Told) -> None:
        self._worker = Worker("bench", url)
        self._engine = self._worker.engine
        self._tasks = tasks
        self._seconds = seconds
        self._tell = tell
        # The times at which handlers have started.
        self._started: list[float] = []
        self._noop = self._worker.task(lane=_LANE, name="noop")(self._start)
        self._settings = WorkerSettings(threads=threads, grace=timedelta())

    def _start(self) -> None:
        self._started.append(time.perf_counter())

    def run(self) -> Figures:
        """Run every step.

        Raises:
            EngineError: the store failed, or did not run a task in time.
        """
        try:
            ping, call, calls = self._round_trip()
            start, result = self._latency()
            submit = self._submit_one_by_one()
            submit_bulk = self._submit_in_bulk()
            drain = self._drain(submit.count + submit_bulk.count)
        finally:
            self._worker.close()
        return Figures(
            ping=ping,
            call=call,
            calls=calls,
            submit=submit,
            submit_bulk=submit_bulk,
            drain=drain,
            start=start,
            result=result,
        )

    # The steps

    def _round_trip(self) -> tuple[Spread, Spread, Pace]:
        pings = [self._timed(self._engine.ping) for _ in self._turns("round trip", _MOST_CALLS, of=0.5)]
        with self._metered() as meter:
            calls = [self._timed(self._engine.server_time) for _ in self._turns("round trip", _MOST_CALLS, of=0.5)]
        return spread_of(pings), spread_of(calls), meter.pace(len(calls))

    def _latency(self) -> tuple[Spread, Spread]:
        """Measure the latency of single tasks, one after the other."""
        starts, results = [], []
        with self._running():
            for _ in self._turns("latency", _MOST_SAMPLES):
                began = time.perf_counter()
                self._noop.submit().result(_LONGEST)
                results.append(time.perf_counter() - began)
                starts.append(self._started[-1] - began)
        return spread_of(starts), spread_of(results)

    def _submit_one_by_one(self) -> Pace:
        done = 0
        with self._metered() as meter:
            for _ in self._turns("submit one by one", self._tasks):
                self._noop.submit()
                done += 1
        return meter.pace(done)

    def _submit_in_bulk(self) -> Pace:
        done = 0
        with self._metered() as meter:
            for _ in self._turns("submit in bulk", -(-self._tasks // MAX_BATCH_ITEMS)):
                count = min(MAX_BATCH_ITEMS, self._tasks - done)
                self._noop.submit_many([()] * count)
                done += count
        return meter.pace(done)

    def _drain(self, total: int) -> Pace:
        """Drain the submitted tasks; those that end before the measurement begins are not counted."""
        with self._running():
            deadline = self._deadline("drain")
            started, before = len(self._started), self._completed()
            with self._metered() as meter:
                while len(self._started) < started + total and time.perf_counter() < deadline:
                    self._tell("drain", (len(self._started) - started) / total)
                    time.sleep(_LOOK_EVERY)
                while (done := self._completed() - before) < total and time.perf_counter() < deadline:
                    time.sleep(_LOOK_EVERY)
        self._tell("drain", 1.0)
        return meter.pace(max(1, done))

    # The tools

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Run tasks for the duration of a block."""
        runtime = Runtime(self._worker, self._settings)
        runtime.start()
        try:
            yield
        finally:
            runtime.stop()

    def _turns(self, step: str, most: int, *, of: float = 1.0) -> Iterator[int]:
        """Yield the number of each turn: at least one, until there were `most` or the time of the step is over."""
        deadline = self._deadline(step, of)
        for turn in range(most):
            if turn and time.perf_counter() >= deadline:
                break
            yield turn
            self._tell(step, (turn + 1) / most)
        self._tell(step, 1.0)

    def _deadline(self, step: str, of: float = 1.0) -> float:
        return time.perf_counter() + self._seconds * STEPS[step] * of

    @contextlib.contextmanager
    def _metered(self) -> Iterator[_Meter]:
        """Measure the time that a block takes in this process and in the servers."""
        before = self._engine.store.info()
        meter = _Meter()
        yield meter
        meter.seconds = time.perf_counter() - meter.began
        meter.python_seconds = time.process_time() - meter.python_began
        after = self._engine.store.info()
        if after.calls > before.calls:
            meter.server_seconds = (after.busy_us - before.busy_us) / 1e6

    @staticmethod
    def _timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def _completed(self) -> int:
        return self._depth(PublicState.COMPLETED)

    def _depth(self, state: PublicState) -> int:
        return sum(lane.depths[state] for lane in self._engine.list_lanes().lanes)
