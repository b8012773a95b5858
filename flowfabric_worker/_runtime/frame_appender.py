"""The frame appender: sends the frames that handlers emit; each call has those that were queued during the last."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from flowfabric_worker._runtime.frame_buffer import FrameBuffer
from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.errors import (
    ConflictError,
    EngineError,
    NotFoundError,
    StateError,
    UnavailableError,
    ValidationError,
)
from flowfabric_worker.engine.limits import MAX_CALL_BYTES, MAX_FRAMES_PER_ITEM
from flowfabric_worker.engine.types.streams import AppendFrameOutcome, Frame, FrameAppend

log = log_queue.Log(__name__)

# Seconds before frames without an answer are sent again: at first, and at most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0

_Answer = AppendFrameOutcome | EngineError


class Appender(Protocol):
    """An object that sends the frames of handlers."""

    def send(self, buffer: FrameBuffer) -> None:
        """Send the frames of a buffer, now or soon."""


class FrameAppender(OwnedThread):
    """Append the frames of all handlers of a worker, in one thread.

    Frames collect in their buffers while a call is in flight. If the connection fails, they are sent again
    until their lease expires.
    """

    def __init__(self, engine: EngineBackend) -> None:
        super().__init__("frame-appender")
        self._engine = engine
        self._queue: queue.SimpleQueue[FrameBuffer | None] = queue.SimpleQueue()

    def stop(self) -> None:
        """Tell the thread to send everything that is queued, and then end."""
        self._queue.put(None)

    def send(self, buffer: FrameBuffer) -> None:
        self._queue.put(buffer)

    def _work(self) -> None:
        busy, ending = self._gather((), None)
        if not busy:
            return
        # Open a connection only now, because many workers emit nothing.
        dedicate_thread(self._engine)
        backoff, unanswered, due_at = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), list[FrameBuffer](), 0.0
        while busy or unanswered or not ending:
            queued, last = self._gather(busy, due_at - now() if unanswered else None)
            ending = ending or last
            busy += queued
            if unanswered and now() >= due_at:
                busy, unanswered = [*unanswered, *busy], []
            busy, without_answer = append(self._engine, busy)
            if without_answer and not unanswered:
                due_at = now() + backoff.next()
            unanswered += without_answer
            if not unanswered:
                backoff.reset()

    def _gather(self, busy: Sequence[FrameBuffer], timeout: float | None) -> tuple[list[FrameBuffer], bool]:
        """Return the buffers that were queued, and True if they are the last; wait for one if none is busy.

        Args:
            timeout: seconds to wait for a buffer; None to wait without a limit.
        """
        queued: list[FrameBuffer] = []
        try:
            each = self._queue.get_nowait() if busy else self._queue.get(timeout=timeout and max(0.0, timeout))
            while each is not None:
                queued.append(each)
                each = self._queue.get_nowait()
        except queue.Empty:
            return queued, False
        return queued, True


class InlineAppender:
    """Append each frame in the thread that emits it, for a runtime that starts no thread."""

    def __init__(self, engine: EngineBackend) -> None:
        self._engine = engine

    def send(self, buffer: FrameBuffer) -> None:
        busy = [buffer]
        while busy:
            busy, without_answer = append(self._engine, busy)
            if without_answer:
                busy = without_answer
                time.sleep(_FIRST_PAUSE)


def append(engine: EngineBackend, buffers: Iterable[FrameBuffer]) -> tuple[list[FrameBuffer], list[FrameBuffer]]:
    """Append the first frames of each buffer together, as many as one call takes.

    Returns:
        The buffers that have more frames, and those whose frames got no answer and must be sent again.
    """
    sent: list[tuple[FrameBuffer, list[Frame]]] = []
    more: list[FrameBuffer] = []
    size = 0
    for buffer in buffers:
        if size >= MAX_CALL_BYTES:
            # Leave the rest for the next call, so that large frames of some handlers do not delay those of others.
            more.append(buffer)
        elif _counts(buffer):
            frames = buffer.first(MAX_FRAMES_PER_ITEM)
            size += sum(len(frame.payload) for frame in frames)
            sent.append((buffer, frames))
    appends = [FrameAppend(handle=buffer.execution.handle, frame=frame) for buffer, frames in sent for frame in frames]
    if not appends:
        return more, []
    answers: Sequence[_Answer]
    try:
        answers = engine.append_frames(appends)
    except EngineError as error:
        answers = [error] * len(appends)
    unanswered: list[FrameBuffer] = []
    at = 0
    for buffer, frames in sent:
        taken, refusal = _taken(buffer, frames, answers[at : at + len(frames)])
        at += len(frames)
        has_more = buffer.acknowledge(taken)
        if refusal is None:
            more += [buffer] * has_more
        elif isinstance(refusal, StateError | NotFoundError):
            buffer.execution.lose("lease lost")
            buffer.fail()
        elif isinstance(refusal, ValidationError | UnavailableError):
            buffer.fail(_describe_refusal(refusal, buffer.execution.task.name))
        else:
            unanswered.append(buffer)
    return more, unanswered


def _counts(buffer: FrameBuffer) -> bool:
    """Return True if the frames of a buffer may be sent; drop them if their lease is lost."""
    execution = buffer.execution
    if execution.lost is None and now() < execution.lease_until:
        return True
    execution.lose("lease lost")
    buffer.fail()
    return False


def _taken(buffer: FrameBuffer, frames: Sequence[Frame], answers: Sequence[_Answer]) -> tuple[int, EngineError | None]:
    """Return how many frames the store has, and the error of the first frame that it does not have."""
    for place, (frame, answer) in enumerate(zip(frames, answers, strict=True)):
        if isinstance(answer, ConflictError):
            _note_difference(buffer, frame)
        elif isinstance(answer, EngineError):
            return place, answer
    return len(frames), None


def _describe_refusal(error: EngineError, task: str) -> EngineError:
    """Return the refusal of a frame with the name of the task, and the limit that it passed."""
    limit, what = error.details.get("limit"), error.details.get("what")
    at_most = f" At most {limit} {what} are allowed." if limit else ""
    return ValidationError(
        error.code, f"{error.code}: {task!r} cannot append to its stream: {error}{at_most}", **error.details
    )


def _note_difference(buffer: FrameBuffer, frame: Frame) -> None:
    """Log, once per run, that a frame is not appended because another one has its place."""
    execution = buffer.execution
    if not buffer.differs:
        buffer.differs = True
        log.warning(
            "Frame %s of %s of %s differs from the one that an earlier run of this attempt emitted, which stays. Let a "
            "step make what differs from run to run.",
            frame.seq, execution.task.name, execution.key, extra=execution.fields,
        )  # fmt: skip
