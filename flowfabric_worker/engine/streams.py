"""The operations on streams: appending frames of running attempts, and reading them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

from flowfabric_worker.engine.appends import Append, Outcome, Summaries, queues_of
from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.core import EngineCore, as_error
from flowfabric_worker.engine.errors import EngineError, TransportError, ValidationError, error_from_code
from flowfabric_worker.engine.frames import (
    FrameId,
    Look,
    as_text,
    behind,
    decode_frame,
    encode_frames,
    first_of,
    in_front_of,
    last_of,
    outcome_of,
)
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, check_execution_id
from flowfabric_worker.engine.limits import MAX_READ_COUNT, MAX_TAIL_BLOCK_MS
from flowfabric_worker.engine.listener import FALLBACK
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.checks import check_record, word
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    Frame,
    FrameAppend,
    PatchKind,
    StreamCursor,
    StreamFrames,
    StreamMode,
    SummaryDocument,
    TailVisibility,
)
from flowfabric_worker.engine.unusable_arguments import guarded

# How often summary frames are merged again after another call has changed the summary first.
_MOST_MERGES = 20
# The seconds between two looks of a tail that no message wakes.
_LOOK_EVERY = 1.0

_LEFT_OUT: Final[Mapping[TailVisibility, str]] = {
    TailVisibility.ALL: "",
    TailVisibility.EXCLUDE_BEST_EFFORT: StreamMode.BEST_EFFORT_LIVE,
    TailVisibility.EXCLUDE_SUMMARY: StreamMode.DURABLE_SUMMARY,
}

_Range: TypeAlias = tuple[ExecutionId, int, FrameId, FrameId, int, str]
"""Execution, attempt, first and last id, frames at most, and the mode that is left out, or an empty text."""


class Streams(EngineCore):
    """The operations of the area streams."""

    def _begin(self) -> None:
        super()._begin()
        self._summaries = Summaries()

    # Appending

    def append_frame(self, handle: Handle, frame: Frame) -> AppendFrameOutcome:
        (outcome,) = self.append_frames([FrameAppend(handle=handle, frame=frame)])
        if isinstance(outcome, EngineError):
            raise outcome
        return outcome

    def append_frames(self, appends: Sequence[FrameAppend]) -> list[AppendFrameOutcome | EngineError]:
        outcomes: dict[int, Outcome] = {}
        usable: dict[int, FrameAppend] = {}
        check = guarded("append_frames", self._check_append)
        for place, each in enumerate(appends):
            try:
                usable[place] = check(each)
            except ValidationError as error:
                outcomes[place] = error
        numbered = (each for each in usable.values() if each.frame.seq is not None)
        self.refuse_repeats(((each.handle.execution_id, each.handle.fence, each.frame.seq) for each in numbered), "Seq")
        queues = queues_of(usable, outcomes)
        while queues:
            # Send one item of each holder at a time, which keeps the order of its frames.
            together = [queue.popleft() for queue in queues]
            self._append(together)
            for queue, done in zip(queues, together, strict=True):
                while queue and done.failure is not None:
                    queue.popleft().fail(done.failure)
            queues = [queue for queue in queues if queue]
        return [outcomes[place] for place in range(len(appends))]

    def _check_append(self, append: FrameAppend) -> FrameAppend:
        check_record(check_record(append, FrameAppend).frame, Frame)
        self.fenced(append.handle)
        return append

    def _append(self, appends: Sequence[Append]) -> None:
        """Append one item of each holder."""
        left = appends
        for _ in range(_MOST_MERGES):
            for append in left:
                if append.is_summary:
                    append.merge_into(self._summaries.get(append.handle.attempt_id))
            sent = [append for append in left if append.frames]
            replies = self.call_items("append_frames", [self._append_item(append) for append in sent])
            left = [append for append, reply in zip(sent, replies, strict=True) if self._settle(append, reply)]
            if not left:
                return
        for append in left:
            append.fail(error_from_code("stale_summary_version", (str(append.handle.execution_id),)))

    def _append_item(self, append: Append) -> tuple[int, Item]:
        """Encode an item for the stored function."""
        partition, uuid, fence = self.fenced(append.handle)
        return partition, (
            uuid,
            fence,
            append.handle.attempt_index,
            append.call_id,
            encode_frames(list(append.frames.values()), append.version + 1),
            append.version if append.is_summary else "",
            append.document or b"",
            self.limits.durable_frames,
            self.limits.durable_bytes,
        )

    def _settle(self, append: Append, reply: Reply | EngineError) -> bool:
        """Record the outcomes of an item; return True if some of its frames must be merged again."""
        if isinstance(reply, EngineError):
            append.fail(reply)
            return False
        handle, stale, version = append.handle, {}, 0
        for (place, frame), answer in zip(append.frames.items(), reply[1:], strict=True):
            told = as_error(answer, handle.execution_id.partition_number)
            if not isinstance(told, EngineError):
                append.outcomes[place] = outcome = outcome_of(told)
                version = outcome.summary_version or version
            elif told.code == "stale_summary_version":
                stale[place] = frame
            else:
                append.outcomes[place] = told
        if version and not stale:
            self._summaries.put(handle.attempt_id, (version, append.document))
        append.frames = stale
        return bool(stale) and self._renew_summary(append)

    def _renew_summary(self, append: Append) -> bool:
        """Read the summary again after another call has changed it; return True if that succeeded."""
        handle = append.handle
        try:
            summary = self.read_summary(handle.execution_id, handle.attempt_index)
        except EngineError as error:
            append.fail(error)
            return False
        self._summaries.put(handle.attempt_id, (summary.version, summary.document) if summary else (0, None))
        return True

    # Reading

    def read_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        from_cursor: StreamCursor,
        to_cursor: StreamCursor,
        count_limit: int,
    ) -> StreamFrames:
        execution_id = _check_read(execution_id, attempt_index, count_limit)
        begin = first_of(check_record(from_cursor, StreamCursor))
        last = last_of(check_record(to_cursor, StreamCursor))
        before, left, looks = in_front_of(begin), count_limit, list[Look]()
        while not looks or (looks[-1].more and left):
            looks.append(self._look((execution_id, attempt_index, begin, last, left, "")))
            left -= len(looks[-1].entries)
            begin = behind(looks[-1].end(before))
        return _frames(looks, execution_id, before)

    def tail_stream(
        self,
        execution_id: ExecutionId,
        attempt_index: int,
        after: StreamCursor,
        block: timedelta,
        count_limit: int,
        visibility: TailVisibility = TailVisibility.ALL,
    ) -> StreamFrames:
        execution_id = _check_read(execution_id, attempt_index, count_limit)
        if not check_record(after, StreamCursor).is_concrete:
            raise ValidationError("invalid_cursor", f"after must be a frame's id, not {after.value!r}.")
        if milliseconds(block, "block") > MAX_TAIL_BLOCK_MS:
            raise ValidationError("invalid_input", f"block must be at most {MAX_TAIL_BLOCK_MS // 1000} s, not {block}.")
        left_out = _LEFT_OUT[word(TailVisibility, visibility, "visibility")]
        place = first_of(after)
        tail = (execution_id, attempt_index, behind(place), last_of(StreamCursor.end()), count_limit, left_out)
        seconds = block / timedelta(seconds=1)
        # Look first, because a reader that is behind needs no listening connection.
        look = self._look(tail)
        if seconds and not look.says_something:
            look = self._wait_for_frames(tail, seconds)
        return _frames([look], execution_id, place)

    def _wait_for_frames(self, tail: _Range, seconds: float) -> Look:
        """Look until there are frames or the stream is closed, at most for `seconds`."""
        listener, name = self.listener, str(tail[0])
        event = listener.tail(name)
        deadline = time.monotonic() + seconds
        try:
            while True:
                event.clear()
                pause = _LOOK_EVERY
                remaining = max(0.0, deadline - time.monotonic())
                try:
                    look = self._look(tail, listener.topic if remaining else "")
                except TransportError as error:
                    # Look again: there may be frames once the store is available again.
                    if not error.retryable or listener.is_closed or not remaining:
                        raise
                else:
                    if look.says_something or not remaining:
                        return look
                    pause = look.pause(FALLBACK if look.is_told else _LOOK_EVERY)
                event.wait(min(remaining, pause))
                if listener.is_closed:
                    raise TransportError("engine_closed", backend=self.store.label, execution_id=name)
                listener.revive()
        finally:
            listener.end_tail(name, event)

    def _look(self, wanted: _Range, topic: str = "") -> Look:
        """Read frames once; if there are none yet, messages about the next ones go to the topic."""
        execution_id, attempt_index, first, last, limit, left_out = wanted
        arguments: Item = [
            execution_id.uuid,
            self._packed_namespace,
            attempt_index,
            as_text(first),
            as_text(last),
            limit,
            left_out,
            topic,
        ]
        return Look.read(self.call("read_stream", execution_id.partition_number, arguments), execution_id)

    def read_summary(self, execution_id: ExecutionId, attempt_index: int) -> SummaryDocument | None:
        execution_id = _check_read(execution_id, attempt_index)
        reply = self.call(
            "read_summary", execution_id.partition_number, [execution_id.uuid, self._packed_namespace, attempt_index]
        )
        if reply[0] == b"none":
            return None
        _, version, begun, changed, document = reply
        return SummaryDocument(
            document=document,
            version=int(version),
            patch_kind=PatchKind.JSON_MERGE_PATCH,
            first_applied_at_ms=int(begun),
            last_updated_at_ms=int(changed),
        )


def _check_read(execution_id: ExecutionId, attempt_index: int, count_limit: int = 1) -> ExecutionId:
    """Check the arguments of a read, and return the id of the execution."""
    checked = check_execution_id(execution_id)
    if type(attempt_index) is not int or not 0 <= attempt_index < 2**31:
        raise ValidationError("invalid_input", f"attempt_index must be an int from 0 on, not {attempt_index!a:.40}.")
    if type(count_limit) is not int or not 1 <= count_limit <= MAX_READ_COUNT:
        raise ValidationError(
            "invalid_input", f"count_limit must be an int from 1 to {MAX_READ_COUNT}, not {count_limit!a:.40}."
        )
    return checked


def _frames(looks: Sequence[Look], execution_id: ExecutionId, before: FrameId) -> StreamFrames:
    """Combine consecutive looks at one attempt; `before` is the id before the first one."""
    last = looks[-1]
    return StreamFrames(
        frames=tuple(decode_frame(entry, execution_id) for look in looks for entry in look.entries),
        next_cursor=StreamCursor(as_text(last.end(before))),
        more=last.more,
        dropped=any(look.dropped_id for look in looks),
        first_kept_id=next((look.kept_id for look in looks if look.kept_id), None),
        closed_at_ms=last.closed_at_ms,
        closed_reason=last.closed_reason,
        latest_attempt=last.latest_attempt,
        has_ended=last.has_ended,
    )
