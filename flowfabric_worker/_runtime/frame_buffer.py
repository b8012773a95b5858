"""The frames of one attempt that the store does not have yet."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MIB
from flowfabric_worker.engine.types.streams import Frame, StreamMode
from flowfabric_worker.outcomes import DurableCallError, Interrupted

if TYPE_CHECKING:
    from flowfabric_worker._runtime.lease_table import LeasedExecution

# The most frames of a handler, and the most bytes of them, without acknowledgement; beyond it the handler waits.
MAX_FRAMES: Final = 1000
MAX_BYTES: Final = MIB
# Patches of the summary and other frames go out apart, one behind the other, so a call takes so many runs of a kind.
MAX_RUNS: Final = 4


class FrameBuffer:
    """The frames of one attempt that the store has not acknowledged, in order; threads may share it.

    Each frame gets the next number of the attempt, so that frames which an earlier run of the attempt has appended are
    not appended twice.

    Args:
        execution: the execution whose handler emits the frames.
        send: called with this buffer when it has frames to send and was empty before.

    Attributes:
        failure: the error by which the store refused a frame for good; None if it refused none.
        count: the number of frames that the handler has emitted so far, and so the number of the next one.
        differs: True if a frame differs from the one that an earlier run of the attempt has appended in its place.
    """

    __slots__ = (
        "_bytes", "_changed", "_closed", "_frames", "_send", "count", "differs", "execution", "failure",
    )  # fmt: skip

    def __init__(self, execution: LeasedExecution, send: Callable[[FrameBuffer], None]) -> None:
        self.execution = execution
        self.failure: EngineError | None = None
        self.count = 0
        self.differs = False
        self._send = send
        self._changed = threading.Condition()
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._closed = False

    # For the handler

    def put(self, payload: bytes, mode: StreamMode, frame_type: str) -> None:
        """Queue a frame; wait while too many frames of the attempt are not acknowledged.

        Raises:
            EngineError: the store refused an earlier frame for good.
            Interrupted: the result of the attempt will not count any more.
            DurableCallError: the attempt has ended.
        """
        size = len(payload)
        with self._changed:
            while self._is_open() and self._frames and self._is_full(size):
                self._changed.wait()
            frame = Frame(payload=payload, mode=mode, frame_type=frame_type, seq=self.count)
            self.count += 1
            was_empty = not self._frames
            self._frames.append(frame)
            self._bytes += size
        if was_empty:
            self._send(self)

    def flush(self) -> None:
        """Wait until the store has acknowledged every frame.

        Raises:
            EngineError: the store refused a frame for good.
            Interrupted: the result of the attempt will not count any more.
        """
        with self._changed:
            while self._counts() and self._frames:
                self._changed.wait()

    def close(self) -> None:
        """Refuse further frames, because the handler has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def skip_to(self, count: int) -> None:
        """Skip the numbers below `count`, which belong to frames of a step that is not run again."""
        with self._changed:
            self.count = max(self.count, count)

    def _is_open(self) -> bool:
        """Return True if a frame may be queued, or raise the error that forbids it."""
        if self._closed:
            raise DurableCallError(
                f"The attempt of {self.execution.key} has ended: a thread that it started cannot continue it."
            )
        return self._counts()

    def _counts(self) -> bool:
        """Return True if frames are still appended, or raise the error that ended that."""
        if self.failure is not None:
            raise self.failure
        if self.execution.lost is not None:
            raise Interrupted(self.execution.lost)
        return True

    def _is_full(self, size: int) -> bool:
        return len(self._frames) >= MAX_FRAMES or self._bytes + size > MAX_BYTES

    # For other threads

    def first(self, most: int) -> list[Frame]:
        """Return the first frames without acknowledgement, as many as a few round trips can send."""
        frames: list[Frame] = []
        runs, was_patch = 0, None
        with self._changed:
            for frame in itertools.islice(self._frames, most):
                is_patch = frame.mode is StreamMode.DURABLE_SUMMARY
                if is_patch is not was_patch:
                    runs, was_patch = runs + 1, is_patch
                if runs > MAX_RUNS:
                    break
                frames.append(frame)
        return frames

    def acknowledge(self, count: int) -> bool:
        """Drop the first frames, which the store has; return True if there are more to send."""
        with self._changed:
            for _ in range(count):
                self._bytes -= len(self._frames.popleft().payload)
            # Waking the handler for every few frames would make the two threads take turns for every few frames.
            if len(self._frames) <= MAX_FRAMES // 2 and self._bytes <= MAX_BYTES // 2:
                self._changed.notify_all()
            return bool(self._frames)

    def fail(self, failure: EngineError | None = None) -> None:
        """Drop every frame: the store refused one for good, or the execution is lost."""
        with self._changed:
            self.failure = self.failure or failure
            self._frames.clear()
            self._bytes = 0
            self._changed.notify_all()

    def wake(self) -> None:
        """Wake the threads that wait here, because the execution is lost."""
        with self._changed:
            self._changed.notify_all()
