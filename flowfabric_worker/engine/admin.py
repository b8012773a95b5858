"""What operators and producers do to executions and lanes, without a lease."""

from __future__ import annotations

from collections.abc import Mapping

from flowfabric_worker.engine.attempts import cut
from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId, check_execution_id, check_lane, check_name
from flowfabric_worker.engine.lane_pauses import FIRST_PARTITION, LanePauses
from flowfabric_worker.engine.limits import MAX_MESSAGE_BYTES, MAX_TAGS
from flowfabric_worker.engine.submission import check_tags, clamp_priority
from flowfabric_worker.engine.types.admin import (
    AlreadySatisfied,
    CancelExecutionArgs,
    CancelExecutionResult,
    CancelSource,
    ChangePriorityArgs,
    ChangePriorityResult,
    ReplayExecutionArgs,
    ReplayExecutionResult,
    ReplaySteps,
    Revoked,
    RevokeLeaseArgs,
    RevokeLeaseResult,
)
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.states import StateVector
from flowfabric_worker.engine.wire import pack_texts


class Admin(LanePauses, BudgetDebts):
    """The operations of the area admin."""

    def cancel_execution(self, args: CancelExecutionArgs) -> CancelExecutionResult:
        target = check_execution_id(check_record(args, CancelExecutionArgs).execution_id)
        try:
            source = CancelSource(args.source)
        except ValueError:
            raise ValidationError(
                "invalid_input", f"{args.source!r} is no source of a cancellation; there are {', '.join(CancelSource)}."
            ) from None
        reason = cut(args.reason, MAX_MESSAGE_BYTES)
        self.call("cancel_execution", target.partition_number, [*self._once(target), reason, source.value])
        self.pay_now(target.partition_number)
        return CancelExecutionResult(execution_id=target)

    def change_priority(self, args: ChangePriorityArgs) -> ChangePriorityResult:
        target = check_execution_id(check_record(args, ChangePriorityArgs).execution_id)
        priority = clamp_priority(args.priority)
        reply = self.call("change_priority", target.partition_number, [*self._once(target), priority])
        return ChangePriorityResult(execution_id=target, old_priority=int(reply[1]), priority=priority)

    def replay_execution(self, args: ReplayExecutionArgs) -> ReplayExecutionResult:
        target = check_execution_id(check_record(args, ReplayExecutionArgs).execution_id)
        forgotten = "*" if args.steps is ReplaySteps.FORGET else ""
        if args.from_step is not None:
            forgotten = f"={args.from_step}"
        reply = self.call("replay_execution", target.partition_number, [*self._once(target), forgotten])
        return ReplayExecutionResult(execution_id=target, state=StateVector.parse(reply[1].decode()).public_state)

    def revoke_lease(self, args: RevokeLeaseArgs) -> RevokeLeaseResult:
        target = check_execution_id(check_record(args, RevokeLeaseArgs).execution_id)
        arguments: Item = [
            *self._once(target),
            check_name(args.expected_lease_id, "expected_lease_id") if args.expected_lease_id is not None else "",
            check_name(args.worker_instance_id, "worker_instance_id") if args.worker_instance_id is not None else "",
            cut(args.reason, MAX_MESSAGE_BYTES),
        ]
        reply = self.call("revoke_lease", target.partition_number, arguments)
        self.pay_now(target.partition_number)
        if reply[0] == b"revoked":
            return Revoked(lease_id=reply[1].decode(), lease_epoch=int(reply[2]))
        return AlreadySatisfied(reason=reply[1].decode())

    def _once(self, target: ExecutionId) -> Item:
        """Return the first arguments of a repeatable call about an execution of this namespace."""
        return target.uuid, self._packed_namespace, new_call_id()

    def pause_lane(self, lane: str) -> bool:
        return self._pause_or_resume("pause_lane", lane)

    def resume_lane(self, lane: str) -> bool:
        return self._pause_or_resume("resume_lane", lane)

    def _pause_or_resume(self, function: str, lane: str) -> bool:
        address = self.packed_lane(check_lane(lane))
        has_followers = "1" if self.partitions > 1 else ""
        answer, turn, since = self.call(function, FIRST_PARTITION, [address, new_call_id(), has_followers])
        self.follow(address, turn, since)
        return bool(answer == b"ok")

    def set_tags(self, execution_id: ExecutionId, tags: Mapping[str, str]) -> int:
        execution_id = check_execution_id(execution_id)
        packed = pack_texts(check_tags(tags))
        if not packed:
            raise ValidationError("invalid_input", "There are no tags to set.")
        arguments: Item = [*self._once(execution_id), packed, MAX_TAGS]
        answer, count = self.call("set_tags", execution_id.partition_number, arguments)
        if answer == b"too_many":
            raise ValidationError(
                "invalid_input", f"At most {MAX_TAGS} tags are allowed; {execution_id} would have {int(count)}."
            )
        return int(count)

    def purge(self, execution_id: ExecutionId) -> None:
        target = check_execution_id(execution_id)
        self.call("purge", target.partition_number, self._once(target))
