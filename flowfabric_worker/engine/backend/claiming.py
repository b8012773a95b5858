"""The operations of the area claiming, and what each promises."""

# ruff: noqa: ARG002 - subclasses that override these methods use the arguments.

from __future__ import annotations

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimRequest,
    ClaimResumedExecutionArgs,
    ReclaimToken,
)


class ClaimingBackend:
    """Claim work under a lease, reserve it and redeem it."""

    def claim(self, lane: str, capabilities: frozenset[str], policy: ClaimPolicy) -> Handle | None:
        """Claim the next execution of a lane.

        Args:
            lane: the lane.
            capabilities: what the worker has; it is given only work that requires no more.
            policy: the worker, the time of the lease, and how long to wait.

        Returns:
            The lease, or None if nothing is ready.

        Raises:
            ValidationError: `invalid_input`, `invalid_capabilities`.
            ConflictError: `instance_of_other_worker`.
        """
        raise UnavailableError("claim")

    def claim_many(self, request: ClaimRequest) -> list[Claimed]:
        """Claim what is ready: new, retried, replayed and resumed work, and work whose lease was lost.

        Args:
            request: lanes in their order, capabilities, tasks, limit, and the worker's policy. With `max_wait` the call
                blocks until there is work, without polling.

        Returns:
            The claimed executions with everything that is needed to run them, at most `limit`.

        Raises:
            ValidationError: `invalid_input`, `invalid_capabilities`, `duplicate_in_call`.
            ConflictError: `instance_of_other_worker`.
        """
        raise UnavailableError("claim_many")

    def forward_wakeup(self, request: ClaimRequest) -> None:
        """Forward the wake-up of a worker without capacity: wake one waiter for each class that holds work.

        Args:
            request: the worker's claim request.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("forward_wakeup")

    def stop_waiting(self, worker_instance_id: str) -> None:
        """Stop the waiting of a worker, whose waiting claim then returns without work.

        Args:
            worker_instance_id: the worker instance.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("stop_waiting")

    def claim_for_worker(self, args: ClaimForWorkerArgs) -> ClaimGrant | None:
        """Reserve the next execution of a lane for a named worker, for a time.

        Args:
            args: the lane, the worker and its capabilities, and how long the reservation holds.

        Returns:
            A grant, or None if nothing is ready.

        Raises:
            ValidationError: `invalid_input`, `invalid_capabilities`.
            ConflictError: `instance_of_other_worker`.
        """
        raise UnavailableError("claim_for_worker")

    def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> Claimed:
        """Redeem a grant for an execution whose attempt was interrupted; the same attempt continues.

        Args:
            args: the execution, the worker, and the time of the lease.

        Returns:
            The claimed execution.

        Raises:
            NotFoundError: `execution_not_found`.
            ContentionError: `execution_not_leaseable`, `not_a_resumed_execution`, `invalid_claim_grant`,
                `claim_grant_expired`.
            ConflictError: `instance_of_other_worker`.
            ValidationError: `invalid_input`; `corruption`, the execution is damaged and was set aside.
        """
        raise UnavailableError("claim_resumed_execution")

    def claim_from_reclaim(self, token: ReclaimToken) -> Handle | None:
        """Redeem a grant for any kind of work.

        Args:
            token: the grant, the worker, and the time of the lease.

        Returns:
            The lease, or None if the execution can no longer be claimed.

        Raises:
            ContentionError: `invalid_claim_grant`, `claim_grant_expired`.
            ConflictError: `instance_of_other_worker`.
            ValidationError: `invalid_input`; `corruption`, the execution is damaged and was set aside.
        """
        raise UnavailableError("claim_from_reclaim")
