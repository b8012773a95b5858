"""The operations of the area schedules, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.types.schedules import (
    Leadership,
    ListSchedulesPage,
    TickScheduleArgs,
    TickScheduleResult,
)


class SchedulesBackend:
    """Submit the ticks of schedules, and pause, resume, remove and list them."""

    def tick_schedule(self, args: TickScheduleArgs) -> TickScheduleResult:
        """Submit ticks of a schedule: compare its last tick, move it, and create the executions of the new ticks.

        The first call for an unknown schedule registers it, and submits nothing. A call without ticks reads the last
        tick of the schedule. Each call stores the present spec, task, lane and next tick of the schedule.

        Args:
            args: the schedule, its expected last tick, the ticks to submit, and what each creates.

        Returns:
            `Ticked` with the new executions; `Registered`; `AlreadyTicked` if the last tick is not the expected one;
            or `Paused`.

        Raises:
            ContentionError: `tick_not_due`, a tick is in the future by the store's clock.
            ValidationError: an argument is not valid; the message names it.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("tick_schedule")

    def tick_schedules(self, args: Sequence[TickScheduleArgs]) -> list[TickScheduleResult | EngineError]:
        """Submit ticks of many schedules in bounded calls, and return an answer for each, in order.

        Args:
            args: the schedules, each once.

        Returns:
            For each schedule what `tick_schedule` returns, or the error that it raises.

        Raises:
            ValidationError: `duplicate_in_call`; nothing was submitted.
        """
        raise UnavailableError("tick_schedules")

    def lead_schedules(self, group: str, process: str, duration: timedelta) -> Leadership:
        """Make a process the leader of a group of schedules, or renew its leadership, unless another process leads.

        Leadership only saves calls to the store: each tick is submitted once, whichever process submits it.

        Args:
            group: the name of the group.
            process: the name of the calling process, which no other process must use.
            duration: how long the leadership lasts without renewal.

        Returns:
            Whether the caller leads, until when the group has a leader, and the store's clock, both in ms.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("lead_schedules")

    def resign_schedules(self, group: str, process: str) -> None:
        """End the leadership of a process; do nothing if another process leads.

        Args:
            group: the name of the group.
            process: the name of the calling process.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("resign_schedules")

    def list_schedules(self, cursor: str | None = None, limit: int = 100) -> ListSchedulesPage:
        """List the schedules of the namespace by name.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most schedules of the page, 0 to 1,000.

        Returns:
            A page of schedules; a damaged one is a row that says what is damaged.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_schedules")

    def pause_schedule(self, name: str) -> bool:
        """Stop submitting a schedule's ticks.

        Args:
            name: the schedule.

        Returns:
            False if the schedule was paused before.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("pause_schedule")

    def resume_schedule(self, name: str) -> bool:
        """Submit the ticks of a paused schedule again from now on; those of the time of the pause are not submitted.

        Args:
            name: the schedule.

        Returns:
            False if the schedule was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("resume_schedule")

    def remove_schedule(self, name: str) -> None:
        """Remove a schedule; a worker that still declares it registers it again, with the ticks from then on.

        Args:
            name: the schedule.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("remove_schedule")
