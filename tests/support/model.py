"""A small model of the life of executions: what the engine must answer, and what its indexes must hold.

It is written from the promises, with plain loops over plain objects, and knows nothing of stores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_CALLS_REMEMBERED
from flowfabric_worker.engine.types.admin import (
    AlreadySatisfied,
    CancelExecutionResult,
    ChangePriorityResult,
    ReplayExecutionArgs,
    ReplayExecutionResult,
    ReplaySteps,
    Revoked,
    RevokeLeaseResult,
)
from flowfabric_worker.engine.types.attempts import FailOutcome, LeaseRenewal, StepRecord
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs, CreateExecutionResult, Duplicate
from flowfabric_worker.engine.wire import WorkClass
from tests.support.model_partition import (
    DAY_MS,
    DELAYED,
    ENDED,
    LAPSED,
    READY,
    REVOKED,
    Execution,
    Partition,
    Refused,
    ms,
)

Answer = tuple[str, Any]


def answer_of(call: Callable[[], Any]) -> Answer:
    """Return what a call answers, or the code that it is refused with."""
    try:
        return "answered", call()
    except EngineError as error:
        return "refused", error.code
    except Refused as refusal:
        return "refused", refusal.code


class Model:
    """All partitions, and every operation as it must be answered."""

    def __init__(self, partitions: int, now: int) -> None:
        self.now = now
        self.partitions = [Partition() for _ in range(partitions)]
        self.paused: dict[str, int] = {}
        # When each lane was used last: after a day without use a lane may be forgotten.
        self.lanes: dict[str, int] = {}
        self.classes: set[WorkClass] = set()

    def find(self, execution_id: ExecutionId) -> Execution:
        found = self.partitions[execution_id.partition_number].executions.get(execution_id.uuid)
        if found is None:
            raise Refused("execution_not_found")
        return found

    def executions(self) -> list[Execution]:
        return [each for partition in self.partitions for each in partition.executions.values()]

    def upkeep(self) -> None:
        for partition in self.partitions:
            partition.visit(self.now)

    def keep_pace(self) -> None:
        for partition in self.partitions:
            partition.keep_pace(self.now)

    def lanes_to_list(self) -> set[str]:
        """Return the lanes that must be listed: those in use, and those that were used within a day."""
        recent = {lane for lane, moment in self.lanes.items() if moment > self.now - DAY_MS}
        return recent | set(self.paused) | {each.args.lane for each in self.executions()}

    # Submission

    def create(self, args: CreateExecutionArgs, answer: CreateExecutionResult) -> CreateExecutionResult:
        """Return what a creation must answer; of an id that the engine may choose, the one that it chose."""
        chosen = answer.execution_id
        partition = self.partitions[chosen.partition_number]
        existing = self._stands_for(args.task, args.idempotency_key)
        if existing is not None:
            same = all(getattr(existing.args, name) == getattr(args, name) for name in ("task", "payload", "codec"))
            return Duplicate(execution_id=existing.id, same_request=same)
        assert chosen.uuid not in partition.executions
        delay = 0 if args.delay is None else ms(args.delay)
        new = Execution(
            id=chosen,
            args=args,
            created=self.now,
            place=self.now + delay,
            priority=min(max(args.priority, 0), 9000),
            state=DELAYED if delay else READY,
        )
        if delay:
            new.delay_until = self.now + delay
        if args.policy.execution_deadline is not None:
            new.deadline = self.now + ms(args.policy.execution_deadline)
        if args.idempotency_key is not None:
            window = args.policy.dedup_window
            new.key = args.idempotency_key
            new.dedup_until = self.now + (DAY_MS if window is None else ms(window))
            partition.keys[args.task, new.key] = chosen.uuid
        partition.executions[chosen.uuid] = new
        self.lanes[args.lane] = self.now
        self.classes.add(new.work_class)
        return Created(execution_id=chosen, state=new.public)

    def _stands_for(self, task: str, key: str | None) -> Execution | None:
        """Return the execution that a task's key stands for, until it has ended and its window is over."""
        for partition in self.partitions:
            if key is not None and (task, key) in partition.keys:
                found = partition.executions[partition.keys[task, key]]
                if not found.is_terminal or (found.dedup_until is not None and found.dedup_until > self.now):
                    return found
        return None

    # Holders

    def fenced(self, handle: Handle) -> Execution:
        """Return the execution that a handle's lease holds, after what is due of it; refuse in the promised order."""
        each = self.find(handle.execution_id)
        if not self.partitions[each.id.partition_number].catch_up(each, self.now):
            raise Refused("execution_not_found")
        if not each.state.startswith("active"):
            raise Refused("execution_not_active")
        if each.state == REVOKED:
            raise Refused("lease_revoked")
        if each.state == LAPSED or each.expires <= self.now:
            raise Refused("lease_expired")
        if each.fence != handle.fence:
            raise Refused("stale_lease")
        return each

    def _ends(self, handle: Handle, ending: str, act: Callable[[Partition, Execution], Any]) -> Any:
        """Return what an operation that ends a lease answers: a repeat gets the first answer, also after a replay."""
        end = ending, handle.fence
        ends = self.find(handle.execution_id).ends
        if end in ends:
            return ends[end]
        each = self.fenced(handle)
        answer = act(self.partitions[each.id.partition_number], each)
        if len(ends) == MAX_CALLS_REMEMBERED:
            del ends[next(iter(ends))]
        ends[end] = answer
        return answer

    def renew(self, handle: Handle) -> LeaseRenewal:
        each = self.fenced(handle)
        each.expires = self.now + handle.lease_ttl_ms
        return LeaseRenewal(expires_at_ms=each.expires, lease_epoch=handle.lease_epoch)

    def progress(self, handle: Handle, percent: int | None, message: str | None) -> None:
        each = self.fenced(handle)
        old_percent, old_message = each.progress
        each.progress = (
            old_percent if percent is None else percent,
            old_message if message is None else message,
        )

    def record_step(self, handle: Handle, name: str, value: bytes) -> StepRecord:
        each = self.fenced(handle)
        first = name not in each.steps
        return StepRecord(value=each.steps.setdefault(name, value), first=first)

    def complete(self, handle: Handle, payload: bytes | None) -> None:
        def act(partition: Partition, each: Execution) -> None:
            partition.end(each, "success", self.now)
            each.result = payload

        self._ends(handle, "complete", act)

    def fail(self, handle: Handle, kind: FailureClass, after: int | None) -> FailOutcome:
        outcome: FailOutcome = self._ends(
            handle, "fail", lambda partition, each: partition.fail_attempt(each, kind, after, self.now)
        )
        return outcome

    def cancel(self, handle: Handle) -> None:
        self._ends(handle, "cancel", lambda partition, each: partition.end(each, "cancelled", self.now))

    def park(self, handle: Handle, ending: str, after: int) -> None:
        """release, delay and wait_children: the same attempt goes on, now or later."""

        def act(_: Partition, each: Execution) -> None:
            each.state, each.attempt_state = (DELAYED if after else READY), "attempt_interrupted"
            if after:
                each.delay_until = self.now + after

        self._ends(handle, ending, act)

    # Operators

    def cancel_execution(self, target: ExecutionId) -> CancelExecutionResult:
        each = self.find(target)
        if each.state != ENDED.format("cancelled"):
            if each.is_terminal:
                raise Refused("execution_not_active")
            self.partitions[target.partition_number].end(each, "cancelled", self.now)
        return CancelExecutionResult(execution_id=target)

    def change_priority(self, target: ExecutionId, priority: int) -> ChangePriorityResult:
        each = self.find(target)
        if not each.state.startswith("runnable"):
            raise Refused("execution_not_eligible")
        old, each.priority = each.priority, priority
        return ChangePriorityResult(execution_id=target, old_priority=old, priority=priority)

    def replay(self, args: ReplayExecutionArgs) -> ReplayExecutionResult:
        each = self.find(target := args.execution_id)
        if not each.is_terminal:
            raise Refused("execution_not_terminal")
        if each.replay_count >= each.policy.max_replay_count:
            raise Refused("max_replays_exhausted")
        if args.from_step is not None and args.from_step not in each.steps:
            raise Refused("step_not_found")
        if args.from_step is not None:
            kept = itertools.takewhile(lambda step: step[0] != args.from_step, each.steps.items())
            each.steps = dict(kept)
        elif args.steps is ReplaySteps.FORGET:
            each.steps = {}
        each.state, each.attempt_state = READY, "pending_replay_attempt"
        each.replay_count += 1
        each.retry_count = each.reclaim_count = 0
        each.past_attempts += each.attempt_began
        each.attempt_began = False
        each.place = self.now
        each.progress, each.result = (None, None), None
        if each.deadline is not None and each.deadline <= self.now:
            each.deadline = None
        return ReplayExecutionResult(execution_id=target, state=PublicState.WAITING)

    def revoke(self, target: ExecutionId) -> RevokeLeaseResult:
        each = self.find(target)
        if not each.state.startswith("active"):
            raise Refused("execution_not_active")
        if each.state == REVOKED:
            return AlreadySatisfied(reason="already_revoked")
        if each.state == LAPSED or each.expires <= self.now:
            return AlreadySatisfied(reason="already_expired")
        each.state, each.attempt_state = REVOKED, "attempt_interrupted"
        return Revoked(lease_id=each.fence.split(":")[0], lease_epoch=each.epoch)

    def purge(self, target: ExecutionId) -> None:
        each = self.find(target)
        if not each.is_terminal:
            raise Refused("execution_not_terminal")
        self.partitions[target.partition_number].remove(each)

    def pause(self, lane: str) -> bool:
        self.lanes[lane] = self.now
        if lane in self.paused:
            return False
        self.paused[lane] = self.now
        return True

    def resume(self, lane: str) -> bool:
        return self.paused.pop(lane, None) is not None
