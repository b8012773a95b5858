"""A stored record, read strictly: every value is checked, and a damaged one is named."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, TypeVar

from flowfabric_worker.engine.errors import StateError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId
from flowfabric_worker.engine.limits import DEFAULT_RETENTION_MS
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.reads import (
    AttemptSummary,
    ExecutionInfo,
    ExecutionSnapshot,
    ExecutionSummary,
    LeaseSummary,
    PastAttempt,
    SuspensionInfo,
)
from flowfabric_worker.engine.types.states import (
    BlockingReason,
    LifecyclePhase,
    NewerPhaseError,
    PublicState,
    StateVector,
    TerminalOutcome,
)
from flowfabric_worker.engine.wire import (
    DAMAGE,
    Attempt,
    WorkClass,
    decode_attempt,
    decode_class,
    decode_fence,
    decode_policy,
    read_optional,
    unpack,
    unpack_text,
    unpack_texts,
)

T = TypeVar("T")
Offer = tuple[frozenset[str], frozenset[str], frozenset[str]]


class Record:
    """The fields of one execution as they are stored."""

    SUMMARY_FIELDS: ClassVar = ("state", "class", "priority", "created", "tags")
    FIELDS: ClassVar = (
        *SUMMARY_FIELDS, "mutated", "policy", "codec", "headers", "creator", "idempotency_key", "flow", "fence",
        "holder", "expires", "timeout_at", "deadline", "delay_until", "suspended_at", "suspended_until", "dedup_until",
        "reserved_for", "attempt", "attempts", "retry_count", "reclaim_count", "replay_count", "steps", "started",
        "ended", "progress_percent", "progress_message", "error", "error_class", "error_detail", "cancel_reason",
        "cancelled_by",
    )  # fmt: skip

    def __init__(self, execution_id: ExecutionId, fields: Sequence[str], values: Sequence[bytes | None] | None) -> None:
        self.execution_id = execution_id
        # Without values, the key of the record holds another type.
        self._values = None if values is None else dict(zip(fields, values, strict=True))

    # Single values

    def raw(self, field: str) -> bytes | None:
        """Return a value as it is stored, or None if it is absent or empty."""
        if self._values is None:
            raise self.corruption("record", "its key holds another type of value")
        return self._values[field] or None

    def _read(self, field: str, read: Callable[[bytes], T]) -> T | None:
        value = self.raw(field)
        if value is None:
            return None
        try:
            return read(value)
        except NewerPhaseError:
            raise StateError("written_by_newer_release", execution_id=str(self.execution_id)) from None
        except DAMAGE as error:
            raise self.corruption(field, str(error)) from None

    def _needed(self, field: str, read: Callable[[bytes], T]) -> T:
        value = self._read(field, read)
        if value is None:
            raise self.corruption(field, "is missing")
        return value

    def corruption(self, field: str, problem: str) -> ValidationError:
        """Return the error that names a damaged field."""
        return ValidationError(
            "corruption", f"{self.execution_id}: {field}: {problem}.", execution_id=str(self.execution_id), field=field
        )

    def text(self, field: str) -> str | None:
        """Return a field as text, or None if it is absent."""
        return self._read(field, bytes.decode)

    def number(self, field: str) -> int | None:
        """Return a field as a whole number, or None if it is absent."""
        return self._read(field, int)

    def needed_number(self, field: str) -> int:
        """Return a field as a whole number; every record must have it."""
        return self._needed(field, int)

    def count(self, field: str) -> int:
        """Return a field as a whole number, 0 if it is absent."""
        return self.number(field) or 0

    def state(self) -> StateVector:
        """Return the six dimensions of the state."""
        return self._needed("state", lambda data: StateVector.parse(data.decode()))

    def work_class(self) -> WorkClass:
        """Return namespace, lane, task and what a worker must have."""
        return self._needed("class", decode_class)

    def tags(self) -> dict[str, str]:
        """Return the tags."""
        return self._read("tags", unpack_texts) or {}

    def headers(self) -> dict[str, str]:
        """Return the headers."""
        return self._read("headers", unpack_texts) or {}

    def result(self) -> bytes | None:
        """Return the result; None and `b""` differ."""
        return self._read("result", _marked)

    # Compound values

    def _fence(self) -> tuple[str, int, str]:
        return self._needed("fence", decode_fence)

    def _attempt(self) -> Attempt | None:
        return self._read("attempt", decode_attempt)

    def attempt(self) -> AttemptSummary | None:
        """Return the present or the last attempt."""
        now = self._attempt()
        return None if now is None else AttemptSummary(attempt_id=self._fence()[2], attempt_index=now.index)

    def attempt_count(self) -> int:
        """Return how many attempts have begun."""
        now = self._attempt()
        return 0 if now is None else now.index + 1

    def started(self) -> int | None:
        """Return when the first attempt began."""
        now = self._attempt()
        return self.number("started") or (now.started_at_ms if now else None)

    def changed(self) -> int:
        """Return when the record last changed, as far as it is recorded, in ms."""
        now = self._attempt()
        moments = [self._needed("created", int), *(self.number(name) for name in ("mutated", "ended"))]
        if now is not None:
            moments += [now.started_at_ms, now.ended_at_ms]
        return max(moment for moment in moments if moment is not None)

    def kept_until(self) -> int | None:
        """Return until when an ended execution is kept, in ms."""
        ended = self.number("ended")
        if ended is None:
            return None
        retention = self._policy(self.work_class()).retention
        kept = DEFAULT_RETENTION_MS if retention is None else milliseconds(retention, "retention")
        return max(ended + kept, self.number("dedup_until") or 0)

    def lease(self) -> LeaseSummary | None:
        """Return the lease of an active execution."""
        if self.state().lifecycle_phase is not LifecyclePhase.ACTIVE:
            return None
        epoch = self._fence()[1]
        worker_id, instance = self._needed("holder", _worker_of)
        return LeaseSummary(
            lease_epoch=epoch,
            worker_id=worker_id,
            worker_instance_id=instance,
            expires_at_ms=self._needed("expires", int),
        )

    def past_attempts(self) -> tuple[PastAttempt, ...]:
        """Return the attempts before the present one, oldest first."""
        return self._read("attempts", lambda data: tuple(_past_attempt(entry) for entry in unpack(data))) or ()

    def _when(self, field: str, applies: bool) -> int | None:
        """Return a moment that has a meaning in some states only."""
        return self.number(field) if applies else None

    def blocking_detail(self) -> str | None:
        """Return what the blocking reason refers to, in words."""
        state = self.state()
        if state.public_state is PublicState.DELAYED:
            return f"delayed until {self.number('delay_until')}"
        return None

    # Views

    def snapshot(self, waitpoint: WaitpointId | None) -> ExecutionSnapshot:
        """Return what describe_execution returns; `waitpoint` is the one that the execution waits at."""
        state, work_class = self.state(), self.work_class()
        return ExecutionSnapshot(
            execution_id=self.execution_id,
            flow_id=self.text("flow"),
            lane=work_class.lane,
            namespace=work_class.namespace,
            task=work_class.task,
            public_state=state.public_state,
            blocking_reason=state.blocking_reason.value,
            blocking_detail=self.blocking_detail(),
            current_attempt=self.attempt(),
            current_lease=self.lease(),
            current_waitpoint=waitpoint,
            created_at_ms=self._needed("created", int),
            last_mutation_at_ms=self.changed(),
            total_attempt_count=self.attempt_count(),
            tags=self.tags(),
            headers=self.headers(),
        )

    def info(self, suspension: SuspensionInfo | None) -> ExecutionInfo:
        """Return what read_execution_info returns; `suspension` is the one that the execution is in."""
        state, work_class = self.state(), self.work_class()
        return ExecutionInfo(
            **self._moments(state),
            **self._counts(),
            **self._failure(),
            execution_id=self.execution_id,
            namespace=work_class.namespace,
            lane=work_class.lane,
            task=work_class.task,
            priority=self._needed("priority", int),
            state=state,
            public_state=state.public_state,
            creator=self.text("creator") or "",
            codec=self.text("codec") or "",
            idempotency_key=self._read("idempotency_key", _key_of),
            policy=self._policy(work_class),
            tags=self.tags(),
            headers=self.headers(),
            suspension=suspension,
            current_attempt=self.attempt(),
            current_lease=self.lease(),
            past_attempts=self.past_attempts(),
            progress_percent=self.number("progress_percent"),
            progress_message=self.text("progress_message"),
            reserved_for=self.text("reserved_for"),
            flow_id=self.text("flow"),
        )

    def _moments(self, state: StateVector) -> dict[str, Any]:
        """Return the moments of an `ExecutionInfo`, in ms; None if a moment has no meaning in the state."""
        ended = state.lifecycle_phase is LifecyclePhase.TERMINAL
        return {
            "created_at_ms": self._needed("created", int),
            "last_mutation_at_ms": self.changed(),
            "started_at_ms": self.started(),
            "ended_at_ms": self._when("ended", ended),
            "delay_until_ms": self._when("delay_until", state.public_state is PublicState.DELAYED),
            "deadline_at_ms": self.number("deadline"),
            "timeout_at_ms": self._when("timeout_at", state.lifecycle_phase is LifecyclePhase.ACTIVE),
            "remove_at_ms": self.kept_until() if ended and not self.raw("flow") else None,
            "suspended_at_ms": self.number("suspended_at"),
            "suspended_until_ms": self.number("suspended_until"),
        }

    def _counts(self) -> dict[str, Any]:
        """Return the counters of an `ExecutionInfo`."""
        return {
            "total_attempt_count": self.attempt_count(),
            "retry_count": self.count("retry_count"),
            "reclaim_count": self.count("reclaim_count"),
            "replay_count": self.count("replay_count"),
            "step_count": self.count("steps"),
        }

    def _failure(self) -> dict[str, Any]:
        """Return the last error of an `ExecutionInfo`, and why it was cancelled."""
        return {
            "error": self.text("error"),
            "error_class": self.text("error_class"),
            "error_detail": self.raw("error_detail") or b"",
            "cancel_reason": self.text("cancel_reason"),
            "cancelled_by": self.text("cancelled_by"),
        }

    def outcome(self) -> ExecutionOutcome | None:
        """Return how the execution ended, or None if it has not."""
        ending = self.state().terminal_outcome
        if ending is TerminalOutcome.NONE:
            return None
        outcome = functools.partial(
            ExecutionOutcome, execution_id=self.execution_id, outcome=ending, codec=self.text("codec") or ""
        )
        if ending is TerminalOutcome.SUCCESS:
            return outcome(result=self.result())
        cancelled = self.text("cancel_reason") if ending is TerminalOutcome.CANCELLED else None
        return outcome(
            error=cancelled or self.text("error") or "",
            error_class=self.text("error_class"),
            detail=self.raw("error_detail") or b"",
        )

    def outcome_of_edge(self, result: TerminalOutcome) -> ExecutionOutcome:
        """Return what an edge passes on: the result of a success, or how else the execution ended.

        Args:
            result: what the edge says; the execution may have been replayed since.
        """
        codec = self.text("codec") or ""
        if result is TerminalOutcome.SUCCESS:
            return ExecutionOutcome(execution_id=self.execution_id, outcome=result, codec=codec, result=self.result())
        return self.outcome() or ExecutionOutcome(execution_id=self.execution_id, outcome=result, codec=codec)

    def _policy(self, work_class: WorkClass) -> ExecutionPolicy:
        return self._read("policy", lambda data: decode_policy(data, work_class)) or decode_policy(None, work_class)

    def explain(
        self, *, now: int, paused: bool, place: int | None, held: int, workers: Sequence[Offer], gate: str | None
    ) -> tuple[str, str]:
        """Explain why the execution is not running, as a code and a sentence.

        Args:
            now: the moment of the store's clock, in ms.
            paused: whether the lane is paused.
            place: how many executions of the class are before it; None if it is not ready.
            held: how many ready executions the class has.
            workers: lanes, tasks and capabilities of each worker that is alive.
            gate: what closed a gate of the class, as a sentence; None if none is closed.
        """
        state = self.state()
        if state.public_state.is_terminal:
            return "ended", f"It ended {state.public_state} at {moment(self.number('ended') or 0)}."
        if state.public_state is PublicState.DELAYED:
            wait = span((self.number("delay_until") or now) - now)
            why = {
                BlockingReason.WAITING_FOR_RETRY_BACKOFF: f"Attempt {self.attempt_count()} failed "
                f"({self.text('error')}); it is tried again in {wait}.",
            }
            return "delayed", why.get(state.blocking_reason, f"It is delayed; it may start in {wait}.")
        lease = self.lease()
        if lease is not None and place is None:
            return _explain_lease(lease, now)
        if place is None:
            return "reserved", f"It is set aside for the worker {self.text('reserved_for')}."
        if paused:
            return "lane_paused", f"Its lane {self.work_class().lane!r} is paused; resume the lane."
        if gate is not None:
            return "rate_limited", gate
        return self._explain_ready(place, held, workers)

    def _explain_ready(self, place: int, held: int, workers: Sequence[Offer]) -> tuple[str, str]:
        """Explain why no worker has claimed a ready execution: the first thing that the workers alive lack."""
        work_class = self.work_class()
        serving = [worker for worker in workers if work_class.lane in worker[0]]
        knowing = [worker for worker in serving if work_class.task in worker[1]]
        able = [worker for worker in knowing if work_class.fits(worker[2], None)]
        if not workers:
            return "no_worker", "No worker is alive; start one."
        if not serving:
            return "no_worker", f"None of the {len(workers)} living workers serves the lane {work_class.lane!r}."
        if not knowing:
            return "no_handler", f"No living worker of the lane {work_class.lane!r} knows the task {work_class.task!r}."
        if not able:
            requires = ", ".join(filter(None, (*work_class.capabilities, *work_class.budgets, work_class.quota)))
            return "no_capable_worker", f"No living worker of the lane offers everything that it needs ({requires})."
        return "queued", f"It waits for a free worker; {place} of {held} of its kind go before it."


def _explain_lease(lease: LeaseSummary, now: int) -> tuple[str, str]:
    """Explain that an execution is running, or that its lease has expired."""
    holder = lease.worker_instance_id
    if lease.expires_at_ms <= now:
        return "lapsed", f"Its lease at {holder} ran out; the next claim or upkeep makes it ready."
    return "running", f"It runs at {holder}; its lease holds for {span(lease.expires_at_ms - now)}."


def moment(milliseconds: int) -> str:
    """Return a moment of the store's clock as text."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(" ", "seconds")


def span(milliseconds: int) -> str:
    """Return a duration as text, such as 0.5 s or 1:30:00."""
    seconds = max(0, milliseconds) / 1000
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def summary_of(execution_id: ExecutionId, values: Sequence[bytes | None] | None) -> ExecutionSummary:
    """Return a row of a listing; a record that cannot be read becomes a row that says why."""
    record = Record(execution_id, Record.SUMMARY_FIELDS, values)
    try:
        work_class = record.work_class()
        return ExecutionSummary(
            execution_id=execution_id,
            lane=work_class.lane,
            task=work_class.task,
            public_state=_state_known_here(record),
            priority=record.needed_number("priority"),
            created_at_ms=record.needed_number("created"),
            tags=record.tags(),
        )
    except ValidationError as error:
        return ExecutionSummary(execution_id=execution_id, corruption=str(error))


def _state_known_here(record: Record) -> PublicState | None:
    """Return the state of an execution, or None if a newer release put it into a phase of its own."""
    try:
        return record.state().public_state
    except StateError:
        return None


def _key_of(data: bytes) -> str:
    _, _, key = unpack_text(data)[:3]
    return key


def _worker_of(data: bytes) -> tuple[str, str]:
    worker_id, instance, *_ = unpack_text(data)
    return worker_id, instance


def _marked(data: bytes) -> bytes | None:
    if not data.startswith(b"="):
        raise ValueError("it lacks its mark")
    return read_optional(data)


def _past_attempt(entry: bytes) -> PastAttempt:
    index, kind, ending, started, ended, holder, error_class, error = unpack(entry)[:8]
    return PastAttempt(
        attempt_index=int(index),
        attempt_type=kind.decode(),
        ending=ending.decode(),
        started_at_ms=int(started),
        ended_at_ms=int(ended),
        worker_instance_id=_worker_of(holder)[1] if holder else "",
        error_class=error_class.decode() or None,
        # The text was cut after a number of bytes, which may be inside a character.
        error=error.decode("utf-8", "ignore") or None,
    )
