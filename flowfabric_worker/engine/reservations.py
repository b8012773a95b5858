"""The operations that reserve work for a named worker, and redeem reservations."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.admissions import asked_of
from flowfabric_worker.engine.claiming import MOST_LOOKS, Claiming, check_uuid, lease_ms
from flowfabric_worker.engine.class_cache import Lane, lane_arguments
from flowfabric_worker.engine.errors import (
    ContentionError,
    NotFoundError,
    StateError,
    ValidationError,
    error_from_code,
)
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, check_lane, refuse_reserved
from flowfabric_worker.engine.limits import MAX_GRANT_MS
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.claiming import (
    Claimed,
    ClaimForWorkerArgs,
    ClaimGrant,
    ClaimPolicy,
    ClaimRequest,
    ClaimResumedExecutionArgs,
    LaneRequest,
    ReclaimToken,
)
from flowfabric_worker.engine.wire import DAMAGE


class Reservations(Claiming):
    """The operations of the area claiming, including reservations."""

    def claim_for_worker(self, args: ClaimForWorkerArgs) -> ClaimGrant | None:
        refuse_reserved(check_record(args, ClaimForWorkerArgs).capabilities)
        policy = ClaimPolicy(worker_id=args.worker_id, worker_instance_id=args.worker_instance_id)
        request = ClaimRequest(
            lanes=(LaneRequest(lane=check_lane(args.lane)),),
            policy=policy,
            capabilities=args.capabilities,
            tasks=args.tasks,
        )
        grant_ms = milliseconds(args.grant, "grant", least=1)
        if grant_ms > MAX_GRANT_MS:
            raise ValidationError("invalid_input", f"A reservation lasts at most {MAX_GRANT_MS} ms: ask for less.")
        grant_id = check_uuid(args.grant_id, "grant_id")
        _, instance = self._holder(args.worker_id, args.worker_instance_id, waits=False)
        head: list[Argument] = [grant_id, instance, args.worker_id, grant_ms]
        if args.grant_id is not None and self.partitions > 1:
            again = self._reserved_before(args, head)
            if again is not None:
                return again
        for partition in self._partitions_in_turn():
            granted = self._reserve_from(partition, request, head)
            if granted is not None:
                return _grant(partition, granted, args.worker_id)
        return None

    def _reserved_before(self, args: ClaimForWorkerArgs, head: list[Argument]) -> ClaimGrant | None:
        """Return the reservation of an earlier call with the caller's grant id, in any partition."""
        # Name no class, so that the call cannot reserve another execution.
        lane = lane_arguments([Lane(address=self.packed_lane(args.lane), limit=1, classes=[])])
        replies = self.call_each("reserve", range(self.partitions), [*head, *lane])
        granted = [partition for partition, reply in enumerate(replies) if reply[0] == b"granted"]
        return _grant(granted[0], replies[granted[0]], args.worker_id) if granted else None

    def _reserve_from(self, partition: int, request: ClaimRequest, head: list[Argument]) -> Reply | None:
        for _ in range(MOST_LOOKS):
            repeat = False
            for batch in self.lane_batches(self.matching_lanes(partition, request).lanes):
                reply = self.call("reserve", partition, [*head, *lane_arguments(batch)])
                if reply[0] == b"granted":
                    return reply
                if reply[1] == b"1":
                    self.forget_lanes(partition, [lane.address for lane in batch])
                repeat = repeat or b"1" in reply[1:]
            if not repeat:
                break
        return None

    def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> Claimed:
        check_record(args, ClaimResumedExecutionArgs)
        return self._redeem(
            args.execution_id, args.worker_id, args.worker_instance_id, args.lease, args.claim_id, "resumed"
        )

    def claim_from_reclaim(self, token: ReclaimToken) -> Handle | None:
        grant = check_record(check_record(token, ReclaimToken).grant, ClaimGrant)
        try:
            return self._redeem(
                grant.execution_id, token.worker_id, token.worker_instance_id, token.lease, token.claim_id, "any"
            ).handle
        except (NotFoundError, StateError):
            return None
        except ContentionError as error:
            if error.code != "execution_not_leaseable":
                raise
            return None

    def _redeem(
        self, target: ExecutionId, worker_id: str, instance: str, lease: timedelta, claim_id: str | None, mode: str
    ) -> Claimed:
        holder, packed_instance = self._holder(worker_id, instance, waits=False)
        minted = check_uuid(claim_id, "claim_id")
        ttl = lease_ms(lease)
        partition = target.partition_number

        def send(admissions: bytes) -> Reply:
            head: list[Argument] = [target.uuid, minted, holder + admissions, worker_id, ttl, mode]
            return self.call("redeem", partition, [*head, self._packed_namespace, packed_instance])

        reply = self.passing(partition, minted, send, asked_of)
        self.pay_ends({partition})
        if asked_of(reply):
            raise error_from_code("execution_not_leaseable", [str(target), "rate_limited"])
        try:
            claimed = self.decode_claimed(partition, reply[1], minted, instance, ttl)
            self.note_quota(partition, claimed.policy.quota_policy_id)
            return claimed
        except DAMAGE as error:
            problem = self.set_aside(target, minted, error)
            raise ValidationError("corruption", f"{target}: {problem}.", execution_id=str(target), field="") from None


def _grant(partition: int, reply: Reply, worker_id: str) -> ClaimGrant:
    return ClaimGrant(
        execution_id=ExecutionId(partition, reply[1].decode()), worker_id=worker_id, expires_at_ms=int(reply[2])
    )
