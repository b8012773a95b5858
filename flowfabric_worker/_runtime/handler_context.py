"""The context of a handler that a worker runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Final, ParamSpec, TypeVar

from flowfabric_worker._runtime.lease_table import LeasedExecution
from flowfabric_worker._steps.durable_calls import (
    RESERVED,
    DurableCalls,
    caller,
    check_step,
    check_step_result,
    inside_step,
)
from flowfabric_worker._steps.step_errors import decode_error, encode_error
from flowfabric_worker.codec import DecodingError
from flowfabric_worker.context import ClaimKind, TaskContext
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.outcomes import Delay, DurableCallError, HandlerExit, Interrupted
from flowfabric_worker.task import step_codec_of

P = ParamSpec("P")
R = TypeVar("R")

# The journal has the exception of a step under this prefix and the step's name.
_RAISED: Final = f"{RESERVED}raised "

# In the order of `HandleKind`, whose members are indexes into this.
_KINDS: Final[tuple[ClaimKind, ...]] = ("local", "fresh", "resumed", "reclaimed")


class HandlerContext(TaskContext):
    """The context that `current()` returns in the handler of an execution."""

    def __init__(self, execution: LeasedExecution, engine: EngineBackend) -> None:
        claimed = execution.claimed
        self._execution = execution
        self._engine = engine
        self._calls = DurableCalls()
        self._sleeps = 0
        # The encoded exceptions of steps that are not recorded yet: the next durable call records them.
        self._raised: dict[str, bytes] = {}
        self._journal: dict[str, bytes] = dict(claimed.journal) if claimed.journal else {}
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

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        check_step(name, function)
        self._begin(name, caller())
        codec = step_codec_of(self._execution.task, function).named(self._execution.claimed.codec)
        if name not in self._journal:
            raised = self._journal.get(_RAISED + name)
            if raised is not None:
                raise decode_error(raised, name)
            self.check()
            try:
                with inside_step(name):
                    value = forks.confined(function, *args, **kwargs)
                check_step_result(name, value)
                encoded = forks.confined(codec.encode_result, value)
            except Exception as error:
                self._raised[_RAISED + name] = encode_error(error)
                raise
            self._record(name, encoded)
        result: R = forks.confined(codec.decode_result, self._journal[name])
        return result

    def shield(self) -> AbstractContextManager[None]:
        interruption = self._execution.interruption
        return nullcontext() if interruption is None else interruption.shield()

    def sleep(self, duration: timedelta) -> None:
        pause = Delay(duration)
        name = f"{RESERVED}sleep {self._sleeps + 1}"
        self._begin(name, caller(), leaves=True)
        self._sleeps += 1
        if name not in self._journal:
            # The end of the sleep is recorded before the delay, so that the next run finds it.
            with self.shield():
                ends_at = self._engine.server_time() + duration // timedelta(milliseconds=1)
            self._record(name, str(ends_at).encode())
            raise self._calls.leave(pause)
        ends_at = _read_moment(self._journal[name])
        if self._execution.claimed_at_ms < ends_at:
            # The worker was lost before it could delay the execution, so the sleep continues.
            raise self._calls.leave(Delay(moment_of(ends_at)))

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
        self.keep_raised()

    def _check_running(self) -> None:
        if self._execution.ended:
            raise DurableCallError(f"The attempt of {self.id} has ended: a thread that it started cannot continue it.")

    def _record(self, name: str, value: bytes) -> None:
        record = self._fenced(lambda: self._engine.record_step(self._execution.handle, name, value))
        self._journal[name] = record.value

    def _fenced(self, call: Callable[[], R]) -> R:
        """Make a call to the store under this lease, shielded from interruption; interrupt the handler on its loss."""
        with self.shield():
            try:
                return call()
            except StateError as error:
                self._execution.lose("lease lost")
                raise Interrupted(str(error)) from error


def _read_moment(data: bytes) -> int:
    try:
        return int(data)
    except ValueError:
        raise DecodingError(f"The record of a sleep is damaged: {data!r:.50} is not a time in ms.") from None
