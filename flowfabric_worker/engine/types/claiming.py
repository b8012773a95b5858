"""The arguments and results of the area claiming."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

import attrs

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.limits import DEFAULT_LEASE_MS
from flowfabric_worker.engine.types.checks import as_capabilities, as_frozenset, as_tuple
from flowfabric_worker.engine.types.flows import FlowInput
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState

DEFAULT_LEASE = timedelta(milliseconds=DEFAULT_LEASE_MS)


@attrs.frozen(kw_only=True)
class ClaimPolicy:
    """Which worker claims, and how.

    Attributes:
        worker_id: the logical worker, such as the name of a pool.
        worker_instance_id: the process; unique per start.
        lease: how long a claim holds if it is not renewed.
        max_wait: how long to wait for work; None to return at once.
    """

    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    max_wait: timedelta | None = None


@attrs.frozen(kw_only=True)
class LaneRequest:
    """How many executions to claim from one lane; None for as many as the whole claim allows."""

    lane: str
    limit: int | None = None


@attrs.frozen(kw_only=True)
class EndedByClaim:
    """An execution that a claim ended instead of handing it out: its deadline or its reclaims were over.

    Attributes:
        outcome: how it ended, such as failed or expired.
        attempt_index: the number of its last attempt, from 0.
        retry_count: retries made.
        error: why it ended, in one line.
    """

    execution_id: ExecutionId
    task: str
    lane: str
    outcome: PublicState
    attempt_index: int
    retry_count: int
    tags: Mapping[str, str]
    error: str


@attrs.frozen(kw_only=True)
class ClaimRequest:
    """A claim of many executions.

    Attributes:
        lanes: the lanes to claim from, in this order.
        policy: which worker claims.
        limit: the most executions to claim, 1 to 500.
        capabilities: what the worker has.
        tasks: the tasks that the worker knows; None for every task.
        claim_id: a UUID that names this call; a repeated call gets the same reply. None to have one minted.
        on_ended: called in the claiming thread, and must not block: with each execution of these tasks that the claim
            ends because its deadline or its reclaims are over, unless a worker holds it.
    """

    lanes: tuple[LaneRequest, ...] = attrs.field(converter=as_tuple)
    policy: ClaimPolicy
    limit: int = 1
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=as_capabilities)
    tasks: frozenset[str] | None = attrs.field(default=None, converter=attrs.converters.optional(as_frozenset))
    claim_id: str | None = None
    on_ended: Callable[[EndedByClaim], None] | None = attrs.field(default=None, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Claimed:
    """A claimed execution, with everything that is needed to run it. Moments are in ms of the store's clock.

    Attributes:
        handle: the lease; its kind says whether the work is fresh, resumed or reclaimed.
        retry_count: how many retries were made before this attempt.
        reclaim_count: how often the lease was lost.
        journal: the results of steps that were recorded before, by name.
        flow_id: the flow of which it is a member.
        inputs: the results of its parents in the flow, in the order of their edges, up to 8 MiB.
        inputs_cursor: continues the inputs with `read_inputs`; None if these are all.
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
    flow_id: FlowId | None = None
    inputs: tuple[FlowInput, ...] = attrs.field(default=(), repr=False)
    inputs_cursor: str | None = None

    @property
    def execution_id(self) -> ExecutionId:
        return self.handle.execution_id


@attrs.frozen(kw_only=True)
class ClaimForWorkerArgs:
    """A reservation for a named worker.

    Attributes:
        grant: how long the reservation holds, at most 60 s.
        grant_id: a UUID that names this call; a repeated call gets the same reply. None to have one minted.
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
    """An execution that is reserved for a worker until `expires_at_ms` of the store's clock."""

    execution_id: ExecutionId
    worker_id: str
    expires_at_ms: int


@attrs.frozen(kw_only=True)
class ClaimResumedExecutionArgs:
    """A reservation to redeem for an execution whose attempt was interrupted.

    Attributes:
        claim_id: a UUID that names this call; None to have one minted.
    """

    execution_id: ExecutionId
    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    claim_id: str | None = None


@attrs.frozen(kw_only=True)
class ReclaimToken:
    """A reservation to redeem for any kind of work.

    Attributes:
        claim_id: a UUID that names this call; None to have one minted.
    """

    grant: ClaimGrant
    worker_id: str
    worker_instance_id: str
    lease: timedelta = DEFAULT_LEASE
    claim_id: str | None = None
