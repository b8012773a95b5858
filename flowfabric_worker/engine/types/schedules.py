"""The arguments and results of the area schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

# How many ticks one call may submit; each is an execution.
MAX_TICKS: Final = 100
# How many schedules and ticks one call of a stored function handles.
MAX_TICKED: Final = 100


def _plain_creation(_: Any, __: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, CreateExecutionArgs):
        raise ValidationError("invalid_input", f"Give CreateExecutionArgs as the creation, not {value!r:.100}.")
    if value.execution_id is not None or value.idempotency_key is not None:
        raise ValidationError("invalid_input", "Each tick creates a new execution: leave its id and its key out.")


@attrs.frozen(kw_only=True)
class TickScheduleArgs:
    """Ticks of a schedule to submit, or a question how far the schedule is.

    Attributes:
        name: the name of the schedule, unique in the namespace.
        spec: when it ticks, as text for people.
        creation: what each tick creates; the tags `schedule` and `tick` are added.
        expected: the last tick that the caller knows to be handled; None to ask only.
        ticks: the moments to submit, oldest first, all after `expected`; at most 100.
        missed: how many ticks after `expected` the caller leaves out because they were missed; they are added up.
        missed_until: the last missed tick; if no tick is submitted, ticks are handled up to here.
        next_tick: the tick after these, for people.
    """

    name: str = attrs.field(validator=checks.name)
    spec: str = attrs.field(validator=checks.name)
    creation: CreateExecutionArgs = attrs.field(validator=_plain_creation)
    expected: datetime | None = None
    ticks: tuple[datetime, ...] = attrs.field(
        default=(), converter=checks.as_tuple, validator=checks.at_most(MAX_TICKS)
    )
    missed: int = attrs.field(default=0, validator=checks.integer(0))
    missed_until: datetime | None = None
    next_tick: datetime | None = None


@attrs.frozen(kw_only=True)
class Registered:
    """The schedule was unknown and is registered now; its ticks count from now on, and none was submitted."""

    last_tick_ms: int


@attrs.frozen(kw_only=True)
class Ticked:
    """The ticks were submitted; the executions are in the order of the ticks."""

    execution_ids: tuple[ExecutionId, ...]


@attrs.frozen(kw_only=True)
class AlreadyTicked:
    """Nothing was submitted: ticks are handled up to this moment, in ms of the store's clock."""

    last_tick_ms: int


@attrs.frozen(kw_only=True)
class Paused:
    """Nothing was submitted: the schedule was paused at this moment, in ms of the store's clock."""

    since_ms: int


TickScheduleResult = Registered | Ticked | AlreadyTicked | Paused


@attrs.frozen(kw_only=True)
class Leadership:
    """Which process submits the ticks of a group of schedules; moments are in ms of the store's clock.

    Attributes:
        leads: whether the calling process is the leader.
        until_ms: when the leadership ends, unless it is renewed.
        now_ms: the store's clock.
    """

    leads: bool
    until_ms: int
    now_ms: int


@attrs.frozen(kw_only=True)
class ScheduleInfo:
    """A schedule; moments are in ms of the store's clock.

    Attributes:
        name: its name, unique in the namespace.
        spec: when it ticks, as text.
        task: the task that it runs.
        lane: the lane of its executions.
        first_seen_ms: when it was registered.
        last_tick_ms: up to when its ticks are handled: submitted, missed, or before it was registered.
        missed_ticks: how many ticks were missed.
        submitted_tick_ms: the last tick that was submitted; None if there is none.
        next_tick_ms: the next tick, as the process that ticked last told it; None if it told none.
        paused_since_ms: since when it is paused; None if it is not.
    """

    name: str
    spec: str
    task: str
    lane: str
    first_seen_ms: int
    last_tick_ms: int
    submitted_tick_ms: int | None
    next_tick_ms: int | None
    paused_since_ms: int | None
    missed_ticks: int = 0


@attrs.frozen(kw_only=True)
class ListSchedulesPage:
    """A page of schedules by name; `next_cursor` is None on the last one."""

    schedules: tuple[ScheduleInfo | DamagedRow, ...]
    next_cursor: str | None
