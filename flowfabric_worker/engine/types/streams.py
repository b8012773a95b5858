"""The records of the area streams: frames, how they are kept, and summaries."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.limits import MAX_FRAME_BYTES, MAX_SEQ
from flowfabric_worker.engine.types import checks

_FRAME_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_LARGEST_ID_PART = 2**64 - 1


class FrameKind(StrEnum):
    """The kind of content of a frame."""

    STDOUT = "stdout"
    STDERR = "stderr"
    EVENT = "event"
    BLOB = "blob"


class StreamMode(StrEnum):
    """How a frame is kept.

    DURABLE frames are kept as long as the execution. DURABLE_SUMMARY frames are merged into the summary document of the
    attempt, which is kept as long; of the frames themselves the newest 256 are kept. BEST_EFFORT_LIVE frames are for
    readers that follow the stream live, and the oldest of them are dropped first.
    """

    DURABLE = "durable"
    DURABLE_SUMMARY = "summary"
    BEST_EFFORT_LIVE = "best_effort"


class PatchKind(StrEnum):
    """How a summary frame changes the document; the only kind is the merge patch of RFC 7396."""

    JSON_MERGE_PATCH = "json-merge-patch"


def _smoothing(_record: object, _field: attrs.Attribute[float], value: object) -> None:
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValidationError("invalid_input", "BestEffortLiveConfig.ema_alpha must be over 0 and at most 1.")


@attrs.frozen(kw_only=True)
class BestEffortLiveConfig:
    """How many best-effort frames are kept: as many as `ttl` brings at twice the present rate, within bounds.

    Attributes:
        ttl: how far back a reader should be able to read.
        maxlen_floor: the least number of frames to keep.
        maxlen_ceiling: the largest number of frames to keep.
        ema_alpha: the weight of the newest frame in the rate, above 0 and at most 1.
    """

    ttl: timedelta = attrs.field(default=timedelta(seconds=10), validator=checks.duration())
    maxlen_floor: int = attrs.field(default=64, validator=checks.integer(1))
    maxlen_ceiling: int = attrs.field(default=16_384, validator=checks.integer(1))
    ema_alpha: float = attrs.field(default=0.2, validator=_smoothing)

    def __attrs_post_init__(self) -> None:
        if self.maxlen_ceiling < self.maxlen_floor:
            raise ValidationError("invalid_input", "BestEffortLiveConfig.maxlen_ceiling is below maxlen_floor.")


def _kind(value: FrameKind | str) -> FrameKind:
    return checks.word(FrameKind, value, "Frame.kind")


def _mode(value: StreamMode | str) -> StreamMode:
    return checks.word(StreamMode, value, "Frame.mode")


def _seq(_record: Frame, _field: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and (type(value) is not int or not 0 <= value <= MAX_SEQ):
        raise ValidationError("invalid_input", f"Frame.seq must be an int from 0 to {MAX_SEQ}, not {value!a:.40}.")


@attrs.frozen(kw_only=True)
class Frame:
    """One frame to append.

    Attributes:
        payload: at most 64 KiB; in the mode DURABLE_SUMMARY, a merge patch in JSON.
        kind: the kind of content.
        frame_type: a name that the writer chooses; None for the name of the kind.
        correlation_id: a text that the writer chooses, and readers receive.
        seq: the writer's number, ascending within an attempt; a frame appended again with the same number is a repeat.
        mode: how the frame is kept.
        live: for the mode BEST_EFFORT_LIVE, how many frames are kept; None for the defaults.
    """

    payload: bytes = attrs.field(repr=False, validator=checks.payload(MAX_FRAME_BYTES))
    kind: FrameKind = attrs.field(default=FrameKind.EVENT, converter=_kind)
    frame_type: str | None = attrs.field(default=None, validator=checks.optional_name)
    correlation_id: str | None = attrs.field(default=None, validator=checks.optional_name)
    seq: int | None = attrs.field(default=None, validator=_seq)
    mode: StreamMode = attrs.field(default=StreamMode.DURABLE, converter=_mode)
    live: BestEffortLiveConfig | None = None

    def __attrs_post_init__(self) -> None:
        if self.live is None:
            return
        checks.check_record(self.live, BestEffortLiveConfig)
        if self.mode is not StreamMode.BEST_EFFORT_LIVE:
            raise ValidationError(
                "invalid_input", f"Frame.live has no effect in the mode {self.mode.value}: leave it out."
            )


@attrs.frozen(kw_only=True)
class FrameAppend:
    """A frame, and the handle of the lease holder that appends it."""

    handle: Handle
    frame: Frame


@attrs.frozen(kw_only=True)
class AppendFrameOutcome:
    """The outcome of an append, also of one that repeats an earlier append with the same `seq`.

    Attributes:
        frame_id: the id of the frame in the stream, `<ms>-<number>`; "" for a repeat of a frame that is not durable,
            and that more than a thousand other frames followed.
        frame_count: the frames appended in this attempt so far, including dropped ones; 0 if the id is "".
        summary_version: the version of the document after the frame; None if it is not a summary frame.
    """

    frame_id: str
    frame_count: int
    summary_version: int | None = None


@attrs.frozen
class StreamCursor:
    """A place in a stream: `start`, `end`, or a frame's id, `<ms>` or `<ms>-<number>`.

    A bare `<ms>` stands for the first frame of that millisecond at the beginning of a range, and for the last at its
    end.
    """

    value: str = attrs.field()

    @value.validator
    def _check_value(self, _field: attrs.Attribute[str], value: object) -> None:
        if value in ("start", "end"):
            return
        match = _FRAME_ID.fullmatch(value) if isinstance(value, str) else None
        if match is None or any(int(part) > _LARGEST_ID_PART for part in match.groups(default="0")):
            raise ValidationError("invalid_cursor", f"{value!a} is not 'start', 'end' or the id of a frame.")

    @classmethod
    def start(cls) -> StreamCursor:
        """Return the place before the first frame, for `read_stream`."""
        return cls("start")

    @classmethod
    def end(cls) -> StreamCursor:
        """Return the place after the last frame, for `read_stream`."""
        return cls("end")

    @classmethod
    def from_beginning(cls) -> StreamCursor:
        """Return the place before the first frame, for `tail_stream`, which takes only ids."""
        return cls("0-0")

    @property
    def is_concrete(self) -> bool:
        """Whether the cursor is the id of a frame."""
        return self.value not in ("start", "end")


class TailVisibility(StrEnum):
    """Which frames a tail shows."""

    ALL = "all"
    EXCLUDE_BEST_EFFORT = "exclude_best_effort"
    EXCLUDE_SUMMARY = "exclude_summary"


class StreamCloseReason(StrEnum):
    """What ended the attempt that a stream belongs to."""

    ATTEMPT_SUCCESS = "attempt_success"
    ATTEMPT_FAILURE = "attempt_failure"
    ATTEMPT_CANCELLED = "attempt_cancelled"
    EXPIRED = "expired"
    TIMED_OUT = "timed_out"
    LEASE_EXPIRED = "lease_expired"
    LEASE_REVOKED = "lease_revoked"


@attrs.frozen(kw_only=True)
class StreamFrame:
    """A stored frame; `appended_at_ms` is in ms of the store's clock."""

    frame_id: str
    kind: FrameKind
    frame_type: str
    mode: StreamMode
    payload: bytes = attrs.field(repr=False)
    appended_at_ms: int
    correlation_id: str | None = None
    seq: int | None = None
    summary_version: int | None = None


@attrs.frozen(kw_only=True)
class StreamFrames:
    """Frames of one attempt in the order of their ids, and whether more may follow.

    Attributes:
        frames: the frames.
        next_cursor: the place after everything that was scanned, from which `tail_stream` continues.
        more: whether there are frames after it already.
        dropped: whether live or summary frames before `frames`, which this read would have returned, were dropped.
        first_kept_id: the first of them that is kept; None if none is kept, or none was dropped.
        closed_at_ms: when the stream was closed; None while its attempt continues.
        closed_reason: what closed the stream; None also for attempts before the last hundred.
        latest_attempt: the present or last attempt of the execution; None before the first one begins.
        has_ended: whether the execution has ended, so that a further attempt begins only after a replay.
    """

    frames: tuple[StreamFrame, ...] = ()
    next_cursor: StreamCursor = StreamCursor("0-0")
    more: bool = False
    dropped: bool = False
    first_kept_id: str | None = None
    closed_at_ms: int | None = None
    closed_reason: StreamCloseReason | None = None
    latest_attempt: int | None = None
    has_ended: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether no further frame can be appended; see `more` for frames that were not read yet."""
        return self.closed_at_ms is not None


@attrs.frozen(kw_only=True)
class SummaryDocument:
    """The summary document of an attempt: JSON in UTF-8, and its version, which counts from 1."""

    document: bytes = attrs.field(repr=False)
    version: int
    patch_kind: PatchKind
    first_applied_at_ms: int
    last_updated_at_ms: int
