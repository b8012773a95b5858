"""Streams: how soon a reader has what a handler emits, and how many frames handlers append in a second."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs

from benchmarks.report import Table, number
from benchmarks.server import Server
from benchmarks.workers import started
from flowfabric_worker import Client, StreamValue, Worker

ROUNDS: Final = 300
FRAMES: Final = 10_000
_HANDLERS: Final = (1, 8)
_REPEATS: Final = 3
_PAUSE: Final = 0.01
_TEXT: Final = "a token of 24 characters"

worker = Worker("benchmark")


@worker.task
def say() -> Iterator[str]:
    """Yield one value."""
    yield _TEXT


@worker.task
def tick(count: int) -> Iterator[float]:
    """Yield the time, again and again, with pauses."""
    for _ in range(count):
        time.sleep(_PAUSE)
        yield time.time()


@worker.task
def pour(count: int) -> Generator[str, None, list[float]]:
    """Yield many values; return when the first and the last one were emitted."""
    began = time.time()
    for _ in range(count):
        yield _TEXT
    return [began, time.time()]


@attrs.frozen(kw_only=True)
class Measured:
    """What one worker process reached; times in ms.

    Attributes:
        first: from each submission to its first value, in the reader's hand.
        late: from each emission to the reader.
        rates: frames per second of so many handlers together, in each round.
    """

    first: Sequence[float]
    late: Sequence[float]
    rates: dict[int, Sequence[float]]


def table() -> Table:
    """Measure one worker process of eight threads, from another process."""
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "flowfabric_worker", "run", "benchmarks.streams:worker", "--threads", "8"]
        environment = {**os.environ, "FLOWFABRIC_URL": server.url}
        with Client(server.url) as client, started(command, environment, Path(folder) / "log"):
            client.submit("benchmark.say", force=True).result(timeout=30)
            return table_of(
                Measured(
                    first=[_first(client) for _ in range(ROUNDS)],
                    late=_late(client),
                    rates={count: [_rate(client, count) for _ in range(_REPEATS)] for count in _HANDLERS},
                )
            )


def _first(client: Client) -> float:
    """Return how long after its submission the first value of a run was read, in ms."""
    began = time.perf_counter()
    stream = client.submit("benchmark.say").stream(timeout=30)
    next(stream)
    took = time.perf_counter() - began
    assert list(stream) == []
    return 1000 * took


def _late(client: Client) -> list[float]:
    """Return how long after its emission each value was read, in ms."""
    stream = client.submit("benchmark.tick", [ROUNDS]).stream(timeout=30)
    return [1000 * (time.time() - item.value) for item in stream if isinstance(item, StreamValue)]


def _rate(client: Client, handlers: int) -> float:
    """Return how many frames per second handlers append together, acknowledged."""
    began = time.time()
    runs = client.submit_many("benchmark.pour", [[FRAMES]] * handlers)
    starts = [run.result(timeout=120)[0] for run in runs]
    return handlers * FRAMES / (time.time() - max(began, min(starts)))


def table_of(measured: Measured) -> Table:
    """Return the medians, and the slowest in a hundred where time is measured."""

    def times(what: str, found: Sequence[float]) -> list[str]:
        return [what, f"{number(statistics.median(found))} ms", f"{number(statistics.quantiles(found, n=100)[98])} ms"]

    def rate(handlers: int, found: Sequence[float]) -> list[str]:
        what = "one handler" if handlers == 1 else f"{handlers} handlers"
        return [f"frames of {what}", f"{number(statistics.median(found))} per s", ""]

    return Table(
        title="Streams",
        headings=["what", "p50, or median", "p99"],
        rows=[
            times("submission to the first value at a live reader", measured.first),
            times("emission to a live reader", measured.late),
            *(rate(handlers, found) for handlers, found in measured.rates.items()),
        ],
        notes=[
            f"One worker process of 8 threads, read from another process; {ROUNDS} submissions, then {ROUNDS} values "
            f"{1000 * _PAUSE:g} ms apart, then {FRAMES:,} values of {len(_TEXT)} bytes by each handler, until all are "
            f"acknowledged and the runs have ended; medians of {_REPEATS} rounds."
        ],
    )
