"""Reports for an office: work that runs by itself, in steps, with retries, and somebody who is told of failures.

    flowfabric-worker run examples.reports:worker

Every minute the day's figures are fetched from all branches. Stop the worker with Ctrl-C at any moment and start
it again: what has been fetched is not fetched again.

    flowfabric-worker schedules
    flowfabric-worker list --tag schedule=daily_report

A report can be asked for as well, also where this code is not installed:

    flowfabric-worker submit report_of '["Bern", "Chur"]' --wait
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import attrs

from flowfabric_worker import AttemptEvent, Middleware, RetryPolicy, TaskContext, Worker, current

log = logging.getLogger("reports")

BRANCHES = ["Bern", "Basel", "Chur"]
TURNOVER = {"Bern": 1200, "Basel": 900, "Chur": 400}


class Duty(Middleware):
    """Tells whoever is on duty of what went wrong for good, once the store knows it too."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_failure(self, event: AttemptEvent) -> None:
        self.told.append(f"{event.task}: {event.error}")
        log.error("%s failed for good: %s", event.task, event.error)


@contextmanager
def timed(context: TaskContext) -> Iterator[None]:
    """Log how long each handler took; the records carry the ids of the run."""
    began = time.monotonic()
    try:
        yield
    finally:
        context.log.info("took %.3f s", time.monotonic() - began)


duty = Duty()

# The store is $FLOWFABRIC_URL, else embedded://.flowfabric. These options are those of every task below.
worker = Worker(
    "reports",
    middleware=[timed, duty],
    defaults={
        "lane": "reports",
        "timeout": timedelta(minutes=1),
        "retry": RetryPolicy(max_retries=3, initial=timedelta(seconds=1)),
        # A branch that does not exist will not exist at the next try.
        "permanent": (KeyError,),
    },
)


@attrs.frozen(kw_only=True)
class Report:
    """What the branches have taken in."""

    branches: list[str]
    total: int


@worker.task(every=timedelta(minutes=1), missed="latest")
def daily_report() -> Report:
    """Run by itself, without arguments, on one of the workers that have it."""
    return collect(BRANCHES)


@worker.task(interrupt=True)
def report_of(branches: list[str]) -> Report:
    """Run when somebody asks for it."""
    return collect(branches)


def collect(branches: list[str]) -> Report:
    """Ask branch after branch; each answer is kept, so that a retry goes on where the last attempt failed."""
    total = 0
    for number, branch in enumerate(branches):
        current().progress(100 * number // len(branches), f"asking {branch}")
        total += current().step(f"ask {branch}", ask, branch, current().retry_count)
    return Report(branches=branches, total=total)


def ask(branch: str, tries: int) -> int:
    """Return a step. The line to Chur is bad: it takes a second try."""
    turnover = TURNOVER[branch]
    if branch == "Chur" and tries == 0:
        raise ConnectionError(f"{branch} does not answer")
    log.info("%s has taken in %s", branch, turnover)
    return turnover
