"""Frames that are being appended: how they are grouped into items, and the summaries that they are merged into."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping

import attrs

from flowfabric_worker.engine.connection import new_call_id
from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.limits import MAX_FRAMES_PER_ITEM, MIB
from flowfabric_worker.engine.merge_patch import merge
from flowfabric_worker.engine.types.streams import AppendFrameOutcome, Frame, FrameAppend, StreamMode

Outcome = AppendFrameOutcome | EngineError
Summary = tuple[int, bytes | None]
"""The version of a summary and its document; 0 and None before the first frame."""

_MOST_SUMMARIES = 256
_MOST_SUMMARY_BYTES = 16 * MIB


@attrs.define(eq=False)
class Append:
    """Consecutive frames of one holder that are sent as one item.

    Either all frames have a `seq`, in ascending order, or none has; either all are summary frames, or none is.

    Attributes:
        is_summary: whether the frames are summary frames.
        frames: the frames without an outcome, by the indices of their outcomes.
        outcomes: receives the outcomes of all items of the call, by index.
        call_id: the name of the call, by which a repeat is recognized.
        size: the bytes of all payloads.
        version: the version of the summary into which summary frames are merged.
        document: the merged summary document.
        failure: why the whole item failed; None if it did not.
    """

    handle: Handle
    is_summary: bool
    outcomes: dict[int, Outcome]
    frames: dict[int, Frame] = attrs.field(factory=dict)
    call_id: str = attrs.field(factory=new_call_id)
    size: int = 0
    version: int = 0
    document: bytes | None = None
    failure: EngineError | None = None

    def takes(self, frame: Frame) -> bool:
        """Return True if a frame may be added to the item."""
        last = next(reversed(self.frames.values()))
        if len(self.frames) >= MAX_FRAMES_PER_ITEM or self.size + len(frame.payload) > MIB:
            return False
        if (frame.mode is StreamMode.DURABLE_SUMMARY) is not self.is_summary:
            return False
        if frame.seq is None or last.seq is None:
            return frame.seq is last.seq
        return frame.seq > last.seq

    def merge_into(self, summary: Summary) -> None:
        """Merge summary frames into a document, and refuse those that cannot be merged one by one."""
        self.version, self.document = summary
        for place, frame in list(self.frames.items()):
            try:
                self.document = merge(self.document, frame.payload)
            except ValidationError as error:
                self.outcomes[place] = error
                del self.frames[place]

    def fail(self, failure: EngineError) -> None:
        """Refuse every frame that has no outcome yet."""
        self.failure = failure
        self.outcomes.update(dict.fromkeys(self.frames, failure))


def queues_of(appends: Mapping[int, FrameAppend], outcomes: dict[int, Outcome]) -> list[deque[Append]]:
    """Return the items of each holder, in the order of its frames, which put their outcomes into `outcomes`.

    Args:
        appends: the frames by the indices of their outcomes.
        outcomes: receives the outcomes.
    """
    queues: dict[tuple[object, str], deque[Append]] = {}
    for place, each in appends.items():
        handle, frame = each.handle, each.frame
        queue = queues.setdefault((handle.execution_id, handle.fence), deque())
        if not queue or not queue[-1].takes(frame):
            queue.append(Append(handle, frame.mode is StreamMode.DURABLE_SUMMARY, outcomes))
        queue[-1].frames[place] = frame
        queue[-1].size += len(frame.payload)
    return list(queues.values())


class Summaries:
    """A thread-safe cache of the summaries that this process wrote or read last, so that a merge need not read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Summary] = OrderedDict()
        self._bytes = 0

    def get(self, attempt_id: str) -> Summary:
        """Return the summary of an attempt as this process saw it last."""
        with self._lock:
            return self._known.get(attempt_id, (0, None))

    def put(self, attempt_id: str, summary: Summary) -> None:
        """Cache the summary of an attempt, and drop the oldest ones."""
        with self._lock:
            self._bytes -= _size(self._known.pop(attempt_id, (0, None)))
            self._known[attempt_id] = summary
            self._bytes += _size(summary)
            while len(self._known) > _MOST_SUMMARIES or self._bytes > _MOST_SUMMARY_BYTES:
                self._bytes -= _size(self._known.popitem(last=False)[1])


def _size(summary: Summary) -> int:
    return len(summary[1] or b"")
