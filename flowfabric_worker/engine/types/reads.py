"""The arguments and results of the area reads. Moments are in ms of the store's clock."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.types.checks import as_dict, name
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState, StateVector
from flowfabric_worker.engine.types.suspension import SuspensionReason, TimeoutBehavior


@attrs.frozen(kw_only=True)
class AttemptSummary:
    """The present or last attempt."""

    attempt_id: str
    attempt_index: int


@attrs.frozen(kw_only=True)
class LeaseSummary:
    """The lease of an active execution; it may have expired."""

    lease_epoch: int
    worker_id: str
    worker_instance_id: str
    expires_at_ms: int


@attrs.frozen(kw_only=True)
class PastAttempt:
    """An attempt that was followed by another."""

    attempt_index: int
    attempt_type: str
    ending: str
    started_at_ms: int
    ended_at_ms: int
    worker_instance_id: str
    error_class: str | None
    error: str | None


@attrs.frozen(kw_only=True)
class SuspensionInfo:
    """The suspension that an execution is in.

    Attributes:
        awaits: what resumes the execution, in words.
        waitpoints: the names of the signals that count at each waitpoint; no names if every signal counts.
        timeout_at_ms: when the timeout ends the suspension; None without a timeout.
        timeout_behavior: what happens then.
        unmatched_signals: how many signals came that matched nothing.
    """

    awaits: str
    waitpoints: Mapping[str, tuple[str, ...]]
    reason: SuspensionReason
    suspended_at_ms: int
    timeout_at_ms: int | None
    timeout_behavior: TimeoutBehavior
    unmatched_signals: int


@attrs.frozen(kw_only=True)
class ExecutionSnapshot:
    """An execution at one moment.

    Attributes:
        current_waitpoint: the first waitpoint of the suspension that the execution is in; None if there is none.
    """

    execution_id: ExecutionId
    flow_id: str | None
    lane: str
    namespace: str
    task: str
    public_state: PublicState
    blocking_reason: str
    blocking_detail: str | None
    current_attempt: AttemptSummary | None
    current_lease: LeaseSummary | None
    current_waitpoint: WaitpointId | None
    created_at_ms: int
    last_mutation_at_ms: int
    total_attempt_count: int
    tags: Mapping[str, str]
    headers: Mapping[str, str]


@attrs.frozen(kw_only=True)
class ExecutionInfo:
    """Everything about an execution except its payload and its result.

    Attributes:
        suspension: what a suspended execution waits for.
    """

    execution_id: ExecutionId
    namespace: str
    lane: str
    task: str
    priority: int
    state: StateVector
    public_state: PublicState
    creator: str
    codec: str
    idempotency_key: str | None
    policy: ExecutionPolicy
    tags: Mapping[str, str]
    headers: Mapping[str, str]
    created_at_ms: int
    last_mutation_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    delay_until_ms: int | None
    deadline_at_ms: int | None
    timeout_at_ms: int | None
    remove_at_ms: int | None
    suspended_at_ms: int | None
    suspended_until_ms: int | None
    suspension: SuspensionInfo | None
    current_attempt: AttemptSummary | None
    current_lease: LeaseSummary | None
    past_attempts: tuple[PastAttempt, ...]
    total_attempt_count: int
    retry_count: int
    reclaim_count: int
    replay_count: int
    step_count: int
    progress_percent: int | None
    progress_message: str | None
    error: str | None
    error_class: str | None
    error_detail: bytes = attrs.field(repr=False)
    cancel_reason: str | None
    cancelled_by: str | None
    reserved_for: str | None
    flow_id: str | None


def _public_state(value: str) -> PublicState:
    try:
        return PublicState(value)
    except ValueError:
        known = ", ".join(PublicState)
        raise ValidationError("invalid_input", f"{value!a:.100} is not a public state; use one of {known}.") from None


# The states whose executions have an index, which lua/prelude_listings.lua keeps.
INDEXED_STATES = frozenset(PublicState) - {PublicState.WAITING, PublicState.RATE_LIMITED, PublicState.COMPLETED}


@attrs.frozen(kw_only=True)
class ExecutionFilter:
    """Which executions to list; None for any.

    A lane, and each state of `INDEXED_STATES`, has an index. For any other condition the records are read one by one.

    Attributes:
        tags: tags that an execution must have, each with this value.
    """

    lane: str | None = attrs.field(default=None, validator=attrs.validators.optional(name))
    state: PublicState | None = attrs.field(default=None, converter=attrs.converters.optional(_public_state))
    task: str | None = attrs.field(default=None, validator=attrs.validators.optional(name))
    tags: Mapping[str, str] = attrs.field(factory=dict, converter=as_dict)

    def unindexed(self) -> tuple[str, ...]:
        """Return the names of the conditions that no index answers."""
        asked = {
            "state": self.state is not None and self.state not in INDEXED_STATES,
            "task": self.task is not None,
            "tags": bool(self.tags),
        }
        return tuple(name for name, is_asked in asked.items() if is_asked)


@attrs.frozen(kw_only=True)
class ExecutionSummary:
    """A row of a listing.

    Attributes:
        public_state: None for a damaged record, and for an execution that a newer release put into a phase of its own.
        corruption: what is wrong with a damaged record, whose other values are then None; None otherwise.
    """

    execution_id: ExecutionId
    lane: str | None = None
    task: str | None = None
    public_state: PublicState | None = None
    priority: int | None = None
    created_at_ms: int | None = None
    tags: Mapping[str, str] = attrs.field(factory=dict)
    corruption: str | None = None


@attrs.frozen(kw_only=True)
class ListExecutionsPage:
    """A page of executions by id. It may be short, even empty, and yet not the last.

    Attributes:
        next_cursor: None on the last page.
        looked_at: how many executions were looked at for this page, those included that do not match.
        unindexed: the conditions of the filter that no index answers: `state`, `task`, `tags`. For these, each
            execution that meets the other conditions is looked at.
    """

    executions: tuple[ExecutionSummary, ...]
    next_cursor: ExecutionId | None
    looked_at: int
    unindexed: tuple[str, ...]


@attrs.frozen(kw_only=True)
class LaneInfo:
    """A lane: what it holds per public state, and since when it is paused.

    Attributes:
        corruption: which of its counters are damaged, and count as 0; None if none is.
    """

    lane: str
    depths: Mapping[PublicState, int]
    paused_since_ms: int | None
    corruption: str | None = None


@attrs.frozen(kw_only=True)
class ListLanesPage:
    """A page of lanes by name; `next_cursor` is None on the last one."""

    lanes: tuple[LaneInfo, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class ExpiredLease:
    """An execution whose lease expired or was revoked, and that no worker has claimed since."""

    execution_id: ExecutionId
    worker_instance_id: str
    lease_epoch: int
    expired_at_ms: int


@attrs.frozen(kw_only=True)
class ListExpiredLeasesPage:
    """A page of expired leases by execution; `next_cursor` is None on the last one."""

    leases: tuple[ExpiredLease, ...]
    next_cursor: ExecutionId | None


@attrs.frozen(kw_only=True)
class Explanation:
    """Why an execution is not running.

    Attributes:
        code: running, lapsed, ended, delayed, reserved, lane_paused, no_worker, no_handler, no_capable_worker or
            queued.
        text: a sentence for people.
    """

    execution_id: ExecutionId
    public_state: PublicState
    code: str
    text: str
