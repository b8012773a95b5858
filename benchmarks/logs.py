"""The cost of log lines: a drain with the default log level beside one that logs errors only."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

import attrs

from benchmarks.environments import ROOT
from benchmarks.peers.base import stop
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Client, Worker

TASKS: Final = 30_000
_ROUNDS: Final = 5
_LEAST: Final = 0.95
_DEFAULT: Final = "default"
_ERROR: Final = "error"
# The drain is watched from here on, when the worker has warmed up, until little is left.
_FIRST, _LAST = 2000, 500
_WITHIN: Final = 120.0

worker = Worker("logging", os.environ.get("FLOWFABRIC_URL"))


@worker.task
def noop(number_: int) -> int:
    return number_


@attrs.frozen(kw_only=True)
class Drain:
    """One drain.

    Attributes:
        rate: tasks per second.
        processor: seconds of processor time of the worker, start and stop with it.
    """

    rate: float
    processor: float


def table() -> Table:
    """Measure drains on servers of their own, in turns."""
    drains: dict[str, list[Drain]] = {_DEFAULT: [], _ERROR: []}
    for _ in range(_ROUNDS):
        for level in random.sample(list(drains), len(drains)):
            drains[level].append(_drain(level))
    return table_of(drains)


def _drain(level: str) -> Drain:
    with Server() as server, Client(server.url) as client:
        worker.url = server.url
        noop.submit_many((each,) for each in range(TASKS))
        worker.close()
        command = [sys.executable, "-m", "flowfabric_worker", "run", "benchmarks.logs:worker", "--url", server.url]
        options = [] if level == _DEFAULT else ["--log-level", level]
        before = os.times()
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _await(client, TASKS - _FIRST)
            began, left = time.perf_counter(), _unfinished(client)
            _await(client, _LAST)
            rate = (left - _unfinished(client)) / (time.perf_counter() - began)
        finally:
            stop([process])
        after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return Drain(rate=rate, processor=spent)


def _await(client: Client, most: int) -> None:
    deadline = time.monotonic() + _WITHIN
    while _unfinished(client) > most:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the worker does not drain {TASKS:,} tasks within {_WITHIN} s")
        time.sleep(0.005)


def _unfinished(client: Client) -> int:
    return sum(count for lane in client.lanes() for state, count in lane.depths.items() if not state.is_terminal)


def table_of(drains: dict[str, Sequence[Drain]]) -> Table:
    """Return the medians, and whether the lines are paid with little speed."""
    rates = {level: statistics.median(each.rate for each in rounds) for level, rounds in drains.items()}

    def line(level: str) -> list[str]:
        processor = statistics.median(each.processor for each in drains[level])
        share = rates[level] / rates[_ERROR]
        judged = [f"{_LEAST:g}", verdict([share >= _LEAST])] if level == _DEFAULT else [NOTHING, NOTHING]
        return [level, number(rates[level]), number(processor), number(share), *judged]

    return Table(
        title="Drain by log level",
        headings=["log level", "tasks per s", "processor, s", "times that of error", "must reach", "reached"],
        rows=[line(level) for level in drains],
        notes=[f"{TASKS:,} no-op tasks, one process of 8 threads; medians of {_ROUNDS} rounds, in turns."],
    )
