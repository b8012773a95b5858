"""The operations of the area streams, with their promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    Frame,
    StreamCursor,
    StreamFrames,
    SummaryDocument,
    TailVisibility,
)


class StreamsBackend:
    """Append to the stream of an attempt, and read it."""

    def append_frame(self, handle: Handle, frame: Frame) -> AppendFrameOutcome:
        """Append a frame to the stream of the execution's current attempt.

        Args:
            handle: the execution's.
            frame: the frame; with a `seq` it may be appended again without effect.

        Returns:
            The frame's id, and how many frames the attempt has appended.

        Raises:
            ValidationError: `invalid_patch`, a summary frame is no merge patch, or nests the document over
                16 deep.
            StateError: the lease is over.
        """
        raise UnavailableError("append_frame")

    def read_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        from_cursor: StreamCursor,
        to_cursor: StreamCursor,
        count_limit: int,
    ) -> StreamFrames:
        """Read a range of an attempt's stream; both ends belong to it.

        Args:
            execution_id: the execution; it need not exist any more.
            attempt_index: the attempt, counted from 0.
            from_cursor: the first place.
            to_cursor: the last place.
            count_limit: frames at most, 1 to 10,000.

        Returns:
            The frames, and whether the stream is closed. One that was never written is empty, and open while
            its attempt runs.

        Raises:
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("read_stream")

    def tail_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        after: StreamCursor,
        block: timedelta,
        count_limit: int,
        visibility: TailVisibility = TailVisibility.ALL,
    ) -> StreamFrames:
        """Wait for frames behind a place of an attempt's stream, or for its end.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            after: the frame behind which to begin; an id, `StreamCursor.from_beginning()` for all.
            block: how long to wait at most, up to 30 s; zero only looks.
            count_limit: frames at most, 1 to 10,000, counted after the visibility was applied.
            visibility: which frames are shown.

        Returns:
            The frames; none when the time is over first. Also once closed, more may lie behind the last one.

        Raises:
            ValidationError: `invalid_input`; `invalid_cursor`, `after` is `start` or `end`.
        """
        raise UnavailableError("tail_stream")

    def read_summary(self, execution_id: ExecutionId, attempt_index: int) -> SummaryDocument | None:
        """Read an attempt's summary document.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.

        Returns:
            The document, or None when no summary frame was ever appended.
        """
        raise UnavailableError("read_summary")
