"""Schedulers of a worker's tasks, the ticks that they submit, and an engine that counts their calls."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flowfabric_worker import Worker
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.schedules import ScheduleInfo

START = datetime(2030, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def scheduler_of(worker: Worker) -> Ticker:
    return Ticker(worker.engine, worker.tasks.values())


def ticks_of(engine: Engine, name: str = "beat") -> list[str]:
    """Return the ticks that were submitted of a schedule."""
    rows = engine.list_executions(limit=1000).executions
    return sorted(row.tags["tick"] for row in rows if row.tags.get("schedule") == name)


def rows(engine: Engine) -> dict[str, ScheduleInfo]:
    """Return the schedules by name."""
    return {row.name: row for row in engine.list_schedules().schedules if isinstance(row, ScheduleInfo)}


def beating(worker: Worker, **options: Any) -> None:
    """Give a worker the task `beat`."""

    @worker.task(**{"name": "beat", "every": MINUTE, **options})
    def beat() -> None: ...


class Counting(Engine):
    """An engine that counts the calls that schedules cost."""

    calls = 0

    def call(self, function: str, *rest: Any) -> Any:
        self.calls += 1
        return super().call(function, *rest)
