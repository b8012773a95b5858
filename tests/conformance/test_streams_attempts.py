"""A reader of a whole run goes from attempt to attempt, with what the engine says of each."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_TAIL_BLOCK_MS, Limits
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.streams import StreamCursor
from tests.conftest import Clock
from tests.support.executions import BOOM, RETRYING, claim_one, created, running
from tests.support.streams import BEGINNING, BlockedTail, append_all, frame, tail, waiting
from tests.support.suspensions import signal, suspend

# A claim on Postgres passes over an execution that a reader looks at, and is woken as soon as that has looked.
BESIDE = timedelta(seconds=5)

LONGEST = timedelta(milliseconds=MAX_TAIL_BLOCK_MS)


def followed(
    engine: Engine, execution_id: ExecutionId, attempt: int = 0, after: StreamCursor = BEGINNING
) -> Iterator[str]:
    """Yield each frame of a run, `attempt N` where an attempt begins, and `dropped` where frames were missed."""
    while True:
        page = tail(engine, execution_id, after, LONGEST, attempt_index=attempt)
        if page.dropped:
            yield "dropped"
        yield from (each.payload.decode() for each in page.frames)
        after = page.next_cursor
        if not page.is_closed or page.more:
            continue
        if page.has_ended and (page.latest_attempt or 0) <= attempt:
            return
        attempt, after = attempt + 1, BEGINNING
        yield f"attempt {attempt}"


class Follower:
    """A reader of a whole run in a thread."""

    def __init__(self, engine: Engine, execution_id: ExecutionId) -> None:
        self._found: list[str] = []
        self._thread = threading.Thread(target=lambda: self._found.extend(followed(engine, execution_id)), daemon=True)
        self._thread.start()

    def result(self) -> list[str]:
        """Return what was read, when the run has ended."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self._found


def test_a_retry_after_half_an_answer_is_marked(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    follower = Follower(engine, claimed.execution_id)
    append_all(engine, claimed.handle, [frame("a"), frame("b")])
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane, max_wait=BESIDE)
    append_all(engine, again.handle, [frame(c) for c in "abc"])
    engine.complete(again.handle)

    assert follower.result() == ["a", "b", "attempt 1", "a", "b", "c"]
    assert list(followed(engine, claimed.execution_id)) == ["a", "b", "attempt 1", "a", "b", "c"]


def test_a_resume_gives_no_mark(engine: Engine) -> None:
    claimed = running(engine)
    follower = Follower(engine, claimed.execution_id)
    engine.append_frame(claimed.handle, frame("a"))
    (waitpoint,) = suspend(engine, claimed, "ready")
    signal(engine, claimed.execution_id, waitpoint)
    again = claim_one(engine, claimed.handle.lane, max_wait=BESIDE)
    engine.append_frame(again.handle, frame("b"))
    engine.complete(again.handle)

    assert follower.result() == ["a", "b"]


def test_a_cursor_of_an_attempt_goes_on_there_and_through_the_next(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    ids = [each.frame_id for each in append_all(engine, claimed.handle, [frame(str(n)) for n in range(4)])]
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane)
    append_all(engine, again.handle, [frame(c) for c in "abcde"])
    engine.complete(again.handle)

    rest = list(followed(engine, claimed.execution_id, 0, StreamCursor(ids[1])))

    assert rest == ["2", "3", "attempt 1", "a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    "ending", ["fails without a frame", "is cancelled while it waits", "is cancelled between attempts"]
)
def test_a_reader_of_a_run_ends_with_the_run(engine: Engine, ending: str) -> None:
    if ending == "is cancelled while it waits":
        execution, expected = created(engine), list[str]()
        with waiting(engine, execution):
            follower = Follower(engine, execution)
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
    elif ending == "fails without a frame":
        claimed = running(engine)
        execution, expected = claimed.execution_id, []
        with waiting(engine, execution):
            follower = Follower(engine, execution)
        engine.fail(claimed.handle, BOOM, FailureClass.PERMANENT)
    else:
        claimed = running(engine, policy=RETRYING)
        execution, expected = claimed.execution_id, ["attempt 1"]
        engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
        with waiting(engine, execution):
            follower = Follower(engine, execution)
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution))

    assert follower.result() == expected


def test_the_frames_of_a_lost_worker_are_followed_by_the_next_ones(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lease=timedelta(seconds=1))
    follower = Follower(engine, claimed.execution_id)
    engine.append_frame(claimed.handle, frame("a"))
    clock.move(timedelta(seconds=1))
    again = claim_one(engine, claimed.handle.lane, max_wait=BESIDE, worker="w2")
    engine.append_frame(again.handle, frame("b"))
    engine.complete(again.handle)

    assert follower.result() == ["a", "attempt 1", "b"]


def test_a_replayed_run_has_another_attempt(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("a"))
    engine.complete(claimed.handle)
    assert list(followed(engine, claimed.execution_id)) == ["a"]
    engine.replay_execution(ReplayExecutionArgs(execution_id=claimed.execution_id))
    follower = Follower(engine, claimed.execution_id)
    again = claim_one(engine, claimed.handle.lane, max_wait=BESIDE)
    engine.append_frame(again.handle, frame("b"))
    engine.complete(again.handle)

    assert follower.result() == ["a", "attempt 1", "b"]


def test_a_tail_blocks_for_at_most_thirty_seconds(engine: Engine) -> None:
    claimed = running(engine)
    with waiting(engine, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(engine, claimed.execution_id, block=timedelta(seconds=30)))
    engine.complete(claimed.handle)
    assert blocked.result().is_closed


def test_an_attempt_may_append_100_000_durable_frames_of_64_mib() -> None:
    assert (Limits().durable_frames, Limits().durable_bytes) == (100_000, 64 * 1024 * 1024)
