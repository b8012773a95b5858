"""The memory of a worker process, after its start and after many tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.comparison import Tell
from benchmarks.environments import Script, ask, python_for, surroundings
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.rows import OURS
from benchmarks.server import Server
from benchmarks.workers import WorkerProcess, started

MEGABYTE = 1_000_000
_WARM_UP = 100
_MOST = 60 * MEGABYTE
_MOST_GROWTH = 1.1
# This library runs more tasks, because its memory must stay flat.
_OURS_TIMES = 5


@attrs.frozen(kw_only=True)
class Usage:
    """Bytes that a worker has resident.

    Attributes:
        tasks: how many it ran in all, warm-up and failures apart.
        failed: how many of its tasks failed after that.
        at_start: after its first hundred tasks.
        at_tenth: after a tenth of the tasks.
        at_end: after all of them.
        after_failures: after the failures; None if there were none.
    """

    tasks: int
    failed: int
    at_start: int
    at_tenth: int
    at_end: int
    after_failures: int | None = None

    def is_small(self) -> bool:
        """Return True if the worker always used less than 60 MB."""
        return max(self._measured()) < _MOST

    def is_flat(self) -> bool:
        """Return True if the memory grew by less than a tenth after the first tenth of the tasks."""
        return max(self._measured()) <= _MOST_GROWTH * self.at_tenth

    def _measured(self) -> list[int]:
        return [self.at_start, self.at_tenth, self.at_end, *([self.after_failures] if self.after_failures else [])]


def table(chosen: Sequence[Script], *, tasks: int, cache: Path, tell: Tell) -> Table:
    """Weigh one worker of each peer.

    Args:
        tasks: how many a peer runs, or its share of them; ours runs five times as many, and half as many that fail.
        cache: where the peers' environments are kept.
        tell: is told how far it is.
    """
    usages = {}
    for script in sorted(chosen, key=lambda script: script.name != OURS):
        tell(f"Memory: {script.name}")
        ours = script.name == OURS
        count = tasks * _OURS_TIMES if ours else script.tasks(tasks)
        usages[script.name] = _usage(script, python_for(script, cache), count, tasks // 2 if ours else 0)
    return table_of(usages)


def _usage(script: Script, python: Path, tasks: int, failing: int) -> Usage:
    with Server() as server, _worker(script, python, server.url) as worker:

        def after(step: str, count: int) -> int:
            ask(script, python, step, count, server.url)
            return worker.resident()

        tenth = max(1, tasks // 10)
        return Usage(
            tasks=tasks,
            failed=failing,
            at_start=after("at_once", _WARM_UP),
            at_tenth=after("at_once", tenth),
            at_end=after("at_once", max(1, tasks - tenth)),
            after_failures=after("failures", failing) if failing else None,
        )


@contextmanager
def _worker(script: Script, python: Path, url: str) -> Iterator[WorkerProcess]:
    (command,) = ask(script, python, "commands", 0, url)["commands"]
    with tempfile.TemporaryDirectory() as folder, started(command, surroundings(url), Path(folder, "log")) as worker:
        yield worker


def table_of(usages: dict[str, Usage]) -> Table:
    """Return what was measured, and whether ours is small and flat."""
    return Table(
        title="Memory of a worker",
        headings=[
            "worker of 8 threads, in MB",
            "tasks",
            "after its first 100",
            "after a tenth",
            "after all",
            "failing tasks",
            "after these",
            "must reach",
            "reached",
        ],
        rows=[_row(name, usage) for name, usage in usages.items()],
        notes=[
            "Resident memory, all processes of a worker added up: of such as share pages by fork (rq, dramatiq) that "
            "is more than they take together.",
            f"Flat: never more than {_MOST_GROWTH:g} times what it was after a tenth of the tasks.",
        ],
    )


def _row(name: str, usage: Usage) -> list[str]:
    def megabytes(size: int | None) -> str:
        return number(None if size is None else size / MEGABYTE)

    judged = [f"{_MOST // MEGABYTE} MB, flat", verdict([usage.is_small(), usage.is_flat()])]
    return [
        name,
        f"{usage.tasks:,}",
        megabytes(usage.at_start),
        megabytes(usage.at_tenth),
        megabytes(usage.at_end),
        f"{usage.failed:,}" if usage.failed else NOTHING,
        megabytes(usage.after_failures),
        *(judged if name == OURS else [NOTHING, NOTHING]),
    ]
