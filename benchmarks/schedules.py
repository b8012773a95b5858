"""How late ticks are: a thousand schedules of one second, with one worker and with several."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import attrs

from benchmarks.comparison import Tell
from benchmarks.environments import ROOT
from benchmarks.figures import percentile
from benchmarks.peers.base import stop
from benchmarks.report import Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import Client, TaskContext, Worker

SCHEDULES: Final = 1000
_SECONDS: Final = 20
_SETTLED_AFTER: Final = 5.0
_READY_WITHIN: Final = 60.0
_MOST_LATE_P50: Final = 0.2
_SECOND: Final = timedelta(seconds=1)

worker = Worker("ticking", os.environ.get("FLOWFABRIC_URL"))


@functools.cache
def _journal() -> int:
    """Return the file, open in this worker, that tells when each tick began."""
    return os.open(os.environ["TICKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _make(number_: int) -> None:
    @worker.task(name=f"beat{number_}", every=_SECOND, retention=timedelta(hours=1))
    def beat(context: TaskContext) -> None:
        os.write(_journal(), f"{context.task} {context.tags['tick']} {time.time()}\n".encode())


for _number in range(SCHEDULES):
    _make(_number)


@attrs.frozen(kw_only=True)
class Lateness:
    """What became of the ticks of some seconds.

    Attributes:
        workers: how many worker processes there were.
        wanted: how many ticks there were.
        missing: how many of them never ran.
        twice: how many ran more than once.
        late: how late each began, in seconds.
    """

    workers: int
    wanted: int
    missing: int
    twice: int
    late: list[float]


def table(tell: Tell) -> Table:
    """Measure on a server of its own, with one worker process and with four."""
    return table_of([_lateness(count, tell) for count in (1, 4)])


def _lateness(workers: int, tell: Tell) -> Lateness:
    tell(f"Running {SCHEDULES:,} schedules with {workers} worker(s)")
    with Server() as server, Client(server.url) as client, tempfile.TemporaryDirectory() as folder:
        client.engine.prepare()
        journal = Path(folder, "ticks")
        journal.touch()
        running = [_start(server.url, journal) for _ in range(workers)]
        try:
            _wait_until_ticking(journal)
            time.sleep(_SETTLED_AFTER)
            first = int(time.time()) + 1
            time.sleep(_SECONDS + 3)
        finally:
            stop(running)
        return _read(journal.read_text("utf-8"), workers, first)


def _start(url: str, journal: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flowfabric_worker", "run", "benchmarks.schedules:worker", "--log-level", "error"]
    environment = {**os.environ, "FLOWFABRIC_URL": url, "TICKS": str(journal)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def _wait_until_ticking(journal: Path) -> None:
    deadline = time.monotonic() + _READY_WITHIN
    while not journal.stat().st_size:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no schedule ticked within {_READY_WITHIN} s")
        time.sleep(0.1)


def _read(journal: str, workers: int, first: int) -> Lateness:
    """Return the ticks of the measured seconds."""
    late: dict[tuple[str, str], list[float]] = {}
    for line in journal.splitlines():
        task, tick, at = line.split()
        moment = datetime.fromisoformat(tick).timestamp()
        if first <= moment < first + _SECONDS:
            late.setdefault((task, tick), []).append(float(at) - moment)
    wanted = SCHEDULES * _SECONDS
    return Lateness(
        workers=workers,
        wanted=wanted,
        missing=wanted - len(late),
        twice=sum(len(times) - 1 for times in late.values()),
        late=[times[0] for times in late.values()],
    )


def table_of(measured: list[Lateness]) -> Table:
    """Return what was measured, and whether nothing is missing and half of the ticks are early enough."""

    def line(each: Lateness) -> list[str]:
        p50, p99 = (percentile(each.late, share) if each.late else float("inf") for share in (0.5, 0.99))
        reached = [each.missing == 0, each.twice == 0, p50 < _MOST_LATE_P50]
        return [
            str(each.workers), f"{each.wanted:,}", str(each.missing), str(each.twice), number(p50), number(p99),
            number(max(each.late, default=float("inf"))), f"none missing, p50 {_MOST_LATE_P50:g}", verdict(reached),
        ]  # fmt: skip

    return Table(
        title=f"{SCHEDULES:,} schedules of one second",
        headings=["workers", "ticks", "missing", "twice", "late by, s, p50", "p99", "most", "must reach", "reached"],
        rows=[line(each) for each in measured],
        notes=[f"Over {_SECONDS} s; how much later than its moment the handler of each tick began."],
    )
