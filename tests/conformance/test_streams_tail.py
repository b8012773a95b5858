"""A tail waits for frames behind a place, or for the end, and always gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine import listener as listening
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.streams import (
    Frame,
    StreamCloseReason,
    StreamCursor,
    TailVisibility,
)
from tests.support.dumps import Dump
from tests.support.executions import BOOM, RETRYING, claim_one, created, refused, running
from tests.support.streams import (
    BEGINNING,
    BlockedTail,
    append_all,
    frame,
    live,
    patch,
    payloads,
    read_all,
    tail,
    waiting,
)

LONG = timedelta(seconds=20)
DURABLE_ONLY = TailVisibility.EXCLUDE_BEST_EFFORT


def test_a_tail_without_a_block_returns_at_once(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    before = dump()
    began = time.monotonic()
    found = tail(engine, claimed.execution_id)
    assert time.monotonic() - began < 1
    assert (found.frames, found.is_closed, found.next_cursor) == ((), False, BEGINNING)
    assert dump() == before


def test_a_tail_begins_behind_its_cursor(engine: Engine) -> None:
    claimed = running(engine)
    ids = [each.frame_id for each in append_all(engine, claimed.handle, [frame(c) for c in "abc"])]

    found = tail(engine, claimed.execution_id, StreamCursor(ids[0]), LONG)

    assert payloads(found) == [b"b", b"c"]
    assert found.next_cursor == StreamCursor(ids[2])


def test_a_tail_waits_as_long_as_it_is_told_when_nothing_comes(engine: Engine) -> None:
    claimed = running(engine)
    began = time.monotonic()
    found = tail(engine, claimed.execution_id, block=timedelta(milliseconds=150))
    assert 0.15 <= time.monotonic() - began < 5
    assert (found.frames, found.is_closed) == ((), False)


@pytest.mark.parametrize("append", [frame("x"), live("x"), patch("{}")], ids=["durable", "live", "summary"])
def test_a_frame_wakes_a_tail(engine: Engine, append: Frame) -> None:
    claimed = running(engine)
    with waiting(engine, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(engine, claimed.execution_id, block=LONG))
    engine.append_frame(claimed.handle, append)
    assert len(blocked.result().frames) == 1


def test_a_tail_that_came_before_the_first_claim_hears_the_first_frame(engine: Engine) -> None:
    execution = created(engine, lane="early")
    with waiting(engine, execution):
        blocked = BlockedTail(lambda: tail(engine, execution, block=LONG))
    claimed = claim_one(engine, "early")
    engine.append_frame(claimed.handle, frame("first"))
    assert payloads(blocked.result()) == [b"first"]


@pytest.mark.parametrize("writes", [True, False], ids=["written", "unwritten"])
@pytest.mark.parametrize("ending", ["complete", "fail", "retry", "cancel"])
def test_the_end_of_its_attempt_wakes_a_tail(engine: Engine, ending: str, writes: bool) -> None:
    claimed = running(engine, policy=RETRYING)
    place = BEGINNING
    if writes:
        place = StreamCursor(engine.append_frame(claimed.handle, frame("x")).frame_id)
    with waiting(engine, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(engine, claimed.execution_id, place, LONG))
    if ending == "complete":
        engine.complete(claimed.handle)
    elif ending == "cancel":
        engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))
    else:
        engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT if ending == "retry" else FailureClass.PERMANENT)

    found = blocked.result()

    assert found.is_closed
    assert (found.frames, found.next_cursor, found.has_ended) == ((), place, ending != "retry")


def test_a_tail_ends_when_the_lease_does_though_nothing_sweeps(engine: Engine) -> None:
    claimed = running(engine, lease=timedelta(milliseconds=300))
    found = tail(engine, claimed.execution_id, block=LONG)
    assert found.closed_reason is StreamCloseReason.LEASE_EXPIRED


def test_a_closed_stream_is_read_to_its_end_first(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame(str(number)) for number in range(25)])
    engine.complete(claimed.handle)
    found, place = list[bytes](), BEGINNING
    while True:
        page = tail(engine, claimed.execution_id, place, LONG, count_limit=10)
        assert page.is_closed
        found += payloads(page)
        place = page.next_cursor
        if not page.more:
            break
    assert found == [str(number).encode() for number in range(25)]
    at_the_tip = tail(engine, claimed.execution_id, place, LONG)
    assert (at_the_tip.frames, at_the_tip.next_cursor) == ((), place)


def test_live_frames_are_hidden_before_frames_are_counted(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [live(str(number)) for number in range(50)])
    last = append_all(engine, claimed.handle, [patch("{}"), frame("durable"), live("x"), frame("more")])[-1]

    found = tail(engine, claimed.execution_id, block=LONG, count_limit=2, visibility=DURABLE_ONLY)
    rest = tail(engine, claimed.execution_id, found.next_cursor, LONG, visibility=DURABLE_ONLY)

    assert payloads(found) == [b"{}", b"durable"]
    assert payloads(rest) == [b"more"]
    assert rest.next_cursor == StreamCursor(last.frame_id)


def test_a_tail_that_hides_live_frames_waits_through_them(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [live("x") for _ in range(200)])
    with waiting(engine, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(engine, claimed.execution_id, block=LONG, visibility=DURABLE_ONLY))
    for _ in range(5):
        engine.append_frame(claimed.handle, live("y"))
    engine.append_frame(claimed.handle, frame("seen"))
    found = blocked.result()
    assert payloads(found) == [b"seen"]
    assert not found.dropped


def test_every_tail_of_a_stream_is_woken(engine: Engine) -> None:
    claimed = running(engine)
    other = Engine(lambda: (engine.store, None))
    with waiting(engine, claimed.execution_id, 8), waiting(other, claimed.execution_id, 8):
        blocked = [
            BlockedTail(lambda each=each: tail(each, claimed.execution_id, block=LONG))  # type: ignore[misc]
            for each in (engine, other)
            for _ in range(8)
        ]
    engine.append_frame(claimed.handle, frame("all"))
    assert [payloads(each.result()) for each in blocked] == [[b"all"]] * 16


def test_a_tail_leaves_nothing_behind_in_its_engine(engine: Engine) -> None:
    claimed = running(engine)
    tail(engine, claimed.execution_id, block=timedelta(milliseconds=10))
    with refused("execution_not_found"):
        tail(Engine(lambda: (engine.store, None), namespace="other"), claimed.execution_id, block=LONG)
    assert engine.listener._tails == {}
    assert engine.listener._tail_count == 0


def test_a_tail_above_the_limit_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_TAILS", 2)
    claimed = running(engine)
    with waiting(engine, claimed.execution_id, 2):
        blocked = [BlockedTail(lambda: tail(engine, claimed.execution_id, block=LONG)) for _ in range(2)]
    with refused("too_many_tails"):
        tail(engine, claimed.execution_id, block=LONG)
    assert tail(engine, claimed.execution_id).frames == ()
    engine.append_frame(claimed.handle, frame("x"))
    assert [payloads(each.result()) for each in blocked] == [[b"x"]] * 2
    assert payloads(tail(engine, claimed.execution_id, block=LONG)) == [b"x"]


def test_closing_an_engine_ends_its_waiting_tails(engine: Engine) -> None:
    claimed = running(engine)
    # The store is another engine's too: only this one's connections end.
    other = Engine(lambda: (engine.store, None))
    with waiting(other, claimed.execution_id):
        blocked = BlockedTail(lambda: tail(other, claimed.execution_id, block=LONG))
    other.listener.close()
    blocked.join()
    assert isinstance(blocked.problem, TransportError)
    assert blocked.problem.code == "engine_closed"


def test_a_blocked_tail_holds_up_no_append(engine: Engine) -> None:
    claimed, elsewhere = running(engine), running(engine)
    with waiting(engine, claimed.execution_id, 5):
        blocked = [BlockedTail(lambda: tail(engine, claimed.execution_id, block=LONG)) for _ in range(5)]
    began = time.monotonic()
    for number in range(50):
        engine.append_frame(elsewhere.handle, frame(str(number)))
    assert time.monotonic() - began < 5
    engine.complete(claimed.handle)
    assert all(each.result().is_closed for each in blocked)


def test_a_reader_follows_frames_while_they_are_written(engine: Engine) -> None:
    claimed = running(engine)

    def follow() -> Iterator[bytes]:
        place = BEGINNING
        while True:
            page = tail(engine, claimed.execution_id, place, LONG, count_limit=7)
            yield from payloads(page)
            place = page.next_cursor
            if page.is_closed and not page.more:
                return

    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(follow()))
    reader.start()
    for number in range(200):
        engine.append_frame(claimed.handle, (frame if number % 3 else live)(str(number)))
    engine.complete(claimed.handle)
    reader.join(20)
    assert not reader.is_alive()
    assert found == [str(number).encode() for number in range(200)]


def test_a_cursor_with_the_largest_numbers_finds_nothing(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("x"))
    largest = StreamCursor(f"{2**64 - 1}-{2**64 - 1}")
    found = tail(engine, claimed.execution_id, largest)
    assert (found.frames, found.next_cursor) == ((), largest)
    assert payloads(tail(engine, claimed.execution_id, StreamCursor("0"))) == [b"x"]
    assert read_all(engine, claimed.execution_id).next_cursor != BEGINNING
