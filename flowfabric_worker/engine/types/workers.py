"""workers: arguments and results."""

from __future__ import annotations

from datetime import timedelta

import attrs

from flowfabric_worker.engine.types.checks import as_tuple, integer
from flowfabric_worker.engine.types.damage import DamagedRow


@attrs.frozen(kw_only=True)
class RegisterWorkerArgs:
    """What a worker says of itself.

    Attributes:
        worker_instance_id: this process; unique per start.
        alive_for: how long it counts as alive without a heartbeat.
        tasks: the tasks that it knows.
    """

    worker_id: str
    worker_instance_id: str
    lanes: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    capabilities: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    tasks: tuple[str, ...] = attrs.field(default=(), converter=as_tuple)
    threads: int = attrs.field(default=1, validator=integer(1))
    host: str = ""
    pid: int = attrs.field(default=0, validator=integer(0))
    alive_for: timedelta = timedelta(seconds=60)


@attrs.frozen(kw_only=True)
class RegisterWorkerResult:
    """`refreshed` when the instance was registered before."""

    refreshed: bool


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """A registered worker; times are ms of the store's clock.

    Attributes:
        alive: whether its last heartbeat still holds.
        death_reason: why it was marked dead; empty otherwise.
    """

    worker_id: str
    worker_instance_id: str
    lanes: tuple[str, ...]
    capabilities: tuple[str, ...]
    tasks: tuple[str, ...]
    threads: int
    host: str
    pid: int
    registered_at_ms: int
    expires_at_ms: int
    alive: bool
    death_reason: str


@attrs.frozen(kw_only=True)
class ListWorkersPage:
    """A page of workers by instance id; `next_cursor` is None on the last one."""

    workers: tuple[WorkerInfo | DamagedRow, ...]
    next_cursor: str | None
