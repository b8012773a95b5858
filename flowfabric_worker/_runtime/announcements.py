"""The log lines of a worker process about its start and its stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from flowfabric_worker._runtime.execution_log import short, spoken
from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker._version import __version__
from flowfabric_worker.config import WorkerSettings, shown_url, store_url
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.wording import counted
from flowfabric_worker.task import Task

# The most names of one kind in a line; the others are counted.
_MOST_NAMES: Final = 8


def start_line(
    url: str | None,
    tasks: Iterable[Task[..., Any]],
    settings: WorkerSettings,
    lanes: Mapping[str, int],
    instance_id: str,
) -> str:
    """Format the line that says what a worker process runs, on which store, and how to stop it."""
    ordered = sorted(tasks, key=lambda task: task.name)
    scheduled = [f"{task.name} ({task.schedule.spec})" for task in ordered if task.schedule is not None]
    weighed = [lane if weight == 1 else f"{lane}={weight}" for lane, weight in lanes.items()]
    return (
        f"{instance_id} takes work from {shown_url(store_url(url))}: flowfabric_worker {__version__}, "
        f"{counted(settings.threads, 'thread')}; {_named('lane', weighed)}; "
        f"{_named('task', [task.name for task in ordered])}; {_named('schedule', scheduled)}. "
        f"Ctrl-C or SIGTERM stops it; running handlers have {spoken(settings.grace.total_seconds())} to finish."
    )


def unknown_lanes(worker_name: str, tasks: Iterable[Task[..., Any]], lanes: Mapping[str, int]) -> list[str]:
    """Return a warning for each lane in `--lanes` that no task of the worker uses."""
    known = sorted({task.options_given.lane for task in tasks})
    return [
        f"--lanes names {lane!r}, which no task of {worker_name!r} uses; they use {', '.join(known)}."
        f"{did_you_mean(lane, known)}"
        for lane in sorted(lanes.keys() - set(known))
    ]


def waiting_line(running: Sequence[LeasedExecution], grace: float) -> str:
    """Format the line that says what a stop waits for, and how to stop at once."""
    waited_for = [
        f"{each.task.name} {short(each.key)} ({spoken(now() - (each.started_at or now()))})"
        for each in sorted(running, key=lambda each: each.started_at or 0.0)
    ]
    return (
        f"Stopping: waiting up to {spoken(grace)} for {counted(len(running), 'handler')}: {_listed(waited_for)}. "
        "A second Ctrl-C or SIGTERM releases them at once."
    )


def unacknowledged_line(outcomes: int, released: int) -> str:
    """Format the line that says what a stop left unacknowledged by the store; at least one number is not 0."""
    what = [counted(outcomes, "outcome")] if outcomes else []
    if released:
        what.append(f"the release of {counted(released, 'execution')}")
    return f"The store has not acknowledged {' and '.join(what)}; such an execution runs again when its lease expires."


def _named(noun: str, names: Sequence[str]) -> str:
    return f"{counted(len(names), noun)}: {_listed(names)}" if names else f"no {noun}s"


def _listed(names: Iterable[str]) -> str:
    """Join names for a line, which ends with a count of those that it leaves out."""
    listed = list(names)
    more = [f"{len(listed) - _MOST_NAMES:,} more"] if len(listed) > _MOST_NAMES else []
    return ", ".join([*listed[:_MOST_NAMES], *more])
