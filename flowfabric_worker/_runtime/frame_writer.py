"""Writes the output of a handler to its stream: values, and patches of the summary document."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final

from flowfabric_worker._runtime.frame_appender import Appender
from flowfabric_worker._runtime.frame_buffer import FrameBuffer
from flowfabric_worker._runtime.lease_table import LeasedExecution
from flowfabric_worker._steps.durable_calls import RESERVED
from flowfabric_worker._streams.frame_values import encode_patch, encode_value, frame_type_of
from flowfabric_worker.codec import DecodingError, TaskCodec
from flowfabric_worker.engine import forks
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.streams import StreamMode
from flowfabric_worker.outcomes import DurableCallError, Interrupted

# Guards the creation of buffers, because two threads of a handler may emit its first value. One lock serves all.
_creating: Final = threading.Lock()
# The number of frames of an attempt has fewer digits than this.
_MOST_DIGITS: Final = 12


class FrameWriter:
    """Write the frames of one attempt; its methods raise what `TaskContext.emit` raises.

    Args:
        execution: the execution whose handler writes.
        appender: sends the frames.
    """

    __slots__ = ("_appender", "_codec", "_depth", "_execution", "_has_ended")

    def __init__(self, execution: LeasedExecution, appender: Appender) -> None:
        self._execution = execution
        self._appender = appender
        self._codec: TaskCodec | None = None
        self._has_ended = False
        self._depth = forks.depth()

    def emit(self, value: Any, *, live: bool) -> None:
        """Queue a value."""
        codec = self._codec
        if codec is None:
            codec = self._codec = self._execution.task.codec.named(self._execution.claimed.codec)
        payload = forks.confined(encode_value, codec, self._execution.task.name, value)
        self._put(payload, StreamMode.BEST_EFFORT_LIVE if live else StreamMode.DURABLE, frame_type_of(codec))

    def merge(self, patch: Any) -> None:
        """Queue a patch of the summary document."""
        self._put(encode_patch(self._execution.task.name, patch), StreamMode.DURABLE_SUMMARY, "patch")

    def end(self) -> EngineError | None:
        """Refuse further frames, and wait until the store has the emitted ones, or the lease is lost.

        Returns:
            The error by which the store refused a frame for good; None if it refused none.
        """
        # Set the mark first: a thread of the handler that emits now sees it, or this thread sees its buffer.
        self._has_ended = True
        frames = self._execution.frames
        if frames is None:
            return None
        frames.close()
        with contextlib.suppress(EngineError, Interrupted):
            frames.flush()
        # Break the circular reference, which only the garbage collector would free.
        self._execution.frames = None
        return frames.failure

    def _put(self, payload: bytes, mode: StreamMode, frame_type: str) -> None:
        if forks.depth() != self._depth:
            raise DurableCallError("A frame was emitted in a forked process: emit it in the handler itself.")
        interruption = self._execution.interruption
        if interruption is None:
            self._buffer().put(payload, mode, frame_type)
            return
        # Shield the change, so that an interruption does not leave the buffer half changed.
        with interruption.shield():
            self._buffer().put(payload, mode, frame_type)

    def _buffer(self) -> FrameBuffer:
        """Return the buffer of the attempt's frames, which is created for the first frame."""
        frames = self._execution.frames
        if frames is not None:
            return frames
        with _creating:
            frames = self._execution.frames
            if frames is None:
                frames = self._execution.frames = FrameBuffer(self._execution, self._appender.send)
        if self._has_ended:
            frames.close()
        return frames

    # A step that is not run again emits nothing again, so that the numbers of its frames are skipped.

    @property
    def count(self) -> int:
        """The number of frames of the attempt so far."""
        frames = self._execution.frames
        return 0 if frames is None else frames.count

    def record_of(self, step: str) -> str:
        """Return the name in the journal for the number of frames after a step that emitted some."""
        # Name the attempt, so that a replay need not forget this record: each attempt numbers its frames from 0.
        return f"{RESERVED}out{self._execution.handle.attempt_index} {step}"

    def flush(self) -> bytes:
        """Wait until the store has every frame; return their number, for the journal."""
        frames = self._buffer()
        frames.flush()
        return str(frames.count).encode()

    def skip(self, step: str, journal: Mapping[str, bytes]) -> None:
        """Skip the numbers of the frames that a step emitted in an earlier run of this attempt."""
        emitted = journal.get(self.record_of(step))
        if emitted is None:
            return
        if not emitted.isdigit() or len(emitted) > _MOST_DIGITS:
            raise DecodingError(
                f"The record of what the step {step!r} emitted is damaged: {emitted!r:.50} is not a number of frames."
            )
        self._buffer().skip_to(int(emitted))
