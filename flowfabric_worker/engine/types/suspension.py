"""The arguments and results of the area suspension: suspensions, waitpoints and signals."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from enum import StrEnum
from typing import TypeAlias

import attrs
from attrs.validators import optional

from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, LaneId, SignalId, WaitpointId
from flowfabric_worker.engine.limits import DEFAULT_DEDUP_WINDOW_MS, MAX_SIGNAL_PAYLOAD_BYTES, MAX_WAITPOINTS
from flowfabric_worker.engine.types import checks
from flowfabric_worker.engine.types.conditions import APPROVAL, ResumeCondition
from flowfabric_worker.engine.types.damage import DamagedRow

_PAYLOAD = optional(checks.payload(MAX_SIGNAL_PAYLOAD_BYTES))
_DEDUP_WINDOW = timedelta(milliseconds=DEFAULT_DEDUP_WINDOW_MS)

# ── suspending ──


class TimeoutBehavior(StrEnum):
    """What happens to an execution whose suspension times out."""

    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    AUTO_RESUME_WITH_TIMEOUT_SIGNAL = "auto_resume_with_timeout_signal"
    ESCALATE = "escalate"


class SuspensionReason(StrEnum):
    """Why an execution was suspended, for operators."""

    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_OPERATOR_REVIEW = "waiting_for_operator_review"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_BUDGET = "paused_by_budget"
    STEP_BOUNDARY = "step_boundary"
    MANUAL_PAUSE = "manual_pause"


@attrs.frozen(kw_only=True)
class ResumePolicy:
    """How an execution is resumed.

    Attributes:
        resume_delay: the time from the moment at which the condition is met until the execution is ready.
    """

    resume_delay: timedelta = attrs.field(default=timedelta(0), validator=checks.duration())


@attrs.frozen(kw_only=True)
class WaitpointBinding:
    """One waitpoint of a suspension.

    Attributes:
        waitpoint_key: the name of the waitpoint in the condition.
        pending: the waitpoint that `create_waitpoint` returned for this key; None for the waitpoint of the execution
            with that key, which is created if it does not exist.
        shown: the document that is shown with the waitpoint, at most 64 KiB; the first one is kept.
    """

    waitpoint_key: str = attrs.field(validator=checks.name)
    pending: WaitpointId | None = attrs.field(default=None, validator=optional(checks.name))
    shown: bytes | None = attrs.field(default=None, repr=False, validator=_PAYLOAD)


@attrs.frozen(kw_only=True)
class SuspendArgs:
    """How a worker suspends its execution.

    Attributes:
        condition: the condition under which signals resume the execution.
        waitpoints: the waitpoints that receive the signals, at most 64; the condition must name each of them.
        timeout: the longest wait, by the store's clock; None for no limit.
        timeout_behavior: what happens at the timeout.
        reason: why the execution waits, for operators.
        resume_policy: how the execution is resumed.
        continuation: a text that the worker chooses, and `observe_signals` returns.
        idempotency_key: a name for this suspension of the lease; a call with the same key gets the first answer again.
    """

    condition: ResumeCondition
    waitpoints: tuple[WaitpointBinding, ...] = attrs.field(
        default=(), converter=checks.as_tuple, validator=checks.at_most(MAX_WAITPOINTS)
    )
    timeout: timedelta | None = attrs.field(default=None, validator=optional(checks.duration()))
    timeout_behavior: TimeoutBehavior = TimeoutBehavior.FAIL
    reason: SuspensionReason = SuspensionReason.WAITING_FOR_SIGNAL
    resume_policy: ResumePolicy = ResumePolicy()
    continuation: str | None = attrs.field(default=None, validator=optional(checks.name))
    idempotency_key: str | None = attrs.field(default=None, validator=optional(checks.name))


@attrs.frozen(kw_only=True)
class IssuedWaitpoint:
    """A waitpoint of a suspension, with the token that lets its bearer signal it."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    token: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class SuspensionDetails:
    """A suspension and its waitpoints, in the order in which they were asked for."""

    suspension_id: str
    waitpoints: tuple[IssuedWaitpoint, ...]


@attrs.frozen(kw_only=True)
class Suspended:
    """The execution is suspended, and its lease has ended; `handle` replaces the handle of the call."""

    details: SuspensionDetails
    handle: Handle


@attrs.frozen(kw_only=True)
class AlreadySatisfied:
    """Buffered signals met the condition, so nothing was suspended: the lease and its handle stay valid.

    Attributes:
        signals: the matching signals, oldest first, up to one page; `observe_signals` returns all of them.
    """

    details: SuspensionDetails
    signals: tuple[ResumeSignal, ...]


SuspendOutcome: TypeAlias = Suspended | AlreadySatisfied


@attrs.frozen(kw_only=True)
class PendingWaitpoint:
    """A waitpoint before its suspension, which buffers signals until `expires_at_ms`.

    Attributes:
        expires_at_ms: None if the waitpoint was requested again after its suspension, which has no timeout.
    """

    waitpoint_id: WaitpointId
    waitpoint_key: str
    token: str = attrs.field(repr=False)
    expires_at_ms: int | None


# ── signals ──


@attrs.frozen
class SignalSource:
    """The sender of a signal: its kind, such as `user` or `system`, and its identity."""

    type: str = attrs.field(validator=checks.name)
    identity: str = attrs.field(validator=checks.name)


class SignalEffect(StrEnum):
    """What a signal did."""

    RESUME_CONDITION_SATISFIED = "resume_condition_satisfied"
    APPENDED_TO_WAITPOINT = "appended_to_waitpoint"
    BUFFERED_FOR_PENDING_WAITPOINT = "buffered_for_pending_waitpoint"
    NO_OP = "no_op"


@attrs.frozen(kw_only=True)
class DeliverSignalArgs:
    """A signal to a waitpoint, from the bearer of the waitpoint's token.

    Attributes:
        token: the token that `suspend` or `create_waitpoint` returned; never shown.
        name: the name that the matchers of the condition compare.
        category: a word of the sender's choice, handed on.
        payload: at most 64 KiB; None and b"" differ.
        correlation_id: a word of the sender's choice, handed on.
        idempotency_key: the same key at the same waitpoint is the same signal.
        dedup_window: how long the key is remembered while the waitpoint is open; after that, it is kept.
        signal_id: the signal's id; None to have one minted.
    """

    execution_id: ExecutionId
    waitpoint_id: WaitpointId = attrs.field(validator=checks.name)
    token: str = attrs.field(repr=False)
    name: str = attrs.field(validator=checks.name)
    source: SignalSource
    category: str = attrs.field(default="signal", validator=checks.name)
    payload: bytes | None = attrs.field(default=None, repr=False, validator=_PAYLOAD)
    correlation_id: str | None = attrs.field(default=None, validator=optional(checks.name))
    idempotency_key: str | None = attrs.field(default=None, validator=optional(checks.name))
    dedup_window: timedelta = attrs.field(default=_DEDUP_WINDOW, validator=checks.duration())
    signal_id: SignalId | None = attrs.field(default=None, validator=optional(checks.name))


@attrs.frozen(kw_only=True)
class DeliverApprovalSignalArgs:
    """An operator's decision on a waitpoint, sent without its token.

    Its category is `approval`, its source the operator, its idempotency key `approval:<name>:<decision_key>`.

    Attributes:
        name: the decision, such as `approved` or `rejected`.
        operator: who decided.
        decision_key: distinguishes two decisions with the same name.
        lane: the lane in which the execution must be; None for any.
        payload: at most 64 KiB; None and b"" differ.
        dedup_window: how long the decision is remembered.
    """

    execution_id: ExecutionId
    waitpoint_id: WaitpointId = attrs.field(validator=checks.name)
    name: str = attrs.field(validator=checks.name)
    operator: str = attrs.field(validator=checks.name)
    decision_key: str = attrs.field(validator=checks.name)
    lane: LaneId | None = None
    payload: bytes | None = attrs.field(default=None, repr=False, validator=_PAYLOAD)
    dedup_window: timedelta = attrs.field(default=_DEDUP_WINDOW, validator=checks.duration())


def decision_key(decision: str, key: str) -> str:
    """Return the idempotency key of a decision, such as `approved`; `key` tells two decisions of one name apart."""
    return f"{APPROVAL}:{decision}:{key}"


@attrs.frozen(kw_only=True)
class SignalAccepted:
    """A signal that was recorded.

    Attributes:
        effect: what the signal did.
        awaited_names: if the signal matched nothing, the names that its waitpoint waits for, sorted; empty if the
            condition accepts any name, or waits for no signal.
    """

    signal_id: SignalId
    effect: SignalEffect
    awaited_names: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class SignalDuplicate:
    """The signal was received before, as `existing_signal_id`; nothing has changed."""

    existing_signal_id: SignalId


DeliverSignalResult: TypeAlias = SignalAccepted | SignalDuplicate


@attrs.frozen(kw_only=True)
class ResumeSignal:
    """A signal as the resumed worker sees it.

    Attributes:
        accepted_at_ms: when the signal was accepted, in ms of the store's clock.
        matched: whether it counted somewhere in the condition.
    """

    signal_id: SignalId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    name: str
    category: str
    source: SignalSource
    accepted_at_ms: int
    correlation_id: str | None = None
    payload: bytes | None = attrs.field(default=None, repr=False)
    matched: bool = True


class ResumeReason(StrEnum):
    """What resumed an execution."""

    SIGNAL = "signal"
    OPERATOR = "operator"
    TIMEOUT = "timeout"


@attrs.frozen(kw_only=True)
class ObservedSignals:
    """How the last suspension of an execution ended, and the signals that it received.

    Attributes:
        reason: what resumed the execution; None if it was not resumed.
        signals: the signals at the waitpoints of the suspension, oldest first, each with whether it matched.
        continuation: the continuation of the suspension.
        next_cursor: where the next page begins; None on the last one.
    """

    reason: ResumeReason | None = None
    signals: tuple[ResumeSignal, ...] = ()
    continuation: str | None = None
    next_cursor: str | None = None

    @property
    def matched(self) -> tuple[ResumeSignal, ...]:
        """Return the signals that counted towards the condition."""
        return tuple(signal for signal in self.signals if signal.matched)


@attrs.frozen(kw_only=True)
class ResumeExecutionResult:
    """An execution that an operator resumed, which is ready at `ready_at_ms`."""

    execution_id: ExecutionId
    ready_at_ms: int


# ── listings ──


@attrs.frozen(kw_only=True)
class SuspendedExecutionEntry:
    """One suspended execution.

    Attributes:
        suspended_at_ms: when it was suspended.
        timeout_at_ms: when the suspension times out; None if it has no timeout.
    """

    execution_id: ExecutionId
    lane: str
    task: str
    suspension_id: str
    suspended_at_ms: int
    timeout_at_ms: int | None
    timeout_behavior: TimeoutBehavior
    reason: SuspensionReason


@attrs.frozen(kw_only=True)
class ListSuspendedPage:
    """A page of suspended executions, oldest first; `next_cursor` is None on the last one."""

    executions: tuple[SuspendedExecutionEntry | DamagedRow, ...]
    next_cursor: str | None


class WaitpointState(StrEnum):
    """The state of a waitpoint."""

    PENDING = "pending"
    ACTIVE = "active"
    CLOSED = "closed"


@attrs.frozen(kw_only=True)
class PendingWaitpointInfo:
    """A waitpoint that accepts signals, without its token.

    Attributes:
        required_signal_names: the names that count at the waitpoint, sorted; empty if every name does.
        token_kid: the id of the secret that signed its token.
        token_fingerprint: the first 16 hex digits of the token's digest, by which operators recognize it.
        shown: the document that is shown with the waitpoint; None if there is none.
    """

    execution_id: ExecutionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    state: WaitpointState
    required_signal_names: tuple[str, ...]
    created_at_ms: int
    activated_at_ms: int | None
    expires_at_ms: int | None
    token_kid: str
    token_fingerprint: str
    shown: bytes | None = attrs.field(default=None, repr=False)

    @property
    def shown_digest(self) -> str | None:
        """Return the SHA-256 of the document that is shown with the waitpoint, in hexadecimal digits."""
        return None if self.shown is None else hashlib.sha256(self.shown).hexdigest()


@attrs.frozen(kw_only=True)
class ListPendingWaitpointsPage:
    """A page of waitpoints by id; `next_cursor` is None on the last one."""

    waitpoints: tuple[PendingWaitpointInfo | DamagedRow, ...]
    next_cursor: str | None
