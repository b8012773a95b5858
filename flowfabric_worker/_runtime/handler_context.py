"""The context of a handler that a worker runs."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, Final, ParamSpec, TypeVar

from flowfabric_worker._flows.children import Child, GatherEnd, GatherNames, Spawnable
from flowfabric_worker._runtime.budget_uses import BudgetUses
from flowfabric_worker._runtime.frame_appender import Appender
from flowfabric_worker._runtime.frame_writer import FrameWriter
from flowfabric_worker._runtime.gathering import gathered
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.lease_table import LeasedExecution
from flowfabric_worker._steps.durable_calls import (
    RESERVED,
    DurableCalls,
    caller,
    check_durable_name,
    check_step,
    check_step_result,
    encode_step_result,
    idempotency_key_of,
    inside_step,
)
from flowfabric_worker._steps.journal import Journal
from flowfabric_worker._steps.sleeps import Sleeps, end_of_sleep
from flowfabric_worker._steps.step_errors import decode_error, encode_error
from flowfabric_worker._steps.waits import NO_DEFAULT, WAIT, Wait, WaitEnd, encode_shown
from flowfabric_worker.budgets import Reservation
from flowfabric_worker.codec import DecodingError
from flowfabric_worker.context import ClaimKind, ResumedBy, SummaryWriter, TaskContext
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backend.attempts import AttemptTransaction
from flowfabric_worker.engine.errors import ConflictError, EngineError, NotFoundError, StateError, ValidationError
from flowfabric_worker.engine.limits import MAX_DURATION_MS, MAX_FLOW_ROWS, MAX_PAGE_SIZE
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.suspension import ObservedSignals
from flowfabric_worker.engine.waitpoint_tokens import to_bearer
from flowfabric_worker.outcomes import (
    Delay,
    DurableCallError,
    HandlerExit,
    Interrupted,
    Suspend,
    WaitChildren,
)
from flowfabric_worker.signals import Signal, signal_of
from flowfabric_worker.task import step_codec_of

P = ParamSpec("P")
R = TypeVar("R")

# The prefix of the names under which the journal has the exceptions of steps.
_RAISED: Final = f"{RESERVED}raised "

# The journal has the seed of idempotency keys under this name, so a replay that forgets steps gives other keys.
_SEED: Final = f"{RESERVED}seed"
# A waitpoint takes signals until its wait ends or the execution does.
_NO_LIMIT: Final = timedelta(milliseconds=MAX_DURATION_MS)
# The codes of errors about waitpoints that do not mean that the lease is lost, or that another try could help.
_OF_WAITPOINTS: Final = ("waitpoint_not_pending", "pending_waitpoint_expired", "too_many_waitpoints")

# Indexed by the members of `HandleKind`.
_KINDS: Final[tuple[ClaimKind, ...]] = ("local", "fresh", "resumed", "reclaimed")


class HandlerContext(TaskContext):
    """The context that `current()` returns in the handler of an execution.

    Attributes:
        frames: writes what the handler emits.
        opened: the transaction of the handler; None unless it asked for one.
    """

    def __init__(self, execution: LeasedExecution, engine: EngineBackend, appender: Appender, hooks: Hooks) -> None:
        claimed = execution.claimed
        self._execution = execution
        self._engine = engine
        self._calls = DurableCalls()
        self.frames = FrameWriter(execution, appender)
        self.opened: AttemptTransaction | None = None
        self._sleeps = Sleeps()
        self._gathers = GatherNames()
        self._uses = BudgetUses(execution, engine, hooks)
        # Whether the end of the last wait is recorded.
        self._has_looked = False
        # What ended the last suspension, and its signals; None before they are asked for.
        self._signals: tuple[ResumedBy | None, Sequence[Signal]] | None = None
        # The encoded exceptions of steps that the next durable call will record.
        self._raised: dict[str, bytes] = {}
        self._journal = Journal(claimed.journal)
        self.id = execution.key
        self.task = claimed.task
        self.lane = claimed.handle.lane
        self.attempt = claimed.handle.attempt_index
        self.retry_count = claimed.retry_count
        self.kind: ClaimKind = _KINDS[claimed.handle.kind]
        self.tags: Mapping[str, str] = claimed.tags
        self.headers: Mapping[str, str] = claimed.headers

    @property
    def deadline(self) -> datetime | None:  # type: ignore[override]  # computed when it is read, because few handlers do
        moment = self._execution.claimed.deadline_at_ms
        return None if moment is None else moment_of(moment)

    @property
    def cancelled(self) -> threading.Event:
        return self._execution.cancelled

    def check(self) -> None:
        if self._execution.lost is not None:
            raise Interrupted(self._execution.lost)

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        self._check_running()
        self._fenced(lambda: self._engine.progress(self._execution.handle, percent, message))

    def emit(self, value: Any, *, live: bool = False) -> None:
        self._calls.check_not_leaving("emit()")
        self.frames.emit(value, live=live)

    @property
    def summary(self) -> SummaryWriter:
        return SummaryWriter(self._merge)

    def _merge(self, patch: Any) -> None:
        self._calls.check_not_leaving("summary.merge()")
        self.frames.merge(patch)

    # Steps

    def _step(
        self, name: str, place: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        check_step(name, function)
        self._begin(name, place)
        codec = step_codec_of(self._execution.task, function).named(self._execution.claimed.codec)
        if name not in self._journal:
            raised = self._journal.get(_RAISED + name)
            if raised is not None:
                self.frames.skip(name, self._journal)
                raise decode_error(raised, name)
            self.check()
            before = self.frames.count
            try:
                with inside_step(name):
                    value = forks.confined(function, *args, **kwargs)
                check_step_result(name, value)
                encoded = forks.confined(encode_step_result, codec, name, value)
            except Exception as error:
                self._raised[_RAISED + name] = encode_error(error)
                self._keep_emitted(name, before)
                raise
            self._keep_emitted(name, before)
            self._record(name, encoded)
        else:
            self.frames.skip(name, self._journal)
        return forks.confined(codec.decode_result, self._journal[name])

    def use(self, budget: str | None = None, /, **amounts: int) -> None:
        self._check_running()
        self._uses.use(budget, amounts)

    def reserve(
        self, budget: str | None = None, /, *, hold: timedelta = timedelta(minutes=5), **amounts: int
    ) -> Reservation:
        self._check_running()
        return self._uses.reserve(budget, amounts, hold)

    def idempotency_key(self, name: str) -> str:
        if _SEED not in self._journal:
            self._check_running()
            self._record(_SEED, secrets.token_hex(16).encode())
        return idempotency_key_of(self.id, self._journal[_SEED].decode(), name)

    def transaction(self) -> Any:
        if self.opened is not None:
            raise DurableCallError(
                "transaction() was called before in this run, and an execution completes in one transaction: use the "
                "connection that the first call returned."
            )
        self._begin(f"{RESERVED}transaction", caller(), leaves=True)
        self.check()
        try:
            with self.shield():
                self.opened = self._engine.begin_transaction()
        except ValidationError as error:
            raise DurableCallError(str(error)) from error
        return self.opened.connection

    def shield(self) -> AbstractContextManager[None]:
        return self._execution.shield()

    # Waiting

    def sleep(self, until: timedelta | datetime, *, name: str | None = None) -> None:
        if isinstance(until, timedelta) and until < timedelta(0):
            raise ValueError(f"sleep() needs a duration that is not negative, not {until}.")
        # Arguments that are not valid are refused before the call counts.
        Delay(until)
        record = f"{RESERVED}sleep {self._sleeps.name_of(until, name)}"
        self._begin(record, caller(), leaves=True)
        if until == timedelta(0):
            return
        if record not in self._journal:
            # Record the end of the sleep before the delay, so that the next run finds it.
            with self.shield():
                ends_at = end_of_sleep(until, self._engine.server_time())
            self._record(record, str(ends_at).encode())
            raise self._calls.leave(Delay(moment_of(ends_at)))
        ends_at = _read_moment(self._journal[record])
        if self._execution.claimed_at_ms < ends_at:
            # Continue a sleep whose worker was lost before it could delay the execution.
            raise self._calls.leave(Delay(moment_of(ends_at)))

    def wait_for(
        self,
        name: str | Sequence[str],
        *,
        timeout: timedelta | None = None,
        default: Any = NO_DEFAULT,
        need: int | None = None,
        type: Any = Any,  # noqa: A002  it reads best in calls
        shown: Any = None,
    ) -> Any:
        wait, place = Wait.of(name, need, timeout, type, shown), caller()
        for each in wait.names:
            self._begin(WAIT + each, place, leaves=True)
        if not wait.names:
            return {}
        if self._ended(wait) is None:
            self._remember_last_wait()
        record = self._ended(wait)
        if record is None:
            record = self._wait(wait)
        elif wait.shown is not None:
            # The store refuses a document that is not the one that was answered.
            for each in wait.names:
                self._open_waitpoint(each, wait.shown)
        end = WaitEnd.decode(self._journal[record], wait.names[0])
        return forks.confined(wait.result, end, default)

    # Children

    def spawn(self, name: str, task: Spawnable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Child[R]:
        check_durable_name(name, "child")
        self._begin(f"{RESERVED}child {name}", caller())
        request = task.child_request(args, kwargs)
        handle = self._execution.handle
        spawned = self._checked(lambda: self._engine.spawn(handle, name, request.creation, request.detached))
        return Child(name, spawned.execution_id, request.codec)

    def gather(self, *children: Child[Any], settle: bool = False) -> list[Any]:
        for child in children:
            if not isinstance(child, Child):
                raise TypeError(f"gather() takes what spawn() returned, not a {type(child).__name__}.")
        if not children:
            return []
        names = list(dict.fromkeys(child.name for child in children))
        record = f"{RESERVED}{self._gathers.name_of(names, settle=settle)}"
        self._begin(record, caller(), leaves=True)
        if record not in self._journal:
            self.check()
            outcomes = {child.name: self._outcome(child) for child in children}
            end = GatherEnd.of(outcomes, settle=settle)
            if end is None:
                # One wait is for so many; the next run waits for the rest.
                running = [name for name, outcome in outcomes.items() if outcome is None][:MAX_FLOW_ROWS]
                raise self._calls.leave(WaitChildren(running, settle=settle))
            self._record(record, end.encode())
        return gathered(children, GatherEnd.decode(self._journal[record]), self._outcome, settle=settle)

    def _outcome(self, child: Child[Any]) -> ExecutionOutcome | None:
        with self.shield():
            return self._engine.read_outcome(child.id)

    def _ended(self, wait: Wait) -> str | None:
        """Return the name under which the end of a wait is remembered; None if the wait has not ended."""
        return next((WAIT + each for each in wait.names if WAIT + each in self._journal), None)

    def _remember_last_wait(self) -> None:
        """Record the end of the wait that the last suspension was for, because the next suspension replaces it."""
        if self._may_have_waited and not self._has_looked:
            self._remember_end()
            self._has_looked = True

    def _remember_end(self) -> None:
        """Record how the last suspension ended under the name of its wait, if it was one and has ended."""
        pages = self._observed()
        first = next(pages)
        name = first.continuation or ""
        if first.reason is not None and name.startswith(WAIT) and name not in self._journal:
            signals = chain(first.signals, chain.from_iterable(page.signals for page in pages))
            self._record(name, WaitEnd.of(first.reason, signals).encode())

    def _wait(self, wait: Wait) -> str:
        """Return the name of the record of a wait whose signals are there already; otherwise leave the handler."""
        self.check()
        suspend = wait.suspend()
        if not self.take(suspend):
            raise self._calls.leave(suspend)
        self._remember_end()
        return WAIT + wait.names[0]

    def take(self, suspend: Suspend) -> bool:
        """Take the signals that a suspension waits for; return False if they are not there.

        Raises:
            DurableCallError: the suspension is not possible.
        """
        self._signals = None
        taken = self._checked(lambda: self._engine.try_satisfy(self._execution.handle, suspend.request))
        return taken is not None

    def waitpoint(self, name: str, *, shown: Any = None) -> str:
        self._check_running()
        return self._open_waitpoint(check_durable_name(name, "waitpoint"), encode_shown(name, shown))

    def _open_waitpoint(self, name: str, shown: bytes | None) -> str:
        """Return the token of a waitpoint of the execution, which is created if there is none of this name."""
        handle = self._execution.handle
        opened = self._checked(lambda: self._engine.create_waitpoint(handle, name, _NO_LIMIT, shown))
        return to_bearer(handle.execution_id, opened.waitpoint_id, opened.token)

    @property
    def signals(self) -> Sequence[Signal]:
        return self._last_resume()[1]

    @property
    def resume_reason(self) -> ResumedBy | None:
        return self._last_resume()[0]

    def _last_resume(self) -> tuple[ResumedBy | None, Sequence[Signal]]:
        """Return what ended the last suspension, and its signals."""
        if self._signals is None:
            self._check_running()
            pages = list(self._observed())
            reason: ResumedBy | None = pages[0].reason.value if pages[0].reason else None
            self._signals = reason, tuple(signal_of(each) for page in pages for each in page.signals)
        return self._signals

    def _observed(self) -> Iterator[ObservedSignals]:
        """Yield what the last suspension brought, page by page."""
        cursor: str | None = None
        while True:
            page = self._fenced(partial(self._engine.observe_signals, self._execution.handle, cursor, MAX_PAGE_SIZE))
            yield page
            cursor = page.next_cursor
            if cursor is None:
                return

    @property
    def _may_have_waited(self) -> bool:
        """False in the first run of an execution, which cannot have been suspended."""
        return self.attempt > 0 or self.kind != "fresh"

    def _keep_emitted(self, name: str, before: int) -> None:
        """Record how many frames there are after a step that emitted some; the store has them before the step."""
        if self.frames.count > before:
            with self.shield():
                count = self.frames.flush()
            self._record(self.frames.record_of(name), count)

    # What is remembered

    @property
    def leaving(self) -> HandlerExit | None:
        """The exception by which a durable call left the handler; None if no call did."""
        return self._calls.leaving

    def keep_raised(self) -> None:
        """Record the exceptions of steps that the handler caught, so that later runs raise them again."""
        while self._raised:
            name, error = self._raised.popitem()
            self._record(name, error)

    def _begin(self, name: str, place: str, *, leaves: bool = False) -> None:
        """Check that a durable call may be made here, and record the exceptions of earlier steps."""
        self._calls.begin(name, place, leaves=leaves)
        self._check_running()
        if self.opened is not None:
            raise DurableCallError(
                f"The durable call {name.removeprefix(RESERVED)!r} at {place} was made after transaction(): it is "
                "stored at once, and would stand if the transaction is rolled back. Make it before."
            )
        self.keep_raised()

    def _check_running(self) -> None:
        if self._execution.ended:
            raise DurableCallError(f"The attempt of {self.id} has ended: a thread that it started cannot continue it.")

    def _record(self, name: str, value: bytes) -> None:
        """Record a result under a name; the first record of a name stands.

        Raises:
            DurableCallError: the journal is full.
        """
        self._journal.check_fits(name, value)
        record = self._fenced(lambda: self._engine.record_step(self._execution.handle, name, value))
        self._journal.keep(name, record.value)

    def _fenced(self, call: Callable[[], R]) -> R:
        """Make a call to the store under this lease, shielded from interruption; interrupt the handler on its loss."""
        with self.shield():
            try:
                return call()
            except StateError as error:
                if error.code in _OF_WAITPOINTS:
                    raise
                self._execution.lose("lease lost")
                raise Interrupted(str(error)) from error

    def _checked(self, call: Callable[[], R]) -> R:
        """Make a call about waitpoints under this lease.

        Raises:
            DurableCallError: the store refused it for good.
        """
        try:
            return self._fenced(call)
        except EngineError as error:
            if error.code in _OF_WAITPOINTS or isinstance(error, ConflictError | NotFoundError | ValidationError):
                raise DurableCallError(str(error)) from error
            raise


def _read_moment(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise DecodingError(f"The record of a sleep is damaged: {data!r:.50} is not a time in ms.") from None
