"""The operations of the area workers, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

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
        """Write a worker into the registry, or write it anew."""
        raise UnavailableError("register_worker")

    def heartbeat_worker(self, worker_instance_id: str, alive_for: timedelta = timedelta(seconds=60)) -> int:
        """Say that a worker is alive; return until when it counts as alive, ms of the store's clock.

        Raises:
            NotFoundError: `worker_not_found`.
            StateError: `worker_dead`, it was marked dead.
        """
        raise UnavailableError("heartbeat_worker")

    def mark_worker_dead(self, worker_instance_id: str, reason: str = "") -> bool:
        """Mark a worker dead in the registry; its leases run out by themselves. False if it was marked.

        What is reclaimed from it afterwards keeps the reason with the attempt, and as the detail of
        `reclaims_exhausted`.

        Raises:
            NotFoundError: `worker_not_found`.
        """
        raise UnavailableError("mark_worker_dead")

    def list_workers(self, cursor: str | None = None, limit: int = 100) -> ListWorkersPage:
        """Return a page of the namespace's workers by instance id; dead ones are listed for a day."""
        raise UnavailableError("list_workers")

    def publish_tasks(self, tasks: Sequence[TaskPublication], keep: timedelta = timedelta(days=7)) -> None:
        """Tell producers how tasks are submitted, for as long as `keep`; the last publication of a task stands.

        Raises:
            ResourceExhaustedError: `too_many_tasks`, a namespace has at most 10,000; those before it are published.
        """
        raise UnavailableError("publish_tasks")

    def list_tasks(self, cursor: str | None = None, limit: int = 100, name: str | None = None) -> ListTasksPage:
        """Return a page of the namespace's published tasks, ordered by what stands behind the last dot of each name.

        Args:
            name: only the task of this name or, where there is none, those whose last part it is.
        """
        raise UnavailableError("list_tasks")
