"""The encoding of frames for stored functions, the decoding of replies, and the order of frame ids."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from hashlib import blake2b

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.stores.base import Reply
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    BestEffortLiveConfig,
    Frame,
    FrameKind,
    StreamCloseReason,
    StreamCursor,
    StreamFrame,
    StreamMode,
)
from flowfabric_worker.engine.wire import DAMAGE, optional, pack, read_optional, unpack, unpack_pairs

_LARGEST = 2**64 - 1
_DEFAULT_LIVE = BestEffortLiveConfig()
# The shortest pause between two looks, in seconds, for the case that this release cannot handle what is due.
_LEAST_PAUSE = 0.1

FrameId = tuple[int, int]
"""A frame id as a pair of milliseconds and number, in whose order the ids are."""


# Ids


def first_of(cursor: StreamCursor) -> FrameId:
    """Return the first id of a range that begins at this cursor."""
    return _parts(cursor, 0)


def last_of(cursor: StreamCursor) -> FrameId:
    """Return the last id of a range that ends at this cursor."""
    return _parts(cursor, _LARGEST)


def _parts(cursor: StreamCursor, number: int) -> FrameId:
    if cursor.value == "start":
        return 0, 0
    if cursor.value == "end":
        return _LARGEST, _LARGEST
    ms, _, rest = cursor.value.partition("-")
    return int(ms), int(rest) if rest else number


def behind(frame_id: FrameId) -> FrameId:
    """Return the id after another one; for the largest id, the same."""
    ms, number = frame_id
    if number < _LARGEST:
        return ms, number + 1
    return (ms + 1, 0) if ms < _LARGEST else frame_id


def in_front_of(frame_id: FrameId) -> FrameId:
    """Return the id before another one; for the smallest id, the same."""
    ms, number = frame_id
    if number:
        return ms, number - 1
    return (ms - 1, _LARGEST) if ms else frame_id


def as_text(frame_id: FrameId) -> str:
    """Return an id in the form that stores use."""
    return f"{frame_id[0]}-{frame_id[1]}"


# Appending


def encode_frames(frames: Sequence[Frame], first_version: int) -> bytes:
    """Pack frames for `append_frames`; the versions that summary frames create begin at `first_version`."""
    parts: list[str | bytes] = []
    for version, frame in enumerate(frames, first_version):
        is_summary = frame.mode is StreamMode.DURABLE_SUMMARY
        said = _said(frame.mode, frame.kind, frame.frame_type, frame.correlation_id)
        seq = "" if frame.seq is None else str(frame.seq)
        digest = "" if frame.seq is None else blake2b(said + pack((frame.payload,)), digest_size=8).hexdigest()
        live = _live(frame.live or _DEFAULT_LIVE) if frame.mode is StreamMode.BEST_EFFORT_LIVE else b""
        head = said + pack((seq, str(version) if is_summary else ""))
        parts += (frame.mode, head, frame.payload, seq, digest, live)
    return pack(parts)


@functools.lru_cache(maxsize=256)
def _said(mode: StreamMode, kind: FrameKind, frame_type: str | None, correlation_id: str | None) -> bytes:
    """Pack what most frames of a stream have in common."""
    correlation = None if correlation_id is None else correlation_id.encode()
    return pack((mode, kind, frame_type or kind, optional(correlation)))


@functools.lru_cache(maxsize=64)
def _live(config: BestEffortLiveConfig) -> bytes:
    values = (milliseconds(config.ttl, "ttl"), config.maxlen_floor, config.maxlen_ceiling, float(config.ema_alpha))
    return pack(map(repr, values))


def outcome_of(reply: Reply) -> AppendFrameOutcome:
    """Decode the answer of `append_frames` to one frame."""
    _, frame_id, count, version = reply
    return AppendFrameOutcome(
        frame_id=frame_id.decode(), frame_count=int(count or 0), summary_version=int(version) if version else None
    )


# Reading


@attrs.frozen(kw_only=True)
class Look:
    """The answer to one call of `read_stream`.

    Attributes:
        entries: the frames, not decoded.
        more: whether there are more frames.
        dropped_id: the newest frame that was dropped before it was read; "" if there is none.
        kept_id: the first frame after it that is kept; "" if there is none.
        closed_at_ms: when the stream was closed, in ms of the store's clock.
        latest_attempt: the present or last attempt.
        due_in: the ms after which time changes the execution; None if it does not.
        is_told: whether the given topic gets messages about new frames and the end.
    """

    entries: Sequence[Reply]
    more: bool
    dropped_id: str
    kept_id: str
    closed_at_ms: int | None
    closed_reason: StreamCloseReason | None
    latest_attempt: int | None
    has_ended: bool
    due_in: int | None
    is_told: bool

    @property
    def says_something(self) -> bool:
        """Whether the answer has something new for a waiting reader."""
        return bool(self.entries or self.dropped_id) or self.closed_at_ms is not None

    def end(self, before: FrameId) -> FrameId:
        """Return the id after which to continue; `before` is the id after which this look began."""
        if self.entries:
            return _parts(StreamCursor(self.entries[-1][0].decode()), 0)
        return max(before, _parts(StreamCursor(self.dropped_id), 0)) if self.dropped_id else before

    def pause(self, longest: float) -> float:
        """Return the seconds after which a reader that got nothing new looks again, at most `longest`."""
        if self.due_in is None:
            return longest
        return min(longest, max(self.due_in / 1000, _LEAST_PAUSE))

    @classmethod
    def read(cls, reply: Reply, execution_id: ExecutionId) -> Look:
        """Decode a reply.

        Raises:
            ValidationError: `corruption`.
        """
        _, now, closed, reason, latest, ended, due, more, dropped, kept, told, entries = reply
        try:
            return cls(
                entries=entries,
                more=bool(more),
                dropped_id=dropped.decode(),
                kept_id=kept.decode(),
                closed_at_ms=int(closed) if closed else None,
                closed_reason=StreamCloseReason(reason.decode()) if reason else None,
                latest_attempt=int(latest) if latest else None,
                has_ended=bool(ended),
                due_in=int(due) - int(now) if due else None,
                is_told=bool(told),
            )
        except DAMAGE as error:
            raise _damaged(execution_id, "the end of an attempt", error) from None


def decode_frame(entry: Reply, execution_id: ExecutionId) -> StreamFrame:
    """Decode an entry of a stream.

    Raises:
        ValidationError: `corruption`; the message names the frame.
    """
    frame_id = entry[0].decode()
    try:
        fields = unpack_pairs(entry[1:])
        mode, kind, frame_type, correlation, seq, version = unpack(fields["frame"])[:6]
        correlation_id = read_optional(correlation)
        return StreamFrame(
            frame_id=frame_id,
            kind=FrameKind(kind.decode()),
            frame_type=frame_type.decode(),
            mode=StreamMode(mode.decode()),
            payload=fields["payload"],
            appended_at_ms=int(fields.get("at") or frame_id.partition("-")[0]),
            correlation_id=None if correlation_id is None else correlation_id.decode(),
            seq=int(seq) if seq else None,
            summary_version=int(version) if version else None,
        )
    except DAMAGE as error:
        raise _damaged(execution_id, f"frame {frame_id}", error) from None


def _damaged(execution_id: ExecutionId, what: str, error: Exception) -> ValidationError:
    return ValidationError(
        "corruption", f"{execution_id}: {what}: {error}.", execution_id=str(execution_id), field="stream"
    )
