"""The operations that suspend executions until signals, an operator or a timeout resume them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta

import attrs

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.conditions import to_postfix, validate
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.errors import ContentionError, EngineError, ValidationError, error_from_code
from flowfabric_worker.engine.handle import Handle, HandleKind
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId, check_execution_id, check_lane, check_name, uuid7
from flowfabric_worker.engine.limits import MAX_CALL_ITEMS, MAX_PAGE_SIZE
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.pages import is_text
from flowfabric_worker.engine.stores.base import Argument, Reply
from flowfabric_worker.engine.suspension_replies import (
    MOMENT_DIGITS,
    damage_told,
    delivery_of,
    observed_of,
    suspended_row,
    waitpoint_row,
)
from flowfabric_worker.engine.types.checks import check_record
from flowfabric_worker.engine.types.conditions import APPROVAL
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    DeliverSignalResult,
    IssuedWaitpoint,
    ListPendingWaitpointsPage,
    ListSuspendedPage,
    ObservedSignals,
    PendingWaitpoint,
    PendingWaitpointInfo,
    ResumeExecutionResult,
    ResumePolicy,
    ResumeSignal,
    SignalSource,
    SuspendArgs,
    Suspended,
    SuspendedExecutionEntry,
    SuspendOutcome,
    SuspensionDetails,
    SuspensionReason,
    TimeoutBehavior,
    WaitpointBinding,
    decision_key,
)
from flowfabric_worker.engine.types.waitpoint_secrets import (
    PartitionRotation,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllResult,
    SecretRotated,
    SecretUnchanged,
)
from flowfabric_worker.engine.waitpoint_secrets import Secret, SecretRing
from flowfabric_worker.engine.waitpoint_tokens import check, created_at_ms, kid_of, sign
from flowfabric_worker.engine.wire import optional, pack

_PLACE = re.compile(rf"[0-9]{{{MOMENT_DIGITS}}}[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}")


class Suspension(BudgetDebts):
    """The operations of the area suspension."""

    # Waitpoints

    def create_waitpoint(
        self, handle: Handle, waitpoint_key: str, expires_in: timedelta, shown: bytes | None = None
    ) -> PendingWaitpoint:
        partition, uuid, fence = self.fenced(handle)
        name, expires = check_name(waitpoint_key, "waitpoint_key"), milliseconds(expires_in, "expires_in", least=1)
        minted, document = str(uuid7()), optional(WaitpointBinding(waitpoint_key=name, shown=shown).shown)
        reply = self._call_with_secret(
            "create_waitpoint",
            partition,
            lambda ring: [uuid, fence, name, minted, ring.signing.kid, ring.signing.fingerprint, expires, document],
        )
        with damage_told(handle.execution_id):
            waitpoint_id, kid, expires_at = WaitpointId(reply[1].decode()), reply[2].decode(), reply[3]
            return PendingWaitpoint(
                waitpoint_id=waitpoint_id,
                waitpoint_key=name,
                token=self._token(handle.execution_id, waitpoint_id, kid),
                expires_at_ms=int(expires_at) if expires_at else None,
            )

    def suspend(self, handle: Handle, args: SuspendArgs) -> SuspendOutcome:
        reply = self._send_suspension("suspend", handle, args)
        with damage_told(handle.execution_id):
            details = self._details(handle.execution_id, reply)
        if reply[0] == b"suspended":
            self.pay_ends({handle.execution_id.partition_number})
            return Suspended(details=details, handle=attrs.evolve(handle, kind=HandleKind.SUSPENDED))
        return self._satisfied(handle, details)

    def try_satisfy(self, handle: Handle, args: SuspendArgs) -> AlreadySatisfied | None:
        reply = self._send_suspension("try_satisfy", handle, args)
        if reply[0] == b"waiting":
            return None
        with damage_told(handle.execution_id):
            details = self._details(handle.execution_id, reply)
        return self._satisfied(handle, details)

    def _satisfied(self, handle: Handle, details: SuspensionDetails) -> AlreadySatisfied:
        return AlreadySatisfied(details=details, signals=self.observe_signals(handle, limit=MAX_PAGE_SIZE).matched)

    def _send_suspension(self, function: str, handle: Handle, args: SuspendArgs) -> Reply:
        """Check a suspension, and call the stored function until it has counted all signals that were buffered."""
        partition, uuid, fence = self.fenced(handle)
        if handle.kind is HandleKind.SUSPENDED:
            raise error_from_code("already_suspended", [str(handle.execution_id)])
        request = self._request(args)
        bindings: list[Argument] = []
        for binding in args.waitpoints:
            pending = binding.pending or ""
            is_id = "1" if _is_waitpoint_id(pending) else ""
            bindings += [binding.waitpoint_key, pending, str(uuid7()), is_id, optional(binding.shown)]
        suspension_id, ending = str(uuid7()), _ending(args, request)

        def arguments(ring: SecretRing) -> Item:
            signing = (ring.signing.kid, ring.signing.fingerprint)
            return [uuid, fence, ending, suspension_id, *request[:6], *signing, _digest(request), *bindings]

        reply = self._call_with_secret(function, partition, arguments)
        while reply[0] == b"more":
            # Repeat the call while it answers 'more': each one counts a page of the buffered signals.
            reply = self._call_with_secret(function, partition, arguments)
        return reply

    def _request(self, args: SuspendArgs) -> list[bytes | str]:
        """Check the arguments of a suspension, and encode them for the stored function.

        Raises:
            ValidationError: `invalid_condition`, or an argument is not valid.
        """
        check_record(args, SuspendArgs)
        check_record(args.resume_policy, ResumePolicy)
        keys = [check_record(binding, WaitpointBinding).waitpoint_key for binding in args.waitpoints]
        validate(args.condition, keys, has_timeout=args.timeout is not None, limits=self.limits)
        try:
            behavior, reason = TimeoutBehavior(args.timeout_behavior), SuspensionReason(args.reason)
        except ValueError as error:
            raise ValidationError("invalid_input", f"The suspension is not valid: {error}.") from None
        return [
            behavior.value,
            reason.value,
            "" if args.timeout is None else str(milliseconds(args.timeout, "timeout")),
            str(milliseconds(args.resume_policy.resume_delay, "resume_delay")),
            args.continuation or "",
            pack(to_postfix(args.condition)),
            *(
                text
                for each in args.waitpoints
                for text in (each.waitpoint_key, each.pending or "", optional(each.shown))
            ),
        ]

    def _details(self, execution_id: ExecutionId, reply: Reply) -> SuspensionDetails:
        """Decode the suspension in a reply, and sign its tokens."""
        issued = []
        for waitpoint, kid, name in zip(reply[2::3], reply[3::3], reply[4::3], strict=True):
            waitpoint_id = WaitpointId(waitpoint.decode())
            token = self._token(execution_id, waitpoint_id, kid.decode())
            issued.append(IssuedWaitpoint(waitpoint_id=waitpoint_id, waitpoint_key=name.decode(), token=token))
        return SuspensionDetails(suspension_id=reply[1].decode(), waitpoints=tuple(issued))

    # Signals

    def deliver_signal(self, args: DeliverSignalArgs) -> DeliverSignalResult:
        target = check_execution_id(check_record(args, DeliverSignalArgs).execution_id)
        source = check_record(args.source, SignalSource)
        call_id, window = new_call_id(), milliseconds(args.dedup_window, "dedup_window")
        signal = _signal(args.signal_id or str(uuid7()), args.name, args.category, source, args.payload)
        signal[5], signal[7] = args.correlation_id or "", args.idempotency_key or ""

        def arguments(ring: SecretRing) -> Item:
            proof = _proof(args.token, ring, target, args.waitpoint_id)
            return [target.uuid, self._packed_namespace, call_id, args.waitpoint_id, *proof, *signal, window]

        reply = self._call_with_secret("deliver_signal", target.partition_number, arguments)
        with damage_told(target):
            return delivery_of(reply)

    def deliver_approval_signal(self, args: DeliverApprovalSignalArgs) -> DeliverSignalResult:
        target = check_execution_id(check_record(args, DeliverApprovalSignalArgs).execution_id)
        lane = "" if args.lane is None else check_lane(args.lane)
        signal = _signal(str(uuid7()), args.name, APPROVAL, SignalSource("operator", args.operator), args.payload)
        signal[7] = decision_key(args.name, args.decision_key)
        arguments: Item = [
            target.uuid,
            self._packed_namespace,
            new_call_id(),
            args.waitpoint_id,
            lane,
            *signal,
            milliseconds(args.dedup_window, "dedup_window"),
        ]
        reply = self.call("deliver_approval_signal", target.partition_number, arguments)
        with damage_told(target):
            return delivery_of(reply)

    def resume_execution(self, execution_id: ExecutionId, delay: timedelta = timedelta(0)) -> ResumeExecutionResult:
        target = check_execution_id(execution_id)
        arguments: Item = [target.uuid, self._packed_namespace, new_call_id(), milliseconds(delay, "delay")]
        reply = self.call("resume_execution", target.partition_number, arguments)
        return ResumeExecutionResult(execution_id=target, ready_at_ms=int(reply[1]))

    # Reading

    def observe_signals(self, handle: Handle, cursor: str | None = None, limit: int = 100) -> ObservedSignals:
        partition, uuid, _ = self.fenced(handle)
        count, after = _page(limit), "0" if cursor is None else cursor
        if not (isinstance(after, str) and after.isascii() and after.isdecimal() and len(after) < MOMENT_DIGITS):
            raise _invalid_cursor()
        signals: list[ResumeSignal] = []
        while True:
            wanted = min(count - len(signals), MAX_CALL_ITEMS)
            reply = self.call("observe_signals", partition, [uuid, self._packed_namespace, after, wanted])
            with damage_told(handle.execution_id):
                page = observed_of(reply)
            signals += page.signals
            after = page.next_cursor or ""
            if not after or len(signals) >= count:
                return attrs.evolve(page, signals=tuple(signals))

    def list_suspended(self, partition: int, cursor: str | None = None, limit: int = 100) -> ListSuspendedPage:
        count = _page(limit)
        if cursor is not None and not (isinstance(cursor, str) and _PLACE.fullmatch(cursor)):
            raise _invalid_cursor()
        after, rows = (cursor or "").encode(), list[SuspendedExecutionEntry | DamagedRow]()
        while True:
            # One more row tells whether there is a next page.
            wanted = min(count - len(rows) + 1, MAX_CALL_ITEMS)
            page = self.call("list_suspended", partition, [self._packed_namespace, after, wanted])
            for row in page:
                if len(rows) == count:
                    return ListSuspendedPage(executions=tuple(rows), next_cursor=cursor)
                after = row[0]
                if is_text(after):
                    rows.append(suspended_row(partition, row))
                    cursor = after.decode()
            if len(page) < wanted:
                return ListSuspendedPage(executions=tuple(rows), next_cursor=None)

    def list_pending_waitpoints(
        self, execution_id: ExecutionId, cursor: str | None = None, limit: int = 100
    ) -> ListPendingWaitpointsPage:
        target, count = check_execution_id(execution_id), _page(limit)
        if cursor is not None and not _is_waitpoint_id(cursor):
            raise _invalid_cursor()
        after, rows = cursor or "", list[PendingWaitpointInfo | DamagedRow]()
        ring = self._read_secrets(target.partition_number)
        while True:
            wanted = min(count - len(rows), MAX_CALL_ITEMS)
            condition, behind, *entries = self.call(
                "list_pending_waitpoints", target.partition_number, [target.uuid, self._packed_namespace, after, wanted]
            )
            rows += [waitpoint_row(target, ring, condition, entries[at : at + 4]) for at in range(0, len(entries), 4)]
            with damage_told(target):
                after = behind.decode()
            if not after or len(rows) >= count:
                return ListPendingWaitpointsPage(waitpoints=tuple(rows), next_cursor=after or None)

    # Secrets

    def rotate_waitpoint_hmac_secret_all(
        self, args: RotateWaitpointHmacSecretAllArgs
    ) -> RotateWaitpointHmacSecretAllResult:
        check_record(args, RotateWaitpointHmacSecretAllArgs)
        secret = Secret(args.new_kid, args.new_secret)
        arguments: Item = [*secret.stored, milliseconds(args.grace, "grace"), new_call_id()]
        return RotateWaitpointHmacSecretAllResult(
            partitions=tuple(self._rotate(number, secret, arguments) for number in range(self.partitions))
        )

    def _rotate(self, partition: int, secret: Secret, arguments: Item) -> PartitionRotation:
        result: SecretRotated | SecretUnchanged | EngineError
        try:
            reply = self.call("rotate_secret", partition, arguments)
        except EngineError as error:
            return PartitionRotation(partition=partition, result=error)
        self.secret_rings.pop(partition, None)
        if reply[0] == b"unchanged":
            result = SecretUnchanged(secret.kid)
        else:
            result = SecretRotated(new_kid=secret.kid, previous_kid=reply[1].decode() or None, collected=int(reply[2]))
        return PartitionRotation(partition=partition, result=result)

    def _read_secrets(self, partition: int) -> SecretRing:
        reply = self.call("read_secrets", partition, [])
        if not reply[0]:
            # The store lost its data while this engine was open, or the secret is damaged; both need a new one.
            self.set_up(testing=False)
            reply = self.call("read_secrets", partition, [])
        ring = SecretRing.read(reply)
        self.secret_rings[partition] = ring
        return ring

    def _call_with_secret(self, function: str, partition: int, arguments: Callable[[SecretRing], Item]) -> Reply:
        """Call a stored function that depends on secrets, and once more if they were rotated meanwhile.

        Raises:
            ContentionError: they were rotated again.
        """
        self.check_partition(partition)
        ring = self.secret_rings.get(partition) or self._read_secrets(partition)
        reply = self.call(function, partition, arguments(ring))
        if reply[0] == b"secret_moved":
            reply = self.call(function, partition, arguments(self._read_secrets(partition)))
        if reply[0] == b"secret_moved":
            raise ContentionError(message="The secrets of waitpoints are being rotated; send the call again.")
        return reply

    def _token(self, execution_id: ExecutionId, waitpoint_id: WaitpointId, kid: str) -> str:
        """Sign the token of a waitpoint with the secret of this kid.

        Raises:
            ContentionError: the secret has expired meanwhile.
        """
        partition = execution_id.partition_number
        ring = self.secret_rings.get(partition)
        if ring is None or kid not in ring.by_kid:
            ring = self._read_secrets(partition)
        if kid not in ring.by_kid:
            raise ContentionError(message="The secrets of waitpoints are being rotated; send the call again.")
        return sign(ring.by_kid[kid].value, kid, execution_id, waitpoint_id)


def _proof(token: str, ring: SecretRing, execution_id: ExecutionId, waitpoint_id: str) -> Item:
    """Return the kid, the fingerprint of the secret that the token was checked with, and whether it is valid.

    An invalid token is sent too, because the store first checks the execution, and whether the secret was rotated.
    """
    try:
        kid = kid_of(token)
    except ValidationError:
        return "", "", ""
    secret = ring.by_kid.get(kid)
    if secret is None:
        return kid, "", ""
    try:
        check(token, secret.value, execution_id, WaitpointId(waitpoint_id))
    except ValidationError:
        return kid, secret.fingerprint, ""
    return kid, secret.fingerprint, "1"


def _signal(signal_id: str, name: str, category: str, source: SignalSource, payload: bytes | None) -> list[bytes | str]:
    """Encode a signal for a stored function, without its correlation id and idempotency key."""
    return [signal_id, name, category, source.type, source.identity, "", optional(payload), ""]


def _digest(request: list[bytes | str]) -> str:
    return hashlib.sha256(pack(request)).hexdigest()[:32]


def _ending(args: SuspendArgs, request: list[bytes | str]) -> str:
    """Return the name by which a repeated suspension is recognized: its key, or a digest of its arguments."""
    return f"suspend ={args.idempotency_key}" if args.idempotency_key else f"suspend {_digest(request)}"


def _is_waitpoint_id(text: object) -> bool:
    try:
        created_at_ms(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def _page(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE_SIZE:
        raise ValidationError("invalid_input", f"A page holds 1 to {MAX_PAGE_SIZE} entries, not {limit!r}.")
    return limit


def _invalid_cursor() -> ValidationError:
    return ValidationError(
        "invalid_cursor", "The cursor is not one that this listing returned: begin again without one."
    )
