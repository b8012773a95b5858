"""claiming: arguments and results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import attrs

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import DEFAULT_LEASE_MS
from flowfabric_worker.engine.types.checks import as_capabilities, as_frozenset, as_tuple
from flowfabric_worker.engine.types.policies import ExecutionPolicy

DEFAULT_LEASE = timedelta(milliseconds=DEFAULT_LEASE_MS)


@attrs.frozen(kw_only=True)
class ClaimPolicy:
    """Who claims, and how.

    Attributes:
        worker_id: the logical worker, such as a pool's name.
        worker_instance_id: this process; unique per start.
        lease: how long a claim holds without renewal.
        max_wait: how long to wait for work; None not to wait.
    """

    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    max_wait: timedelta | None = None


@attrs.frozen(kw_only=True)
class LaneRequest:
    """How much to claim from one lane; None for as much as the whole claim allows."""

    lane: str
    limit: int | None = None


@attrs.frozen(kw_only=True)
class ClaimRequest:
    """A claim of many executions.

    Attributes:
        lanes: where to take from, in this order.
        policy: who claims.
        limit: most executions, 1 to 500.
        capabilities: what this worker offers.
        tasks: the tasks that it knows; None for every task.
        claim_id: a UUID that stands for this call; the same call under it gets the same answer. None to have one made.
    """

    lanes: tuple[LaneRequest, ...] = attrs.field(converter=as_tuple)
    policy: ClaimPolicy
    limit: int = 1
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=as_capabilities)
    tasks: frozenset[str] | None = attrs.field(default=None, converter=attrs.converters.optional(as_frozenset))
    claim_id: str | None = None


@attrs.frozen(kw_only=True)
class Claimed:
    """One claimed execution, with everything that is needed to run it.

    Times are ms of the store's clock.

    Attributes:
        handle: the lease; its kind says whether the work is fresh, resumed or reclaimed.
        retry_count: retries made before this attempt.
        reclaim_count: how often its lease was lost.
        journal: results of steps that were recorded before, by name.
    """

    handle: Handle
    namespace: str
    task: str
    payload: bytes | None = attrs.field(repr=False)
    codec: str
    priority: int
    tags: Mapping[str, str]
    headers: Mapping[str, str]
    policy: ExecutionPolicy
    attempt_type: str
    created_at_ms: int
    lease_expires_at_ms: int
    deadline_at_ms: int | None
    timeout_at_ms: int | None
    retry_count: int
    reclaim_count: int
    journal: Mapping[str, bytes] = attrs.field(repr=False)

    @property
    def execution_id(self) -> ExecutionId:
        return self.handle.execution_id


@attrs.frozen(kw_only=True)
class ClaimForWorkerArgs:
    """A reservation for a named worker.

    Attributes:
        grant: how long it holds, up to 60 s.
        grant_id: a UUID that stands for this call; the same call under it gets the same answer. None to have one made.
    """

    lane: str
    worker_id: str
    worker_instance_id: str
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=as_capabilities)
    tasks: frozenset[str] | None = attrs.field(default=None, converter=attrs.converters.optional(as_frozenset))
    grant: timedelta = timedelta(seconds=5)
    grant_id: str | None = None


@attrs.frozen(kw_only=True)
class ClaimGrant:
    """An execution set aside for a worker until `expires_at_ms` of the store's clock."""

    execution_id: ExecutionId
    worker_id: str
    expires_at_ms: int


@attrs.frozen(kw_only=True)
class ClaimResumedExecutionArgs:
    """Redeems a grant for an execution whose attempt was interrupted and goes on.

    Attributes:
        claim_id: a UUID that stands for this call; None to have one made.
    """

    execution_id: ExecutionId
    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    claim_id: str | None = None


@attrs.frozen(kw_only=True)
class ReclaimToken:
    """Redeems a grant, whatever kind of work it is for.

    Attributes:
        claim_id: a UUID that stands for this call; None to have one made.
    """

    grant: ClaimGrant
    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    claim_id: str | None = None
