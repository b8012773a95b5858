"""One execution and one partition of the model: the states, what time does to them, and what a claim finds.

Partitions are independent: what is due in one happens when a claim or a call of maintenance visits it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.attempts import FailOutcome, RetryScheduled, TerminalCancelled, TerminalFailed
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState, StateVector
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from flowfabric_worker.engine.wire import WorkClass

DAY_MS = 24 * 3600 * 1000

READY = "runnable unowned eligible_now waiting_for_worker none"
DELAYED = "runnable unowned not_eligible_until_time waiting_for_delay none"
BACKOFF = "runnable unowned not_eligible_until_time waiting_for_retry_backoff none"
RUNNING = "active leased not_applicable none none"
LAPSED = "active lease_expired_reclaimable not_applicable waiting_for_worker none"
REVOKED = "active lease_revoked not_applicable waiting_for_worker none"
ENDED = "terminal unowned not_applicable none {}"
CLAIMABLE = (READY, LAPSED, REVOKED)


class Refused(Exception):  # noqa: N818  it is an answer, not a failure of the model
    """The engine must answer with an error of this code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def ms(duration: Any) -> int:
    """Return a duration in whole milliseconds."""
    return int(duration.total_seconds() * 1000)


@attrs.define(kw_only=True)
class Execution:
    """What is to be known of one execution; times are ms."""

    id: ExecutionId
    args: CreateExecutionArgs
    created: int
    place: int
    priority: int
    state: str = READY
    attempt_state: str = "pending_first_attempt"
    key: str | None = None
    dedup_until: int | None = None
    deadline: int | None = None
    delay_until: int | None = None
    remove_at: int | None = None
    expires: int = 0
    timeout_at: int | None = None
    fence: str = ""
    epoch: int = 0
    holder: str = ""
    attempt_index: int | None = None
    attempt_id: str = ""
    attempt_count: int = 0
    past_attempts: int = 0
    attempt_began: bool = False
    retry_count: int = 0
    reclaim_count: int = 0
    replay_count: int = 0
    progress: tuple[int | None, str | None] = (None, None)
    result: bytes | None = None
    steps: dict[str, bytes] = attrs.field(factory=dict)
    ends: dict[tuple[str, str], Any] = attrs.field(factory=dict)

    @property
    def policy(self) -> ExecutionPolicy:
        return self.args.policy

    @property
    def work_class(self) -> WorkClass:
        return WorkClass(
            namespace="default",
            lane=self.args.lane,
            task=self.args.task,
            capabilities=tuple(sorted(self.policy.requires)),
        )

    @property
    def vector(self) -> StateVector:
        return StateVector.parse(f"{self.state} {self.attempt_state}")

    @property
    def public(self) -> PublicState:
        return self.vector.public_state

    @property
    def is_terminal(self) -> bool:
        return self.state.startswith("terminal")

    @property
    def is_claimable(self) -> bool:
        return self.state in CLAIMABLE

    @property
    def score(self) -> int:
        return self.place - self.priority * 10**12

    @property
    def due(self) -> int | None:
        """The next moment at which time does something to it."""
        if self.is_terminal:
            return self.remove_at
        moments = [self.deadline]
        if self.state == RUNNING:
            moments += [self.expires, self.timeout_at]
        if self.state in (DELAYED, BACKOFF):
            moments.append(self.delay_until)
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def due_index(self) -> str:
        """The index that holds that moment: of several that are the same the one that is handled first."""
        if self.is_terminal:
            return "retention"
        leased = (self.expires, self.timeout_at) if self.state == RUNNING else ()
        return "due" if self.due in (self.deadline, *leased) else "delays"


@attrs.define
class Partition:
    """The executions of one partition, the keys that stand for some of them, and the ends that were announced."""

    executions: dict[str, Execution] = attrs.field(factory=dict)
    keys: dict[tuple[str, str], str] = attrs.field(factory=dict)
    feed: list[tuple[str, str]] = attrs.field(factory=list)
    ended: int = 0

    # Time

    def keep_pace(self, now: int) -> None:
        """Remove overdue records, up to twice as many as the call ended."""
        due = [each for each in self.executions.values() if each.due_index == "retention" and (each.due or now) < now]
        for execution in sorted(due, key=lambda each: (each.due, each.id.uuid))[: 2 * self.ended]:
            while self._age(execution, now):
                pass
        self.ended = 0

    def visit(self, now: int) -> None:
        """Apply every transition that is due by now, in the order of their moments."""
        due = [each for each in self.executions.values() if each.due is not None and each.due <= now]
        for execution in sorted(due, key=lambda each: (each.due, each.id.uuid)):
            while self._age(execution, now):
                pass

    def catch_up(self, each: Execution, now: int) -> bool:
        """Apply what is due of an active execution whose attempt timed out or whose deadline passed.

        Returns whether the execution still exists.
        """
        moments = [moment for moment in (each.deadline, each.timeout_at) if moment is not None]
        if each.state.startswith("active") and min(moments, default=now + 1) <= now:
            while self._age(each, now):
                pass
        return each.id.uuid in self.executions

    def _age(self, each: Execution, now: int) -> bool:
        """Apply the first thing that is due of an execution; return whether there may be more."""
        if each.is_terminal:
            if each.remove_at is not None and each.remove_at <= now:
                self.remove(each)
            return False
        if each.deadline is not None and each.deadline <= now:
            self.end(each, "expired", now)
        elif each.state == RUNNING and each.timeout_at is not None and each.timeout_at <= min(now, each.expires):
            self.fail_attempt(each, FailureClass.TIMEOUT, None, now)
        elif each.state == RUNNING and each.expires <= now:
            each.state, each.attempt_state = LAPSED, "attempt_interrupted"
        elif each.state in (DELAYED, BACKOFF) and each.delay_until is not None and each.delay_until <= now:
            each.state = READY
        else:
            return False
        return True

    def remove(self, each: Execution) -> None:
        if each.key is not None and self.keys.get((each.args.task, each.key)) == each.id.uuid:
            del self.keys[each.args.task, each.key]
        del self.executions[each.id.uuid]

    # Endings

    def end(self, each: Execution, outcome: str, now: int) -> None:
        each.state = ENDED.format(outcome)
        if each.attempt_index is not None:
            each.attempt_state = "attempt_terminal"
        retention = DAY_MS if each.policy.retention is None else ms(each.policy.retention)
        each.remove_at = max(now + retention, each.dedup_until or 0)
        self.feed.append((each.id.uuid, outcome))
        self.ended += 1

    def fail_attempt(self, each: Execution, kind: FailureClass, after: int | None, now: int) -> FailOutcome:
        retry = each.policy.retry
        # A failure that asks for a retry gets three where no policy says how many there are.
        most = retry.max_retries if retry is not None else 0 if after is None else 3
        if (
            kind in (FailureClass.PERMANENT, FailureClass.CANCELLED)
            or each.retry_count >= most
            or (retry is not None and retry.retryable_categories and kind not in retry.retryable_categories)
        ):
            cancelled = kind is FailureClass.CANCELLED
            self.end(each, "cancelled" if cancelled else "failed", now)
            return TerminalCancelled() if cancelled else TerminalFailed()
        if after is None:
            assert retry is not None, "only a policy gives retries that were not asked for"
            after = ms(retry.initial)
            if retry.backoff == "exponential":
                after = min(int(after * retry.multiplier**each.retry_count), ms(retry.maximum))
        each.retry_count += 1
        each.attempt_state = "pending_retry_attempt"
        each.state = BACKOFF if after > 0 else READY
        each.delay_until = now + after
        return RetryScheduled(delay_until_ms=now + after)

    # Claims

    def heads(self, lane: str, capabilities: frozenset[str]) -> list[Execution]:
        """Return what one who offers this may claim from a lane, in order."""
        matching_lanes = [
            each
            for each in self.executions.values()
            if each.is_claimable and each.args.lane == lane and each.policy.requires <= capabilities
        ]
        return sorted(matching_lanes, key=lambda each: (each.score, each.id.uuid))

    def offer(self, lanes: Sequence[str], capabilities: frozenset[str], now: int) -> Iterator[Execution]:
        """Yield what a claim must hand out, one after the other; work that was reclaimed too often ends on the way."""
        for lane in lanes:
            for each in self.heads(lane, capabilities):
                if each.state in (LAPSED, REVOKED) and each.reclaim_count >= each.policy.max_reclaim_count:
                    self.end(each, "failed", now)
                else:
                    yield each


def take(each: Execution, claim_id: str, worker: str, lease_ms: int, now: int) -> dict[str, Any]:
    """Put an execution under a lease; return what its holder must have been told."""
    if each.state == READY and each.attempt_state == "attempt_interrupted":
        kind, attempt_type = HandleKind.RESUMED, None
    else:
        reclaimed = each.state in (LAPSED, REVOKED)
        kind = HandleKind.RECLAIMED if reclaimed else HandleKind.FRESH
        types = {"pending_retry_attempt": "retry", "pending_replay_attempt": "replay"}
        attempt_type = "reclaim" if reclaimed else types.get(each.attempt_state, "initial")
        each.reclaim_count += reclaimed
        each.past_attempts += each.attempt_began
        each.attempt_began = True
        each.attempt_index = each.attempt_count
        each.attempt_count += 1
        each.attempt_id = claim_id
    each.epoch += 1
    each.fence = f"{claim_id}:{each.epoch}:{'' if each.attempt_id == claim_id else each.attempt_id}"
    each.holder = worker
    each.expires = now + lease_ms
    timeout = each.policy.attempt_timeout
    each.timeout_at = None if timeout is None else now + ms(timeout)
    each.state, each.attempt_state = RUNNING, "running_attempt"
    told = {
        "id": each.id, "kind": kind, "fence": each.fence, "attempt": each.attempt_index, "expires": each.expires,
        "timeout": each.timeout_at, "deadline": each.deadline, "retries": each.retry_count,
        "reclaims": each.reclaim_count, "priority": each.priority, "journal": dict(each.steps),
    }  # fmt: skip
    # An attempt that goes on keeps the kind that it began with, which the model does not keep.
    return told if attempt_type is None else {**told, "type": attempt_type}


def told(claimed: Claimed, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return what the holder was told, as `take` puts it."""
    handle = claimed.handle
    values = {
        "id": handle.execution_id, "kind": handle.kind, "fence": handle.fence, "attempt": handle.attempt_index,
        "expires": claimed.lease_expires_at_ms, "timeout": claimed.timeout_at_ms, "deadline": claimed.deadline_at_ms,
        "retries": claimed.retry_count, "reclaims": claimed.reclaim_count, "priority": claimed.priority,
        "journal": dict(claimed.journal), "type": claimed.attempt_type,
    }  # fmt: skip
    return {name: values[name] for name in wanted}
