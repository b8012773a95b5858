"""The decoding of the replies of the stored functions of suspension."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import attrs

from flowfabric_worker.engine.conditions import (
    from_postfix,
    matching_signals,
    referenced_waitpoint_keys,
    required_names,
)
from flowfabric_worker.engine.ids import ExecutionId, SignalId, WaitpointId
from flowfabric_worker.engine.records import moment, span
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.conditions import OperatorOnly, ResumeCondition, TimeoutOnly
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.reads import Explanation, SuspensionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.suspension import (
    DeliverSignalResult,
    ObservedSignals,
    PendingWaitpointInfo,
    ResumeReason,
    ResumeSignal,
    SignalAccepted,
    SignalDuplicate,
    SignalEffect,
    SignalSource,
    SuspendedExecutionEntry,
    SuspensionReason,
    TimeoutBehavior,
    WaitpointState,
)
from flowfabric_worker.engine.waitpoint_secrets import SecretRing
from flowfabric_worker.engine.waitpoint_tokens import fingerprint, sign
from flowfabric_worker.engine.wire import DAMAGE, decode_class, read_optional, reading, unpack_text

# The digits of the moment in a cursor of the list of suspended executions; the uuid follows them.
MOMENT_DIGITS = 15


def condition_of(data: bytes) -> ResumeCondition:
    """Decode a condition.

    Raises:
        ValidationError, ValueError: it is damaged.
    """
    return from_postfix(unpack_text(data))


def delivery_of(reply: Reply) -> DeliverSignalResult:
    """Decode the result of a delivery."""
    signal_id = SignalId(reply[1].decode())
    if reply[0] == b"duplicate":
        return SignalDuplicate(existing_signal_id=signal_id)
    names: tuple[str, ...] = ()
    if len(reply) > 3 and reply[3]:
        names = required_names(condition_of(reply[3]), reply[4].decode())
    return SignalAccepted(signal_id=signal_id, effect=SignalEffect(reply[2].decode()), awaited_names=names)


def signal_of(condition: ResumeCondition, head: bytes, payload: bytes | None) -> ResumeSignal:
    """Decode a signal.

    Raises:
        ValueError, ValidationError: it is damaged.
    """
    signal_id, waitpoint, key, name, category, source_type, source, accepted, correlation = unpack_text(head)[:9]
    signal = ResumeSignal(
        signal_id=SignalId(signal_id),
        waitpoint_id=WaitpointId(waitpoint),
        waitpoint_key=key,
        name=name,
        category=category,
        source=SignalSource(source_type, source),
        accepted_at_ms=int(accepted),
        correlation_id=correlation or None,
        payload=read_optional(payload),
    )
    return attrs.evolve(signal, matched=bool(matching_signals(condition, [signal])))


def observed_of(reply: Reply) -> ObservedSignals:
    """Decode a page of the signals that the last suspension received.

    Raises:
        ValueError, ValidationError: it is damaged.
    """
    reason, continuation, condition, behind, *entries = reply
    if not reason:
        return ObservedSignals()
    waited = condition_of(condition)
    heads, payloads = entries[::2], entries[1::2]
    return ObservedSignals(
        reason=ResumeReason(reason.decode()),
        signals=tuple(signal_of(waited, *entry) for entry in zip(heads, payloads, strict=True)),
        continuation=continuation.decode() or None,
        next_cursor=behind.decode() or None,
    )


@contextlib.contextmanager
def damage_told(execution_id: ExecutionId) -> Iterator[None]:
    """Report errors of decoding inside the block as damage of an execution.

    Raises:
        ValidationError: `corruption`.
    """
    with reading(f"{execution_id}: the record of its suspension", "suspension", execution_id=str(execution_id)):
        yield


AT_TIMEOUT = {
    TimeoutBehavior.FAIL: "then it fails",
    TimeoutBehavior.CANCEL: "then it is cancelled",
    TimeoutBehavior.EXPIRE: "then it expires",
    TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL: "then it continues",
    TimeoutBehavior.ESCALATE: "then it waits for an operator",
}


@attrs.frozen
class OpenSuspension:
    """The suspension that an execution is in, as the store replies it."""

    _reply: Reply

    def first_waitpoint(self) -> WaitpointId | None:
        """Return the waitpoint that the suspension names first.

        Raises:
            ValueError: what is stored is damaged.
        """
        ids = unpack_text(self._reply[7])
        return WaitpointId(ids[0]) if ids else None

    def info(self) -> SuspensionInfo:
        """Return what the execution waits for.

        Raises:
            ValueError, ValidationError: what is stored is damaged.
        """
        _, since, until, behavior, reason, condition, unmatched, _ = self._reply
        waited = condition_of(condition)
        return SuspensionInfo(
            awaits=_awaited_in_words(waited),
            waitpoints={key: required_names(waited, key) for key in referenced_waitpoint_keys(waited)},
            reason=SuspensionReason(reason.decode()),
            suspended_at_ms=int(since),
            timeout_at_ms=int(until) if until else None,
            timeout_behavior=TimeoutBehavior(behavior.decode()),
            unmatched_signals=int(unmatched),
        )

    def explanation(self, execution_id: ExecutionId) -> Explanation:
        """Return what the execution waits for, in a sentence.

        Raises:
            ValueError, ValidationError: what is stored is damaged.
        """
        now, info = self._reply[0], self.info()
        text = f"It waits for {info.awaits} since {moment(info.suspended_at_ms)} ({info.reason})"
        if info.timeout_at_ms is not None:
            text += f", for {span(info.timeout_at_ms - now)} more: {AT_TIMEOUT[info.timeout_behavior]}"
        if count := info.unmatched_signals:
            text += f"; {count} {'signal' if count == 1 else 'signals'} came that matched nothing"
        return Explanation(
            execution_id=execution_id, public_state=PublicState.SUSPENDED, code="suspended", text=f"{text}."
        )


def _awaited_in_words(condition: ResumeCondition) -> str:
    """Describe what meets a condition: each waitpoint with the names that count at it."""
    if isinstance(condition, OperatorOnly):
        return "an operator to resume it"
    if isinstance(condition, TimeoutOnly):
        return "its time"
    places = []
    for key in referenced_waitpoint_keys(condition):
        names = required_names(condition, key)
        places.append(f"{key!r} ({' or '.join(map(repr, names))})" if names else repr(key))
    return f"signals at {', '.join(places)}"


def suspended_row(partition: int, row: Reply) -> SuspendedExecutionEntry | DamagedRow:
    """Decode a row of the list of suspended executions; a damaged row says what is damaged."""
    place, record, suspension = row
    execution_id = ExecutionId(partition, place[MOMENT_DIGITS:].decode())
    try:
        suspended_at, until, work_class = record
        suspension_id, behavior, reason = suspension
        named = decode_class(work_class)
        return SuspendedExecutionEntry(
            execution_id=execution_id,
            lane=named.lane,
            task=named.task,
            suspension_id=suspension_id.decode(),
            suspended_at_ms=int(suspended_at),
            timeout_at_ms=int(until) if until else None,
            timeout_behavior=TimeoutBehavior(behavior.decode()),
            reason=SuspensionReason(reason.decode()),
        )
    except DAMAGE:
        return DamagedRow(str(execution_id), "its suspension cannot be read")


def waitpoint_row(
    execution_id: ExecutionId, secrets: SecretRing, condition: bytes, row: Sequence[bytes]
) -> PendingWaitpointInfo | DamagedRow:
    """Decode a row of the list of open waitpoints; its fingerprint is empty if its secret has expired."""
    waitpoint_id, data, state, shown = row
    try:
        key, kid, created, expires, activated = unpack_text(data)[:5]
        secret, identity = secrets.by_kid.get(kid), WaitpointId(waitpoint_id.decode())
        return PendingWaitpointInfo(
            execution_id=execution_id,
            waitpoint_id=identity,
            waitpoint_key=key,
            state=WaitpointState(state.decode()),
            required_signal_names=required_names(condition_of(condition), key) if activated else (),
            created_at_ms=int(created),
            activated_at_ms=int(activated) if activated else None,
            expires_at_ms=int(expires) if expires else None,
            token_kid=kid,
            token_fingerprint=fingerprint(sign(secret.value, kid, execution_id, identity)) if secret else "",
            shown=read_optional(shown),
        )
    except DAMAGE:
        return DamagedRow(waitpoint_id.decode("utf-8", "replace"), "the waitpoint cannot be read")
