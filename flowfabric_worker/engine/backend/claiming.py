"""The operations of the area claiming, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

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
        """Claim the next execution of a lane; None when nothing is ready."""
        raise UnavailableError("claim")

    def claim_many(self, request: ClaimRequest) -> list[Claimed]:
        """Claim everything that is ready, up to a limit: new, retried, replayed and resumed work, and work whose
        lease was lost. With `max_wait` it blocks until there is something, without polling.
        """
        raise UnavailableError("claim_many")

    def forward_wakeup(self, request: ClaimRequest) -> None:
        """Wake another waiter for each class of the request that holds work: this worker has no room for it."""
        raise UnavailableError("forward_wakeup")

    def stop_waiting(self, worker_instance_id: str) -> None:
        """End the waiting of a worker that goes."""
        raise UnavailableError("stop_waiting")

    def claim_for_worker(self, args: ClaimForWorkerArgs) -> ClaimGrant | None:
        """Set the next execution of a lane aside for a named worker, for a time; None when nothing is ready."""
        raise UnavailableError("claim_for_worker")

    def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> Claimed:
        """Redeem a grant for an execution whose attempt was interrupted: the same attempt goes on.

        Raises:
            ContentionError: `execution_not_leaseable`, `not_a_resumed_execution`, `invalid_claim_grant`,
                `claim_grant_expired`.
        """
        raise UnavailableError("claim_resumed_execution")

    def claim_from_reclaim(self, token: ReclaimToken) -> Handle | None:
        """Redeem a grant for any kind of work; None when the execution cannot be claimed any more.

        Raises:
            ContentionError: `invalid_claim_grant`, `claim_grant_expired`.
        """
        raise UnavailableError("claim_from_reclaim")
