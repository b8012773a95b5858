"""schedules: arguments and results."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

# In one call: each of them is an execution.
MAX_TICKS: Final = 100
# Schedules and ticks together that one call of a stored function handles.
MAX_TICKED: Final = 100


def _plain_creation(_: Any, __: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, CreateExecutionArgs):
        raise ValidationError("invalid_input", f"A tick makes executions of CreateExecutionArgs, not {value!r:.100}.")
    if value.execution_id is not None or value.idempotency_key is not None:
        raise ValidationError("invalid_input", "A tick makes new executions: they have no id and no key of their own.")


@attrs.frozen(kw_only=True)
class TickScheduleArgs:
    """Submits ticks of a schedule, or only asks how far it is.

    Attributes:
        name: the schedule's, unique in the namespace.
        spec: when it ticks, in words for people.
        creation: what each tick makes; the tags `schedule` and `tick` are added.
        expected: up to where the caller knows the ticks to be done with; None only asks.
        ticks: the moments to submit, oldest first, all behind `expected`; at most 100.
        missed: how many ticks behind `expected` the caller leaves out because they were missed; they are added up.
        missed_until: the last of them; the ticks are done with up to here if none is submitted.
        next_tick: the one behind them, for people.
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
    """The schedule was unknown. It is known from now on, and its ticks count from here; none was submitted."""

    last_tick_ms: int


@attrs.frozen(kw_only=True)
class Ticked:
    """The ticks were submitted, in their order."""

    execution_ids: tuple[ExecutionId, ...]


@attrs.frozen(kw_only=True)
class AlreadyTicked:
    """Nothing was submitted: the ticks are done with up to this moment, ms of the store's clock."""

    last_tick_ms: int


@attrs.frozen(kw_only=True)
class Paused:
    """Nothing was submitted: an operator paused the schedule at this moment, ms of the store's clock."""

    since_ms: int


TickScheduleResult = Registered | Ticked | AlreadyTicked | Paused


@attrs.frozen(kw_only=True)
class Leadership:
    """Who submits the ticks of a set of schedules now; times are ms of the store's clock.

    Attributes:
        leads: whether the caller does; if not, another process does.
        until_ms: when the leadership is over, unless it is renewed before.
        now_ms: the store's clock.
    """

    leads: bool
    until_ms: int
    now_ms: int


@attrs.frozen(kw_only=True)
class ScheduleInfo:
    """A schedule; times are ms of the store's clock.

    Attributes:
        name: unique in the namespace.
        spec: when it ticks, in words.
        task: what it runs.
        lane: where.
        first_seen_ms: since when it is known.
        last_tick_ms: up to where its ticks are done with: submitted, missed, or before it was known.
        missed_ticks: how many ticks did not run because they were missed.
        submitted_tick_ms: the last tick that was submitted; None if none was.
        next_tick_ms: the next one, as told by the process that ticked last; None if none told.
        paused_since_ms: None unless it is paused.
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
