"""Short ways to append frames and to read them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from flowfabric_worker import AttemptBegan, Run
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.streams import (
    AppendFrameOutcome,
    Frame,
    FrameAppend,
    StreamCursor,
    StreamFrames,
    StreamMode,
)
from tests.support.executions import raw_client, raw_key

START = StreamCursor.start()
END = StreamCursor.end()
BEGINNING = StreamCursor.from_beginning()
NOW = timedelta()
LIVE = StreamMode.BEST_EFFORT_LIVE
SUMMARY = StreamMode.DURABLE_SUMMARY


def frame(payload: bytes | str, **changes: Any) -> Frame:
    """Return a durable frame, with changes."""
    return Frame(payload=payload.encode() if isinstance(payload, str) else payload, **changes)


def live(payload: bytes | str, **changes: Any) -> Frame:
    """Return a live frame, with changes."""
    return frame(payload, mode=LIVE, **changes)


def patch(payload: bytes | str, **changes: Any) -> Frame:
    """Return a summary frame, with changes."""
    return frame(payload, mode=SUMMARY, **changes)


def append_all(engine: Engine, handle: Handle, frames: Sequence[Frame]) -> list[AppendFrameOutcome]:
    """Append frames, each of which must be taken, in one call."""
    outcomes = engine.append_frames([FrameAppend(handle=handle, frame=each) for each in frames])
    taken = [each for each in outcomes if not isinstance(each, EngineError)]
    assert len(taken) == len(frames), outcomes
    return taken


def read_all(engine: Engine, execution_id: ExecutionId, attempt_index: int = 0) -> StreamFrames:
    """Read everything that an attempt's stream holds."""
    return engine.read_stream(execution_id, attempt_index, START, END, 10_000)


def tail(
    engine: Engine, execution_id: ExecutionId, after: StreamCursor = BEGINNING, block: timedelta = NOW, **changes: Any
) -> StreamFrames:
    """Tail the first attempt, with changes; without a block only look."""
    return engine.tail_stream(
        execution_id, changes.pop("attempt_index", 0), after, block, changes.pop("count_limit", 1000), **changes
    )


def values_of(run: Run[Any], after: str | None = None) -> list[Any]:
    """Return the values of a run's stream, and for each further attempt its number in brackets."""
    return [
        [item.attempt] if isinstance(item, AttemptBegan) else getattr(item, "value", item)
        for item in run.stream(after, timeout=10)
    ]


def payloads(found: StreamFrames) -> list[bytes]:
    """Return what the frames hold."""
    return [each.payload for each in found.frames]


class BlockedTail:
    """A tail in a thread.

    Attributes:
        found: what it returned; None while it waits.
        problem: what it raised.
    """

    def __init__(self, run: Callable[[], StreamFrames]) -> None:
        self.found: StreamFrames | None = None
        self.problem: EngineError | None = None
        self._run = run
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self.found = self._run()
        except EngineError as error:
            self.problem = error

    def result(self, seconds: float = 10) -> StreamFrames:
        """Return what the tail found, at the latest after some seconds."""
        self._thread.join(seconds)
        assert self.problem is None
        assert self.found is not None
        return self.found

    def join(self) -> None:
        """Wait until the tail has ended."""
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def waiting(engine: Engine, execution: ExecutionId, count: int = 1) -> Iterator[None]:
    """Start tails of an execution, and go on when they wait and their process is registered."""
    yield
    deadline = time.monotonic() + 10
    while len(engine.listener._tails.get(str(execution), ())) < count or not registered(engine, execution):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def registered(engine: Engine, execution: ExecutionId) -> bool:
    key = raw_key(engine, execution.partition_number, f"stream:{execution.uuid}")
    return bool(raw_client(engine, execution.partition_number).hexists(key, "readers"))
