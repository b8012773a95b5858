"""Signals as handlers see them, and the decisions that operators make."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs

from flowfabric_worker.codec import DecodingError, decode_value, encode_value
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import NotFoundError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE, MAX_SIGNAL_PAYLOAD_BYTES
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.engine.types.conditions import APPROVAL, APPROVED, REJECTED
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.suspension import (
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    PendingWaitpointInfo,
    ResumeSignal,
    SignalSource,
    decision_key,
)
from flowfabric_worker.engine.waitpoint_tokens import from_bearer
from flowfabric_worker.listing import rows_of


@attrs.frozen(kw_only=True)
class Approval:
    """A decision of an operator, which a handler gets from `wait_for`. A rejection is false: `if approval: ...`.

    Attributes:
        approved: True if the operator approved.
        reason: what the operator said.
        by: who decided.
    """

    approved: bool
    reason: str
    by: str

    def __bool__(self) -> bool:
        return self.approved


@attrs.frozen(kw_only=True)
class Signal:
    """A signal that came to the last suspension of an execution.

    Attributes:
        id: the signal's id.
        waitpoint: the name of the waitpoint.
        name: the signal's name.
        payload: an `Approval` if the signal is a decision; otherwise its plain value, or the bytes if they are no JSON.
        by: who sent it, as the sender said.
        at: when the store accepted it.
        matched: True if it counted towards what the handler waited for.
    """

    id: str
    waitpoint: str
    name: str
    payload: Any
    by: str
    at: datetime
    matched: bool


def signal_of(stored: ResumeSignal) -> Signal:
    """Return a stored signal as handlers see it."""
    return Signal(
        id=stored.signal_id,
        waitpoint=stored.waitpoint_key,
        name=stored.name,
        payload=_payload_of(stored),
        by=stored.source.identity,
        at=moment_of(stored.accepted_at_ms),
        matched=stored.matched,
    )


def _payload_of(stored: ResumeSignal) -> Any:
    if stored.category == APPROVAL:
        return approval_of(stored.name, stored.source.identity, stored.payload)
    try:
        return decode_value(stored.payload, Any, "The payload")
    except DecodingError:
        return stored.payload


def approval_of(decision: str, by: str, payload: bytes | None) -> Approval:
    """Return a decision; only the name `approved` approves."""
    try:
        reason = decode_value(payload, str | None, "The reason")
    except DecodingError:
        reason = (payload or b"").decode("utf-8", "replace")
    return Approval(approved=decision == APPROVED, reason=reason or "", by=by)


def decision_of(approved: object) -> str:
    """Return the name of a decision.

    Raises:
        ValidationError: `invalid_input`, `approved` is neither True nor False.
    """
    if approved is not True and approved is not False:
        raise ValidationError("invalid_input", f"A decision is True or False, not {approved!a:.40}.")
    return APPROVED if approved else REJECTED


def encode_payload(payload: Any, what: str) -> bytes | None:
    """Encode the payload of a signal; None stays None.

    Args:
        payload: the value.
        what: what the value is, for errors.

    Raises:
        EncodingError: the value would not come back equal.
        ValidationError: `payload_too_large`.
    """
    if payload is None:
        return None
    data = encode_value(payload, what)
    if len(data) > MAX_SIGNAL_PAYLOAD_BYTES:
        raise ValidationError(
            "payload_too_large",
            f"{what} has {len(data)} bytes; at most {MAX_SIGNAL_PAYLOAD_BYTES} are allowed. Store it elsewhere and "
            "pass its address.",
        )
    return data


def send_signal(
    engine: EngineBackend, token: str, name: str, payload: Any, by: str, key: str | None
) -> DeliverSignalResult:
    """Send a signal to the waitpoint of a token; see `Client.signal`."""
    data = encode_payload(payload, f"The payload of the signal {name!r}")
    return engine.deliver_signal(_to(token, name=name, source=SignalSource("user", by), payload=data, key=key))


def send_decision(
    engine: EngineBackend, target: str | ExecutionId, approved: object, by: str, reason: str, waitpoint: str | None
) -> DeliverSignalResult:
    """Send a decision to the waitpoint of a token, or to an execution; see `Client.approve`."""
    decision, payload = decision_of(approved), encode_payload(reason or None, "The reason of the decision")
    execution_id = execution_named_by(target)
    if execution_id is None:
        source, key = SignalSource("operator", by), decision_key(decision, by)
        return engine.deliver_signal(
            _to(target, name=decision, source=source, payload=payload, key=key, category=APPROVAL)
        )
    return engine.deliver_approval_signal(
        DeliverApprovalSignalArgs(
            execution_id=execution_id,
            waitpoint_id=_open_waitpoint(engine, execution_id, waitpoint),
            name=decision,
            operator=by,
            decision_key=by,
            payload=payload,
        )
    )


def execution_named_by(target: str | ExecutionId) -> ExecutionId | None:
    """Return the execution that a text names; None if the text is a token, or no id. Errors must not repeat a token."""
    if not isinstance(target, str):
        return target
    try:
        return ExecutionId.parse(target)
    except ValidationError:
        return None


def _open_waitpoint(engine: EngineBackend, execution_id: ExecutionId, name: str | None) -> WaitpointId:
    """Return the one waitpoint of an execution that takes signals, or the one of that name.

    Raises:
        ValidationError: `ambiguous_waitpoint`, there are several.
        NotFoundError: `waitpoint_not_found`.
    """

    def read(cursor: str | None) -> tuple[Sequence[PendingWaitpointInfo | DamagedRow], str | None]:
        page = engine.list_pending_waitpoints(execution_id, cursor, MAX_PAGE_SIZE)
        return page.waitpoints, page.next_cursor

    waitpoints = [each for each in rows_of(read) if not isinstance(each, DamagedRow)]
    found = {each.waitpoint_key: each.waitpoint_id for each in waitpoints if name in (None, each.waitpoint_key)}
    if len(found) == 1:
        return found.popitem()[1]
    if not found:
        what = "takes no signals now" if name is None else f"takes no signals at {name!r} now"
        raise NotFoundError("waitpoint_not_found", f"{execution_id} {what}.", execution_id=str(execution_id))
    names = ", ".join(map(repr, sorted(found)))
    raise ValidationError(
        "ambiguous_waitpoint",
        f"{execution_id} takes signals at several waitpoints: {names}. Name one.",
        execution_id=str(execution_id),
        waitpoints=tuple(sorted(found)),
    )


def _to(token: object, *, key: str | None, **signal: Any) -> DeliverSignalArgs:
    target = from_bearer(token)
    return DeliverSignalArgs(
        execution_id=target.execution_id,
        waitpoint_id=target.waitpoint_id,
        token=target.token,
        idempotency_key=key,
        **signal,
    )
