"""The operations of the area workers, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.types.workers import (
    ListTasksPage,
    ListWorkersPage,
    RegisterWorkerArgs,
    RegisterWorkerResult,
    TaskPublication,
)


class WorkersBackend:
    """Register workers, and publish how their tasks are submitted."""

    def register_worker(self, args: RegisterWorkerArgs) -> RegisterWorkerResult:
        """Register a worker instance, or refresh its registration.

        Args:
            args: the worker, its lanes, tasks and capabilities, and how long it counts as alive.

        Returns:
            Whether the registration was refreshed.

        Raises:
            ValidationError: `invalid_input`, `invalid_capabilities`.
            ConflictError: `instance_of_other_worker`.
        """
        raise UnavailableError("register_worker")

    def heartbeat_worker(self, worker_instance_id: str, alive_for: timedelta = timedelta(seconds=60)) -> int:
        """Extend the registration of a worker instance.

        Args:
            worker_instance_id: the worker instance.
            alive_for: how long it counts as alive.

        Returns:
            Until when it counts as alive, in ms of the store's clock.

        Raises:
            NotFoundError: `worker_not_found`.
            StateError: `worker_dead`, the worker was marked dead.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("heartbeat_worker")

    def mark_worker_dead(self, worker_instance_id: str, reason: str = "") -> bool:
        """Record that a worker instance has died; its leases expire by themselves.

        The reason is stored with each attempt that is reclaimed from the worker afterwards, and is the detail of
        `reclaims_exhausted`.

        Args:
            worker_instance_id: the worker instance.
            reason: why it died, for operators.

        Returns:
            False if it was marked dead before.

        Raises:
            NotFoundError: `worker_not_found`.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("mark_worker_dead")

    def list_workers(self, cursor: str | None = None, limit: int = 100) -> ListWorkersPage:
        """List the workers of the namespace by instance id; expired registrations are listed for a day.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most workers of the page, 0 to 1,000.

        Returns:
            A page of workers; a damaged registration is a row that says what is damaged.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_workers")

    def publish_tasks(self, tasks: Sequence[TaskPublication], keep: timedelta = timedelta(days=7)) -> None:
        """Publish how tasks are submitted; the last publication of a task counts.

        Args:
            tasks: the tasks, each once.
            keep: how long the publication is kept.

        Raises:
            ValidationError: `invalid_input`, `duplicate_in_call`; nothing was published.
            ResourceExhaustedError: `too_many_tasks`, the namespace has 10,000; the tasks before the error were
                published.
        """
        raise UnavailableError("publish_tasks")

    def list_tasks(self, cursor: str | None = None, limit: int = 100, name: str | None = None) -> ListTasksPage:
        """List the published tasks of the namespace, ordered by their bare names.

        Args:
            cursor: the `next_cursor` of the previous page; None for the first page.
            limit: the most tasks of the page, 0 to 1,000.
            name: list only the task with this full name or, if there is none, those with this bare name.

        Returns:
            A page of tasks; a damaged publication is a row that says what is damaged.

        Raises:
            ValidationError: `invalid_cursor`, `invalid_input`.
        """
        raise UnavailableError("list_tasks")
