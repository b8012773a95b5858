"""The context of a handler that a worker runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar

from flowfabric_worker._runtime.frame_appender import Appender
from flowfabric_worker._runtime.frame_buffer import FrameBuffer
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
from flowfabric_worker._streams.frame_values import encode_patch, encode_value, frame_type_of
from flowfabric_worker.codec import DecodingError, TaskCodec
from flowfabric_worker.context import ClaimKind, SummaryWriter, TaskContext
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError, StateError
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.engine.types.streams import StreamMode
from flowfabric_worker.outcomes import Delay, DurableCallError, HandlerExit, Interrupted
from flowfabric_worker.task import step_codec_of

P = ParamSpec("P")
R = TypeVar("R")

# The journal has the exception of a step under this prefix and the step's name.
_RAISED: Final = f"{RESERVED}raised "

# The journal has the number of frames after a step that emitted some, under this prefix and the step's name.
_EMITTED: Final = f"{RESERVED}emitted "

# Two threads of a handler may emit its first value; few handlers emit, so one lock serves all.
_creating: Final = threading.Lock()

# In the order of `HandleKind`, whose members are indexes into this.
_KINDS: Final[tuple[ClaimKind, ...]] = ("local", "fresh", "resumed", "reclaimed")


class HandlerContext(TaskContext):
    """The context that `current()` returns in the handler of an execution."""

    def __init__(self, execution: LeasedExecution, engine: EngineBackend, appender: Appender) -> None:
        claimed = execution.claimed
        self._appender = appender
        self._codec: TaskCodec | None = None
        self._has_ended = False
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

    def emit(self, value: Any, *, live: bool = False) -> None:
        codec = self._codec
        if codec is None:
            codec = self._codec = self._execution.task.codec.named(self._execution.claimed.codec)
        payload = forks.confined(encode_value, codec, self.task, value)
        self._append(payload, StreamMode.BEST_EFFORT_LIVE if live else StreamMode.DURABLE, frame_type_of(codec))

    @property
    def summary(self) -> SummaryWriter:
        return SummaryWriter(self._merge)

    def _merge(self, patch: Any) -> None:
        self._append(encode_patch(self.task, patch), StreamMode.DURABLE_SUMMARY, "patch")

    def _append(self, payload: bytes, mode: StreamMode, frame_type: str) -> None:
        frames = self._execution.frames or self._first_frames()
        with self.shield():
            frames.put(payload, mode, frame_type)

    def _first_frames(self) -> FrameBuffer:
        """Return the buffer for the frames of this attempt, which is made for the first one."""
        with _creating:
            frames = self._execution.frames
            if frames is None:
                frames = self._execution.frames = FrameBuffer(self._execution, self._appender.send)
        if self._has_ended:
            frames.close()
        return frames

    def end_frames(self) -> EngineError | None:
        """Refuse further frames, and wait until the store has the emitted ones, or the lease is lost.

        Returns:
            The error by which the store refused a frame for good; None if it refused none.
        """
        # A thread of the handler may emit now: it sees this mark, or this thread sees its buffer.
        self._has_ended = True
        frames = self._execution.frames
        if frames is None:
            return None
        frames.close()
        with contextlib.suppress(EngineError, Interrupted):
            frames.flush()
        return frames.failure

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        check_step(name, function)
        self._begin(name, caller())
        codec = step_codec_of(self._execution.task, function).named(self._execution.claimed.codec)
        if name not in self._journal:
            raised = self._journal.get(_RAISED + name)
            if raised is not None:
                self._skip_emitted(name)
                raise decode_error(raised, name)
            self.check()
            before = self._count_emitted()
            try:
                with inside_step(name):
                    value = forks.confined(function, *args, **kwargs)
                check_step_result(name, value)
                encoded = forks.confined(codec.encode_result, value)
            except Exception as error:
                self._raised[_RAISED + name] = encode_error(error)
                self._keep_emitted(name, before)
                raise
            self._keep_emitted(name, before)
            self._record(name, encoded)
        else:
            self._skip_emitted(name)
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
        ends_at = _read_number(self._journal[name], "a sleep", "a time in ms")
        if self._execution.claimed_at_ms < ends_at:
            # The worker was lost before it could delay the execution, so the sleep continues.
            raise self._calls.leave(Delay(moment_of(ends_at)))

    # A step that is not run again emits nothing again, so the numbers of its frames are left out.

    def _count_emitted(self) -> int:
        frames = self._execution.frames
        return 0 if frames is None else frames.count

    def _keep_emitted(self, name: str, before: int) -> None:
        """Record how many frames there are after a step that emitted some; the store has them before the step."""
        frames = self._execution.frames
        if frames is not None and frames.count > before:
            with self.shield():
                frames.flush()
            self._record(_EMITTED + name, str(frames.count).encode())

    def _skip_emitted(self, name: str) -> None:
        emitted = self._journal.get(_EMITTED + name)
        if emitted is not None:
            (self._execution.frames or self._first_frames()).skip_to(
                _read_number(emitted, f"the step {name!r}", "a number")
            )

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


def _read_number(data: bytes, what: str, kind: str) -> int:
    try:
        return int(data)
    except ValueError:
        raise DecodingError(f"The record of {what} is damaged: {data!r:.50} is not {kind}.") from None
