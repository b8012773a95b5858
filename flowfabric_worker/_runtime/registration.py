"""How a worker process presents itself in the store: its instance id, its lanes, its lease and its registration."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any
from uuid import uuid4

from flowfabric_worker._runtime.lease_keeper import ALIVE_FOR
from flowfabric_worker.config import WorkerSettings
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_LANES_PER_CLAIM
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from flowfabric_worker.task import Task

Tasks = Mapping[str, Task[..., Any]]


def new_instance_id(worker_name: str) -> str:
    """Return a unique name for this start of the process."""
    return f"{worker_name[:64]}-{socket.gethostname()[:64]}-{os.getpid()}-{uuid4().hex[:8]}"


def lanes_to_serve(tasks: Tasks, settings: WorkerSettings) -> dict[str, int]:
    """Return the lanes of the settings, or of the tasks if the settings name none, with their weights.

    Raises:
        ValidationError: `invalid_input`, there are more lanes than a claim may name.
    """
    lanes = dict(settings.lanes) or {task.options_given.lane: 1 for task in tasks.values()}
    if len(lanes) > MAX_LANES_PER_CLAIM:
        raise ValidationError(
            "invalid_input",
            f"A worker serves at most {MAX_LANES_PER_CLAIM} lanes, not {len(lanes)}: name those of this process with "
            "`--lanes`, and run others for the rest.",
        )
    return lanes


def claim_lease(tasks: Tasks, settings: WorkerSettings) -> timedelta:
    """Return the shortest lease of all tasks, because a claim may get any of them."""
    own = [task.options_given.lease for task in tasks.values() if task.options_given.lease is not None]
    return min([settings.lease, *own])


def registration(
    worker_name: str, instance_id: str, tasks: Tasks, lanes: Iterable[str], settings: WorkerSettings
) -> RegisterWorkerArgs:
    """Return the registration of a worker process."""
    return RegisterWorkerArgs(
        worker_id=worker_name,
        worker_instance_id=instance_id,
        lanes=tuple(sorted(lanes)),
        capabilities=tuple(sorted(settings.capabilities)),
        tasks=tuple(sorted(tasks)),
        threads=settings.threads,
        host=socket.gethostname(),
        pid=os.getpid(),
        alive_for=ALIVE_FOR,
    )
