"""The arguments and results of the area workers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import attrs

from flowfabric_worker.engine.types.checks import as_tuple, integer
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import ExecutionPolicy


@attrs.frozen(kw_only=True)
class RegisterWorkerArgs:
    """How a worker instance describes itself.

    Attributes:
        worker_instance_id: the process; unique per start.
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
    """A registration; `refreshed` is True if the instance was registered before."""

    refreshed: bool


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """A registered worker; moments are in ms of the store's clock.

    Attributes:
        alive: whether its registration has not expired.
        death_reason: why it was marked dead; empty if it was not.
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


@attrs.frozen(kw_only=True)
class TaskPublication:
    """How a task is submitted, for producers that do not have its code.

    Attributes:
        name: the name of the task in executions.
        lane, codec, priority, delay, tags, headers, policy: as in `CreateExecutionArgs`.
    """

    name: str
    lane: str
    codec: str = ""
    priority: int = 0
    delay: timedelta | None = None
    tags: Mapping[str, str] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)
    policy: ExecutionPolicy = attrs.field(factory=ExecutionPolicy)


@attrs.frozen(kw_only=True)
class TaskInfo(TaskPublication):
    """A published task; moments are in ms of the store's clock.

    Attributes:
        expires_at_ms: when the publication expires, unless a worker publishes it again.
    """

    published_at_ms: int
    expires_at_ms: int


@attrs.frozen(kw_only=True)
class ListTasksPage:
    """A page of published tasks; `next_cursor` is None on the last one."""

    tasks: tuple[TaskInfo | DamagedRow, ...]
    next_cursor: str | None
