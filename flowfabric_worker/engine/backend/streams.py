"""The operations of the area streams, with their promises."""

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
            handle: the execution's.
            frame: the frame. Appended again under its `seq`, also after a suspension, it is answered as before.

        Returns:
            The frame's id, and how many frames the attempt has appended.

        Raises:
            ValidationError: `stream_full`, the attempt has 100,000 durable frames or 64 MiB of them; `invalid_patch`, a
                summary frame is no merge patch, nests the document over 16 deep, or makes it larger than 1 MiB.
            ConflictError: `frame_conflict`, another frame stands under this `seq`, or a later one does.
            ContentionError: `stale_summary_version`, others change the summary all the time.
            StateError: the lease is over.
        """
        raise UnavailableError("append_frame")

    def append_frames(self, appends: Sequence[FrameAppend]) -> list[AppendFrameOutcome | EngineError]:
        """Append many frames, of one holder or of many, in bounded calls; those of a holder in their order.

        Args:
            appends: the frames, each with its holder.

        Returns:
            Of each what `append_frame` returns, or the error that it raises. A frame is refused by itself. Where a call
            fails as a whole, or a lease is over, so do all later frames of that holder.

        Raises:
            ValidationError: `duplicate_in_call`, one `seq` twice; nothing was appended.
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
        """Read a range of an attempt's stream; both ends belong to it.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            from_cursor: the first place.
            to_cursor: the last place.
            count_limit: frames at most, 1 to 10,000.

        Returns:
            The frames, and whether the stream is closed. One that was never written is empty, and closed with its
            attempt. That of an attempt that has not begun is open until the execution ends.

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
        """Wait for frames behind a place of an attempt's stream, or for its end.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.
            after: the frame behind which to begin; an id, `StreamCursor.from_beginning()` for all.
            block: how long to wait at most, up to 30 s; zero only looks.
            count_limit: frames at most, 1 to 10,000, counted after the visibility was applied.
            visibility: which frames are shown.

        Returns:
            The frames that one look finds, which may be fewer; none when the time is over first, or the attempt.
            `next_cursor` is what to give as `after` next.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_input`; `invalid_cursor`, `after` is `start` or `end`.
            ResourceExhaustedError: `too_many_tails`, over 1,000 wait in this engine.
            TransportError: `engine_closed`, this engine was closed while the caller waited.
        """
        raise UnavailableError("tail_stream")

    def read_summary(self, execution_id: ExecutionId, attempt_index: int) -> SummaryDocument | None:
        """Read an attempt's summary document.

        Args:
            execution_id: the execution.
            attempt_index: the attempt, counted from 0.

        Returns:
            The document, or None when no summary frame was ever appended.

        Raises:
            NotFoundError: `execution_not_found`.
            ValidationError: `invalid_input`.
        """
        raise UnavailableError("read_summary")
