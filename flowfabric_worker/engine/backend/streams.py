"""The operations of the area streams, and what each promises."""

# ruff: noqa: ARG002 - the arguments are named for those who override these methods.

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    Frame,
    FrameAppend,
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
            handle: the lease of the execution.
            frame: the frame. A repeat with the same `seq`, also after a suspension, gets the first answer.

        Returns:
            The id of the frame, and the number of frames that the attempt has appended.

        Raises:
            ValidationError: `stream_full`, the attempt has 100,000 durable frames or 64 MiB of them; `invalid_patch`, a
                summary frame is not a merge patch, nests the document over 16 deep, or makes it larger than 1 MiB.
            ConflictError: `frame_conflict`, another frame has this `seq`, or a frame with a later one exists.
            ContentionError: `stale_summary_version`, other calls kept changing the summary.
            StateError: the lease has ended.
        """
        raise UnavailableError("append_frame")

    def append_frames(self, appends: Sequence[FrameAppend]) -> list[AppendFrameOutcome | EngineError]:
        """Append many frames of one or many lease holders, in bounded calls that keep the order of each holder.

        Args:
            appends: the frames, each with its holder.

        Returns:
            For each frame what `append_frame` returns, or the error that it raises. If a call fails as a whole, or a
            lease has ended, all later frames of that holder are refused too.

        Raises:
            ValidationError: `duplicate_in_call`, a `seq` occurs twice; nothing was appended.
        """
        raise UnavailableError("append_frames")

    def read_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        from_cursor: StreamCursor,
        to_cursor: StreamCursor,
        count_limit: int,
    ) -> StreamFrames:
        """Read a range of an attempt's stream, including both of its ends.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            from_cursor: the first place.
            to_cursor: the last place.
            count_limit: the most frames to return, 1 to 10,000.

        Returns:
            The frames, and whether the stream is closed. A stream without frames is empty, and closed when its attempt
            has ended. The stream of an attempt that has not begun is open until the execution ends.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_input`, `invalid_cursor`.
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
        """Wait for frames after a place in an attempt's stream, or for its end.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            after: the id of the frame after which to begin; `StreamCursor.from_beginning()` for all frames.
            block: how long to wait, at most 30 s; zero to look only once.
            count_limit: the most frames to return, 1 to 10,000, of those that are visible.
            visibility: which frames are visible.

        Returns:
            The frames that one look finds, which may be fewer; none if the time is over, or the attempt ends, first.
            Pass `next_cursor` as `after` in the next call.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_input`; `invalid_cursor`, `after` is `start` or `end`.
            ResourceExhaustedError: `too_many_tails`, more than 1,000 calls wait in this engine.
            TransportError: `engine_closed`, this engine was closed while the caller waited.
        """
        raise UnavailableError("tail_stream")

    def read_summary(self, execution_id: ExecutionId, attempt_index: int) -> SummaryDocument | None:
        """Read an attempt's summary document.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.

        Returns:
            The document, or None if no summary frame was appended.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("read_summary")
