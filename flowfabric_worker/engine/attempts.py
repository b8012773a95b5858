"""The operations of a lease holder on its execution."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from flowfabric_worker.engine.backend.attempts import AttemptTransaction
from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.budget_debts import BudgetDebts
from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.core import EngineCore, as_error
from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import check_name
from flowfabric_worker.engine.limits import (
    MAX_DETAIL_BYTES,
    MAX_FLOW_ROWS,
    MAX_JOURNAL_BYTES,
    MAX_LEASE_MS,
    MAX_MESSAGE_BYTES,
    MAX_STEPS,
)
from flowfabric_worker.engine.moments import epoch_ms, milliseconds
from flowfabric_worker.engine.stores.base import Argument, Reply, StoreTransaction
from flowfabric_worker.engine.types.attempts import (
    Completion,
    FailOutcome,
    Failure,
    FailureReason,
    LeaseRenewal,
    RetryScheduled,
    StepRecord,
    TerminalCancelled,
    TerminalFailed,
)
from flowfabric_worker.engine.types.checks import as_tuple, check_record
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.wire import optional, pack_moment

T = TypeVar("T")

# A renewal times out after this fraction of the lease: sending it again is then better than waiting.
RENEWAL_TIMEOUT_SHARE = 6


class _Transaction(AttemptTransaction):
    """A transaction of a store, in which an execution completes."""

    def __init__(self, core: EngineCore, transaction: StoreTransaction) -> None:
        self._core = core
        self._transaction = transaction
        self.connection = transaction.connection

    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        try:
            self._core.check_payload(payload, "result")
            partition, uuid, fence = self._core.fenced(handle)
            replies = self._transaction.call("complete_many", partition, (uuid, fence, optional(payload)))
            answer = as_error(replies[0], partition)
            if isinstance(answer, EngineError):
                raise answer
            self._transaction.commit()
        finally:
            self.roll_back()

    def roll_back(self) -> bool:
        return self._transaction.roll_back()


class AttemptOperations(BudgetDebts):
    """The operations of the area attempts."""

    def renew(self, handle: Handle) -> LeaseRenewal:
        return _only(self.renew_many([handle]))

    def renew_many(self, handles: Sequence[Handle]) -> list[LeaseRenewal | EngineError]:
        leases = (handle.lease_ttl_ms for handle in handles if isinstance(handle, Handle))
        shortest = min((lease for lease in leases if type(lease) is int), default=MAX_LEASE_MS)
        timeout = max(0.05, shortest / 1000 / RENEWAL_TIMEOUT_SHARE)
        replies, _ = self.call_encoded("renew_many", handles, self._renewal_item, timeout)
        return [
            reply
            if isinstance(reply, EngineError)
            else LeaseRenewal(expires_at_ms=int(reply[1]), lease_epoch=handle.lease_epoch)
            for handle, reply in zip(handles, replies, strict=True)
        ]

    def _renewal_item(self, handle: Handle) -> tuple[int, Item]:
        partition, uuid, fence = self.fenced(handle)
        if not 1 <= handle.lease_ttl_ms <= MAX_LEASE_MS:
            raise ValidationError("invalid_input", f"A lease is 1 to {MAX_LEASE_MS} ms; the handle is damaged.")
        return partition, (uuid, fence, str(handle.lease_ttl_ms))

    def progress(self, handle: Handle, percent: int | None = None, message: str | None = None) -> None:
        if percent is not None and (type(percent) is not int or not 0 <= percent <= 100):
            raise ValidationError("invalid_input", f"percent must be a whole number from 0 to 100, not {percent!r}.")
        partition, uuid, fence = self.fenced(handle)
        text = optional(None if message is None else cut(message, MAX_MESSAGE_BYTES))
        arguments: Item = [uuid, fence, "" if percent is None else str(percent), text, new_call_id()]
        self.call("progress", partition, arguments)

    def complete(self, handle: Handle, payload: bytes | None = None) -> None:
        _only(self.complete_many([Completion(handle=handle, payload=payload)]))

    def complete_many(self, completions: Sequence[Completion]) -> list[EngineError | None]:
        replies, partitions = self.call_encoded("complete_many", completions, self._completion_item)
        self.pay_ends(partitions)
        return [reply if isinstance(reply, EngineError) else None for reply in replies]

    def _completion_item(self, completion: Completion) -> tuple[int, Item]:
        check_record(completion, Completion)
        self.check_payload(completion.payload, "result")
        partition, uuid, fence = self.fenced(completion.handle)
        return partition, (uuid, fence, optional(completion.payload))

    def begin_transaction(self) -> AttemptTransaction:
        return _Transaction(self, self.call_with_retries(self.store.begin_transaction))

    def fail(
        self,
        handle: Handle,
        reason: FailureReason,
        classification: FailureClass,
        retry_after: timedelta | None = None,
    ) -> FailOutcome:
        failure = Failure(handle=handle, reason=reason, classification=classification, retry_after=retry_after)
        outcome = self.fail_many([failure])[0]
        if isinstance(outcome, EngineError):
            raise outcome
        return outcome

    def fail_many(self, failures: Sequence[Failure]) -> list[FailOutcome | EngineError]:
        replies, partitions = self.call_encoded("fail_many", failures, self._failure_item)
        self.pay_ends(partitions)
        return [reply if isinstance(reply, EngineError) else _fail_outcome(reply) for reply in replies]

    def _failure_item(self, failure: Failure) -> tuple[int, Item]:
        partition, uuid, fence = self.fenced(check_record(failure, Failure).handle)
        check_record(failure.reason, FailureReason)
        try:
            classification = FailureClass(failure.classification)
        except ValueError:
            raise ValidationError(
                "invalid_input", f"{failure.classification!r} is no failure class; there are {', '.join(FailureClass)}."
            ) from None
        after = "" if failure.retry_after is None else str(milliseconds(failure.retry_after, "retry_after"))
        if not isinstance(failure.reason.detail, bytes):
            raise ValidationError("invalid_input", "The detail of a failure must be bytes.")
        return partition, (
            uuid,
            fence,
            classification.value,
            cut(failure.reason.message, MAX_MESSAGE_BYTES),
            failure.reason.detail[:MAX_DETAIL_BYTES],
            after,
            # Draw the number here, so that the stored function depends only on its arguments.
            repr(random.random()),
        )

    def cancel(self, handle: Handle, reason: str = "") -> None:
        partition, uuid, fence = self.fenced(handle)
        self.call("cancel", partition, [uuid, fence, cut(reason, MAX_MESSAGE_BYTES)])
        self.pay_ends({partition})

    def release(self, handle: Handle, delay: timedelta | None = None) -> None:
        _only(self.release_many([handle], delay))

    def release_many(
        self,
        handles: Sequence[Handle],
        delay: timedelta | None = None,
        *,
        if_wanted: bool = False,
        lost: str | None = None,
    ) -> list[bool | TerminalFailed | EngineError]:
        if sum((if_wanted, delay is not None, lost is not None)) > 1:
            raise ValidationError("invalid_input", "Give at most one of delay, if_wanted and lost.")
        moment: Argument = "?" if if_wanted else pack_moment(delay, None, "delay")
        if lost is not None:
            moment = b"!" + cut(lost, MAX_MESSAGE_BYTES)

        def encode(handle: Handle) -> tuple[int, Item]:
            partition, uuid, fence = self.fenced(handle)
            return partition, (uuid, fence, moment)

        replies, partitions = self.call_encoded("release_many", handles, encode)
        self.pay_ends(partitions)
        return [reply if isinstance(reply, EngineError) else _release_outcome(reply) for reply in replies]

    def delay(self, handle: Handle, delay_until: datetime | timedelta) -> None:
        partition, uuid, fence = self.fenced(handle)
        if isinstance(delay_until, timedelta):
            moment = f"+{milliseconds(delay_until, 'delay_until')}"
        else:
            moment = f"@{epoch_ms(delay_until, 'delay_until')}"
        self.call("delay", partition, [uuid, fence, moment])
        self.pay_ends({partition})

    def wait_children(
        self, handle: Handle, need: int | None = None, names: Sequence[str] | None = None, settle: bool = False
    ) -> None:
        partition, uuid, fence = self.fenced(handle)
        if need is not None and (isinstance(need, bool) or not isinstance(need, int) or need < 1):
            raise ValidationError("invalid_input", f"need must be a whole number of at least 1, not {need!r:.100}.")
        wanted = [] if names is None else [check_name(each, "a child's name") for each in as_tuple(names)]
        if len(wanted) > MAX_FLOW_ROWS:
            raise ValidationError("invalid_input", f"One wait names at most {MAX_FLOW_ROWS} children.")
        self.refuse_repeats(wanted, "The name")
        count = "" if need is None else str(need)
        arguments: Item = [uuid, fence, count, "1" if settle else "", new_call_id(), *wanted]
        while self.call("wait_children", partition, arguments)[0] == b"more":
            pass
        self.pay_ends({partition})

    def record_step(self, handle: Handle, name: str, value: bytes) -> StepRecord:
        partition, uuid, fence = self.fenced(handle)
        check_name(name, "a step's name")
        if value is None:
            raise ValidationError("invalid_input", "A step's result must be bytes, not None.")
        self.check_payload(value, "step's result")
        arguments: Item = [uuid, fence, name, value, MAX_STEPS, MAX_JOURNAL_BYTES, new_call_id()]
        reply = self.call("record_step", partition, arguments)
        return StepRecord(value=reply[1], first=reply[0] == b"recorded")


def _only(results: Sequence[T | EngineError]) -> T:
    """Return the result of a batch of one, or raise its error."""
    result = results[0]
    if isinstance(result, EngineError):
        raise result
    return result


def _release_outcome(reply: Reply) -> bool | TerminalFailed:
    return TerminalFailed() if reply[0] == b"failed" else reply[0] != b"kept"


def _fail_outcome(reply: Reply) -> FailOutcome:
    if reply[0] == b"retry":
        return RetryScheduled(delay_until_ms=int(reply[1]))
    return TerminalCancelled() if reply[0] == b"cancelled" else TerminalFailed()


def cut(text: str, limit: int) -> bytes:
    """Encode a text as UTF-8 of at most `limit` bytes, and replace characters that cannot be encoded.

    Raises:
        ValidationError: `invalid_input`, not a str.
    """
    if not isinstance(text, str):
        raise ValidationError("invalid_input", f"A message or reason must be a str, not {type(text).__name__}.")
    data = text.encode("utf-8", "replace")
    return data if len(data) <= limit else data[:limit].decode("utf-8", "ignore").encode()
