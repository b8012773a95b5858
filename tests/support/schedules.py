"""Helpers of the tests of schedules: their rows, their executions, and clocks that pass ticks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.schedules import (
    Registered,
    ScheduleInfo,
    TickScheduleArgs,
    TickScheduleResult,
)
from flowfabric_worker.schedule import Missed, Schedule
from tests.conftest import Clock
from tests.support.executions import creation
from tests.support.operations import SECOND, START, beat

START_MS = int(START.timestamp() * 1000)
MINUTE = timedelta(minutes=1)


def rows(engine: Engine) -> list[ScheduleInfo | DamagedRow]:
    return list(engine.list_schedules().schedules)


def row(engine: Engine) -> ScheduleInfo:
    """Return the one schedule there is."""
    (only,) = rows(engine)
    assert isinstance(only, ScheduleInfo)
    return only


def executions(engine: Engine) -> list[ExecutionSummary]:
    return list(engine.list_executions(limit=1000).executions)


def submitted_ticks(engine: Engine) -> list[str]:
    return sorted(each.tags["tick"] for each in executions(engine))


def known(engine: Engine, clock: Clock, passed: timedelta = 3 * SECOND) -> None:
    """Register the schedule `beat` and let some time pass."""
    assert engine.tick_schedule(beat()) == Registered(last_tick_ms=START_MS)
    clock.move(passed)


def catch_up(engine: Engine, clock: Clock, schedule: Schedule, missed: Missed) -> list[TickScheduleResult]:
    """Return what a scheduler does that comes back: it submits what is due until nothing is; the answers."""
    answers: list[TickScheduleResult] = []
    last = START + timedelta(milliseconds=row(engine).last_tick_ms - START_MS)
    while due := schedule.due(last, clock.now, missed):
        answers.append(
            engine.tick_schedule(
                TickScheduleArgs(
                    name="beat",
                    spec=schedule.spec,
                    creation=creation(),
                    expected=last,
                    ticks=due.ticks,
                    missed=due.missed,
                    missed_until=due.missed_until,
                )
            )
        )
        last = due.ticks[-1] if due.ticks else due.missed_until or last
    return answers


def without_counts(dump: dict[str, Any]) -> dict[str, Any]:
    """Return what a store holds, but for its clock, counters and revisions, which go on."""
    return {key: value for key, value in dump.items() if not key.endswith(":meta")}
