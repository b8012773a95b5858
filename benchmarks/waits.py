"""Waits: how soon a handler that suspended runs again, and what the signals before it cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

import attrs

from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker import AttemptEvent, Client, Middleware, Runtime, Worker, WorkerSettings, current
from tests.support.servers import wait_until

ROUNDS: Final = 300
SIGNALS: Final = 10_000
_PART: Final = 300
_MOST_MS: Final = 5.0


@attrs.frozen(kw_only=True)
class Measured:
    """What one idle worker reached; times in ms.

    Attributes:
        suspended: from the call of `wait_for` to its return in the next run, with a signal sent at once.
        signalled: from the sending of that signal to the return.
        first: of the first signals to one waitpoint, each.
        last: of the last signals to that waitpoint, each.
    """

    suspended: Sequence[float]
    signalled: Sequence[float]
    first: Sequence[float]
    last: Sequence[float]


@attrs.define
class Answering(Middleware):
    """Send the signal that an execution waits for as soon as it is suspended.

    Attributes:
        token: the token of the execution that waits.
        sent_at: when each signal was sent.
    """

    client: Client
    token: str = ""
    sent_at: list[float] = attrs.field(factory=list)

    def on_suspend(self, event: AttemptEvent) -> None:  # noqa: ARG002  one execution runs at a time
        self.sent_at.append(time.perf_counter())
        self.client.signal(self.token, "go", 1)


def table() -> Table:
    """Measure waits on Valkey."""
    with Server() as server:
        return table_of(measure(server.url))


def measure(url: str) -> Measured:
    """Measure one worker in this process, with nothing else to do."""
    with Client(url) as client:
        answering = Answering(client)
        worker = Worker("benchmark", url, middleware=[answering])
        began: list[float] = []
        ended: list[float] = []

        @worker.task
        def wait() -> None:
            answering.token = current().waitpoint("go")
            if current().kind == "fresh":
                began.append(time.perf_counter())
            current().wait_for("go")
            ended.append(time.perf_counter())

        @worker.task
        def listen() -> None:
            answering.token = current().waitpoint("noise")
            current().cancelled.wait()

        runtime = Runtime(worker, WorkerSettings(threads=2))
        runtime.start()
        for _ in range(ROUNDS):
            wait.submit().result(timeout=30)
        answering.token = ""
        run = listen.submit()
        costs = _costs(client, wait_until(lambda: answering.token, "the waitpoint is there"))
        run.cancel()
        runtime.stop()
        worker.close()
    return Measured(
        suspended=_ms(began, ended),
        signalled=_ms(answering.sent_at, ended),
        first=costs[:_PART],
        last=costs[-_PART:],
    )


def _ms(began: Sequence[float], ended: Sequence[float]) -> list[float]:
    return [1000 * (end - begin) for begin, end in zip(began, ended, strict=True)]


def _costs(client: Client, token: str) -> list[float]:
    """Return how long each of many signals to one waitpoint took, in ms."""
    costs = []
    for _ in range(SIGNALS):
        began = time.perf_counter()
        client.signal(token, "noise", 1)
        costs.append(1000 * (time.perf_counter() - began))
    return costs


def table_of(measured: Measured, title: str = "Waits") -> Table:
    """Return the medians and the slowest in a hundred, and whether a handler runs again soon enough."""

    def line(what: str, found: Sequence[float], most: float | None = None) -> list[str]:
        middle = statistics.median(found)
        judged = [NOTHING, NOTHING] if most is None else [f"{number(most)} ms", verdict([middle <= most])]
        return [what, f"{number(middle)} ms", f"{number(statistics.quantiles(found, n=100)[98])} ms", *judged]

    return Table(
        title=title,
        headings=["what", "p50", "p99", "p50 at most", "reached"],
        rows=[
            line("wait_for to running again, signalled at once", measured.suspended, _MOST_MS),
            line("signal to running again", measured.signalled),
            line(f"one of the first {_PART} signals to one waitpoint", measured.first),
            line(f"one of the last {_PART} of {SIGNALS:,} signals", measured.last),
        ],
        notes=[f"One idle worker and the sender in one process; {ROUNDS} rounds, one after the other."],
    )
