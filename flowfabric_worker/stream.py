"""`run.stream()`: the values that a run emits, while it runs and after."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

import attrs

from flowfabric_worker._streams.frame_values import BUDGET_LIMIT, decode_budget_limit, decode_value
from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backoff import Backoff
from flowfabric_worker.engine.errors import EngineTimeoutError, TransportError, ValidationError
from flowfabric_worker.engine.frames import first_of
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_TAIL_BLOCK_MS
from flowfabric_worker.engine.moments import moment_of
from flowfabric_worker.engine.types.streams import StreamCursor, StreamFrame, StreamFrames, StreamMode, TailVisibility

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_BEGINNING: Final = StreamCursor.from_beginning()
_CURSOR: Final = re.compile(r"(.{1,100}):([0-9]{1,9}):([0-9]{1,20}-[0-9]{1,20})")
# Frames that one call reads, and the longest that one waits, in seconds.
_PAGE: Final = 500
_LONGEST_BLOCK: Final = MAX_TAIL_BLOCK_MS / 1000
# Seconds between two tries while the store cannot be reached: at first, and at most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


@attrs.frozen
class StreamValue(Generic[T_co]):
    """A value that the run emitted.

    Attributes:
        value: the value, decoded by the task's annotation.
        attempt: the number of the attempt that emitted it, from 0.
        cursor: the place after the value, from which `run.stream(after=cursor)` continues.
        emitted_at: when the store received it.
        live: True if it was emitted as live, so that it may be dropped from the stream later.
    """

    value: T_co
    attempt: int = attrs.field(kw_only=True)
    cursor: str = attrs.field(kw_only=True)
    emitted_at: datetime = attrs.field(kw_only=True)
    live: bool = attrs.field(kw_only=True)


@attrs.frozen
class AttemptBegan:
    """A mark for the beginning of another attempt, whose values begin from the start.

    Attributes:
        attempt: the number of the attempt; the first one, 0, has no mark.
        cursor: the place after the mark.
    """

    attempt: int
    cursor: str = attrs.field(kw_only=True)


@attrs.frozen
class ValuesDropped:
    """A mark for live values that were dropped before they were read, some of them before the next item.

    Attributes:
        attempt: the number of the attempt that emitted them.
        cursor: the place of the mark.
    """

    attempt: int
    cursor: str = attrs.field(kw_only=True)


@attrs.frozen
class BudgetLimitPassed:
    """A mark for a limit of a budget that the run has passed: a soft one, or the hard one by what it settled.

    Attributes:
        budget: the budget.
        dimension: the dimension of the budget.
        used: its counter at that moment.
        limit: the limit.
        attempt: the number of the attempt that passed it, from 0.
        cursor: the place after the mark.
    """

    budget: str
    dimension: str
    used: int
    limit: int
    attempt: int = attrs.field(kw_only=True)
    cursor: str = attrs.field(kw_only=True)


StreamItem: TypeAlias = StreamValue[T] | AttemptBegan | ValuesDropped | BudgetLimitPassed
"""The items that the iteration over a stream yields."""


@attrs.frozen(kw_only=True)
class RunSummary:
    """The summary document of an attempt.

    Attributes:
        document: the document, a plain value.
        version: the number of patches that were merged into it.
        attempt: the number of the attempt, from 0.
        updated_at: when the store received the last patch.
    """

    document: Any
    version: int
    attempt: int
    updated_at: datetime


class RunStream(Iterator[StreamItem[T]]):
    """Iterate over the values of a run, including those still to come, until the run has ended.

    While the store cannot be reached, the iterator waits for it. After an error the iteration can continue.

    Args:
        engine: the engine on the store of the run.
        execution_id: the execution's id.
        codec: decodes the values.
        after: the cursor to continue from; None for the beginning.
        timeout: seconds to wait for each item at most; None to wait without a limit.

    Raises:
        ValidationError: `invalid_cursor`, the cursor is damaged, or belongs to another run.
    """

    def __init__(
        self,
        engine: EngineBackend,
        execution_id: ExecutionId,
        codec: TaskCodec,
        after: str | None = None,
        timeout: float | None = None,
    ) -> None:
        self._engine = engine
        self._id = execution_id
        self._codec = codec
        self._timeout = timeout
        self._cursor = after
        self._attempt, self._place = (0, _BEGINNING) if after is None else _parse(after, execution_id)
        # Whether the mark of the present attempt was returned; the reader has seen that of its cursor.
        self._is_marked = True
        # The place up to which the reader knows that values were dropped.
        self._told_until = _BEGINNING
        self._frames: deque[StreamFrame] = deque()
        self._marks: deque[AttemptBegan | ValuesDropped] = deque()
        self._is_over = False
        self._ended = False

    @property
    def cursor(self) -> str | None:
        """The place after the last returned item; before the first item, the cursor that was given."""
        return self._cursor

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamItem[T]:
        """Wait for the next item, and return it.

        Raises:
            EngineTimeoutError: no item came in time; call again to wait for it again.
            NotFoundError: `execution_not_found`; the run does not exist, or its retention is over.
            DecodingError: the value cannot be decoded; the next call returns the value after it.
            TransportError: the store could not be reached in time; or `engine_closed`.
        """
        if not self._marks and not self._frames:
            self._wait()
        if self._marks:
            mark = self._marks.popleft()
            self._cursor = mark.cursor
            return mark
        if not self._frames:
            raise StopIteration
        frame = self._frames.popleft()
        self._cursor = cursor = self._cursor_of(frame.frame_id)
        if frame.frame_type == BUDGET_LIMIT:
            return BudgetLimitPassed(*decode_budget_limit(frame), attempt=self._attempt, cursor=cursor)
        return StreamValue(
            decode_value(self._codec, frame),
            attempt=self._attempt,
            cursor=cursor,
            emitted_at=moment_of(frame.appended_at_ms),
            live=frame.mode is StreamMode.BEST_EFFORT_LIVE,
        )

    def _wait(self) -> None:
        """Read until there is an item, or the run has ended."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not (self._marks or self._frames or self._ended):
            remaining = _LONGEST_BLOCK if deadline is None else min(_LONGEST_BLOCK, deadline - time.monotonic())
            try:
                self._take(self._read(max(0.0, remaining)))
            except TransportError as error:
                if not error.retryable or remaining <= 0:
                    raise
                time.sleep(min(backoff.next(), remaining))
                continue
            backoff.reset()
            if remaining <= 0 and not (self._marks or self._frames or self._ended):
                raise EngineTimeoutError(
                    message=f"{self._id} emitted nothing within {self._timeout} s; it continues. Wait for it again.",
                    execution_id=str(self._id),
                )

    def _read(self, seconds: float) -> StreamFrames:
        """Wait for frames after the present place, in the next attempt if the present one is over."""
        if self._is_over:
            self._attempt, self._place, self._told_until = self._attempt + 1, _BEGINNING, _BEGINNING
            self._is_over = self._is_marked = False
        block = timedelta(milliseconds=int(seconds * 1000))
        return self._engine.tail_stream(
            self._id, self._attempt, self._place, block, _PAGE, TailVisibility.EXCLUDE_SUMMARY
        )

    def _take(self, page: StreamFrames) -> None:
        """Take what a read has found."""
        latest = -1 if page.latest_attempt is None else page.latest_attempt
        if latest >= self._attempt and not self._is_marked:
            self._is_marked = True
            self._marks.append(AttemptBegan(self._attempt, cursor=self._cursor_of(_BEGINNING.value)))
        if page.dropped and first_of(self._place) >= first_of(self._told_until):
            self._told_until = page.next_cursor if page.first_kept_id is None else StreamCursor(page.first_kept_id)
            self._marks.append(ValuesDropped(self._attempt, cursor=self._cursor_of(self._place.value)))
        self._frames.extend(page.frames)
        self._place = page.next_cursor
        self._is_over = page.is_closed and not page.more
        self._ended = self._is_over and page.has_ended and latest <= self._attempt

    def _cursor_of(self, frame_id: str) -> str:
        return f"{self._id.uuid}:{self._attempt}:{frame_id}"


def _parse(cursor: str, execution_id: ExecutionId) -> tuple[int, StreamCursor]:
    """Return the attempt and the place of a cursor.

    Raises:
        ValidationError: `invalid_cursor`.
    """
    match = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if match is None:
        raise ValidationError("invalid_cursor", f"{cursor!a:.200} is not the cursor of an item of a stream.")
    if match[1] != execution_id.uuid:
        raise ValidationError("invalid_cursor", f"{cursor!a:.200} is a cursor of another run than {execution_id}.")
    return int(match[2]), StreamCursor(match[3])


def read_summary(engine: EngineBackend, execution_id: ExecutionId, attempt: int | None) -> RunSummary | None:
    """Return the summary document of an attempt, or of the latest one; see `Run.summary`."""
    if attempt is None:
        attempt = engine.tail_stream(execution_id, 0, _BEGINNING, timedelta(), 1).latest_attempt or 0
    found = engine.read_summary(execution_id, attempt)
    if found is None:
        return None
    return RunSummary(
        document=json.loads(found.document),
        version=found.version,
        attempt=attempt,
        updated_at=moment_of(found.last_updated_at_ms),
    )
