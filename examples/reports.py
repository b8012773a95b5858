"""Reports for an office: work that runs by itself, in steps, with retries, and an alert for failures.

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
    """Alert the engineer on duty of failures, after the store has recorded them."""

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
        # A retry cannot help against an unknown branch.
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
    """Report on all branches; its schedule submits it without arguments."""
    return collect(BRANCHES)


@worker.task(interrupt=True)
def report_of(branches: list[str]) -> Report:
    """Report on some branches, on request."""
    return collect(branches)


def collect(branches: list[str]) -> Report:
    """Ask each branch; answers are recorded, so that a retry continues where the last attempt failed."""
    total = 0
    for number, branch in enumerate(branches):
        current().progress(100 * number // len(branches), f"asking {branch}")
        total += current().step(f"ask {branch}", ask, branch, current().retry_count)
    return Report(branches=branches, total=total)


def ask(branch: str, tries: int) -> int:
    """Return the takings of a branch, as a step. The connection to Chur fails at the first try."""
    turnover = TURNOVER[branch]
    if branch == "Chur" and tries == 0:
        raise ConnectionError(f"{branch} does not answer")
    log.info("%s has taken in %s", branch, turnover)
    return turnover
