"""The operations of the area schedules, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

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
    """Tick schedules, and operate them."""

    def tick_schedule(self, args: TickScheduleArgs) -> TickScheduleResult:
        """Submit ticks of a schedule: compares its last tick with the expected one, sets it, and make what they make.

        The first call for an unknown schedule registers it and submits nothing, whatever it carries. A call without
        ticks asks how far the schedule is. Each call keeps what the schedule is now: spec, task, lane, next tick.

        Args:
            args: the schedule, what its ticks make, and which ones to submit.

        Returns:
            `Ticked` with the new executions; `Registered`; `AlreadyTicked` when the last tick is another one;
            `Paused`.

        Raises:
            ContentionError: `tick_not_due`, a tick lies in the future of the store's clock.
            ValidationError: an argument is not valid; the message names it.
            ResourceExhaustedError: `too_many_classes`, `store_full`.
        """
        raise UnavailableError("tick_schedule")

    def tick_schedules(self, args: Sequence[TickScheduleArgs]) -> list[TickScheduleResult | EngineError]:
        """Do what `tick_schedule` does for many schedules, in bounded calls; each is answered by itself, in order.

        Args:
            args: the schedules, each once.

        Returns:
            Of each what `tick_schedule` returns, or the error that it raises.

        Raises:
            ValidationError: `duplicate_in_call`; nothing was done.
        """
        raise UnavailableError("tick_schedules")

    def lead_schedules(self, group: str, process: str, duration: timedelta) -> Leadership:
        """Make a process the leader of a group of schedules, or renews its leadership; unless another one leads.

        Only spares the store calls: each tick is submitted once, whichever process submits it.

        Args:
            group: names the processes of which one leads.
            process: names the caller; never used again by another one.
            duration: for how long, unless it is renewed.

        Returns:
            Whether the caller leads, until when there is a leader, and the store's clock.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("lead_schedules")

    def resign_schedules(self, group: str, process: str) -> None:
        """End the leadership of a process; change nothing if another one leads.

        Args:
            group: as in `lead_schedules`.
            process: as in `lead_schedules`.

        Raises:
            ValidationError: an argument is not valid; the message names it.
        """
        raise UnavailableError("resign_schedules")

    def list_schedules(self, cursor: str | None = None, limit: int = 100) -> ListSchedulesPage:
        """Return a page of the namespace's schedules by name.

        Args:
            cursor: the cursor of the page before; None for the first page.
            limit: most schedules on the page, 0 to 1000.

        Returns:
            The schedules, and the cursor of the next page; None at the end.

        Raises:
            ValidationError: `invalid_cursor`, or a limit out of range.
        """
        raise UnavailableError("list_schedules")

    def pause_schedule(self, name: str) -> bool:
        """Make a schedule submit nothing.

        Args:
            name: the schedule's.

        Returns:
            False if it was paused already.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("pause_schedule")

    def resume_schedule(self, name: str) -> bool:
        """Let a paused schedule go on from now; its ticks meanwhile are not made up for.

        Args:
            name: the schedule's.

        Returns:
            False if it was not paused.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("resume_schedule")

    def remove_schedule(self, name: str) -> None:
        """Forget a schedule. A worker that still has it registers it anew, from that moment on.

        Args:
            name: the schedule's.

        Raises:
            NotFoundError: `schedule_not_found`.
        """
        raise UnavailableError("remove_schedule")
