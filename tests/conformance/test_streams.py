"""Frames of a running attempt: appended once, in order, and read as they were."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_FRAME_BYTES, MAX_SEQ, Limits
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.streams import Frame, FrameAppend, FrameKind, StreamCursor, StreamMode
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, RETRYING, claim_one, refused, running, tenant
from tests.support.lossy_store import LosingStore
from tests.support.streams import END, LIVE, START, SUMMARY, append_all, frame, live, patch, payloads, read_all

EVERY_BYTE = bytes(range(256))
MILLISECOND = timedelta(milliseconds=1)


def test_frames_come_back_in_the_order_in_which_they_were_appended(engine: Engine) -> None:
    claimed = running(engine)
    first = engine.append_frame(claimed.handle, frame("one"))
    second = engine.append_frame(claimed.handle, frame("two"))

    found = read_all(engine, claimed.execution_id)

    assert [each.frame_id for each in found.frames] == [first.frame_id, second.frame_id]
    assert payloads(found) == [b"one", b"two"]
    assert (first.frame_count, second.frame_count) == (1, 2)
    assert (found.is_closed, found.more, found.dropped) == (False, False, False)
    assert found.next_cursor == StreamCursor(second.frame_id)
    assert found.latest_attempt == 0


def test_a_frame_comes_back_with_everything_that_was_said_of_it(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    outcome = engine.append_frame(
        claimed.handle,
        Frame(payload=EVERY_BYTE, kind=FrameKind.BLOB, frame_type="tökens", correlation_id="call 7", seq=3, mode=LIVE),
    )

    (found,) = read_all(engine, claimed.execution_id).frames

    assert found.frame_id == outcome.frame_id == f"{clock.ms}-0"
    assert (found.payload, found.kind, found.frame_type) == (EVERY_BYTE, FrameKind.BLOB, "tökens")
    assert (found.correlation_id, found.seq, found.mode) == ("call 7", 3, StreamMode.BEST_EFFORT_LIVE)
    assert found.appended_at_ms == clock.ms
    assert found.summary_version is None


def test_a_frame_of_which_nothing_is_said_is_a_durable_event(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, Frame(payload=b""))

    (found,) = read_all(engine, claimed.execution_id).frames

    assert (found.payload, found.kind, found.frame_type) == (b"", FrameKind.EVENT, "event")
    assert (found.correlation_id, found.seq, found.mode) == (None, None, StreamMode.DURABLE)


def test_frames_of_all_modes_share_one_order(engine: Engine) -> None:
    claimed = running(engine)
    frames = [frame("1"), live("2"), patch("3"), frame("4"), patch("5"), live("6"), live("7"), frame("8")]
    outcomes = append_all(engine, claimed.handle, frames)

    found = read_all(engine, claimed.execution_id)

    assert b"".join(payloads(found)) == b"12345678"
    assert [each.frame_id for each in found.frames] == [each.frame_id for each in outcomes]
    assert [each.frame_count for each in outcomes] == list(range(1, 9))


@pytest.mark.parametrize("mode", [StreamMode.DURABLE, LIVE])
def test_a_frame_holds_64_kib_and_not_a_byte_more(engine: Engine, dump: Dump, mode: StreamMode) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, Frame(payload=b"x" * MAX_FRAME_BYTES, mode=mode))
    before = dump()
    with refused("payload_too_large"):
        engine.append_frame(claimed.handle, Frame(payload=b"x" * (MAX_FRAME_BYTES + 1), mode=mode))
    assert dump() == before


@pytest.mark.parametrize("seq", [-1, MAX_SEQ + 1, True, 1.0, "1"])
def test_an_invalid_sequence_number_is_refused(seq: Any) -> None:
    with refused("invalid_input"):
        Frame(payload=b"", seq=seq)


@pytest.mark.parametrize("field", ["kind", "mode"])
def test_an_unknown_frame_kind_or_mode_is_refused(field: str) -> None:
    with refused("invalid_input"):
        Frame(payload=b"", **{field: "nonsense"})


# Many at once.


def test_frames_of_many_holders_go_out_together(engine: Engine) -> None:
    holders = [running(engine) for _ in range(7)]
    appends = [
        FrameAppend(handle=each.handle, frame=frame(f"{place}.{number}"))
        for number in range(30)
        for place, each in enumerate(holders)
    ]

    outcomes = engine.append_frames(appends)

    assert not any(isinstance(each, EngineError) for each in outcomes)
    for place, each in enumerate(holders):
        found = payloads(read_all(engine, each.execution_id))
        assert found == [f"{place}.{number}".encode() for number in range(30)]


@pytest.mark.parametrize("size", [10, 40_000])
def test_more_frames_than_a_call_holds_keep_their_order(engine: Engine, size: int) -> None:
    claimed = running(engine)
    sent = [b"%d" % number + b"x" * size for number in range(230)]

    outcomes = append_all(engine, claimed.handle, [frame(each) for each in sent])

    assert [each.frame_count for each in outcomes] == list(range(1, 231))
    assert payloads(read_all(engine, claimed.execution_id)) == sent


def test_one_holder_that_lost_its_lease_is_refused_alone(engine: Engine) -> None:
    good, bad = running(engine), running(engine)
    engine.complete(bad.handle)

    outcomes = engine.append_frames(
        [FrameAppend(handle=each.handle, frame=frame(str(n))) for n in range(120) for each in (good, bad)]
    )

    assert {getattr(each, "code", None) for each in outcomes[1::2]} == {"execution_not_active"}
    assert len(payloads(read_all(engine, good.execution_id))) == 120
    assert payloads(read_all(engine, bad.execution_id)) == []


def test_an_append_of_nothing_answers_nothing(engine: Engine) -> None:
    assert engine.append_frames([]) == []


# Bounds.


def bounded(engine: Engine, **limits: int) -> Engine:
    return Engine(lambda: (engine.store, None), limits=Limits(**limits))


def test_a_stream_holds_so_many_durable_frames_and_loses_none(engine: Engine) -> None:
    limited = bounded(engine, durable_frames=5)
    claimed = running(limited)
    append_all(limited, claimed.handle, [frame(str(number)) for number in range(5)])

    outcomes = limited.append_frames(
        [FrameAppend(handle=claimed.handle, frame=each) for each in (frame("5"), live("6"))]
    )

    assert isinstance(outcomes[0], EngineError)
    assert outcomes[0].code == "stream_full"
    assert outcomes[0].details["limit"] == "5"
    assert b"".join(payloads(read_all(limited, claimed.execution_id))) == b"012346"


def test_a_stream_holds_so_many_bytes_of_durable_frames(engine: Engine, dump: Dump) -> None:
    limited = bounded(engine, durable_bytes=1000)
    claimed = running(limited)
    append_all(limited, claimed.handle, [frame("x" * 400), frame("y" * 600)])
    before = dump()
    with refused("stream_full") as caught:
        limited.append_frame(claimed.handle, frame("z"))
    assert caught.value.details["what"] == "bytes"
    assert dump() == before
    limited.append_frame(claimed.handle, frame(""))


def test_the_bound_is_each_attempts_own(engine: Engine) -> None:
    limited = bounded(engine, durable_frames=2)
    claimed = running(limited, policy=RETRYING)
    append_all(limited, claimed.handle, [frame("1"), frame("2")])
    limited.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(limited, claimed.handle.lane)
    append_all(limited, again.handle, [frame("3"), frame("4")])
    with refused("stream_full"):
        limited.append_frame(again.handle, frame("5"))


def test_live_and_summary_frames_push_out_no_durable_one(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame(str(number)) for number in range(300)])
    append_all(engine, claimed.handle, [live("x") for _ in range(400)] + [patch("{}") for _ in range(400)])

    found = [each.payload for each in read_all(engine, claimed.execution_id).frames if each.mode == StreamMode.DURABLE]

    assert found == [str(number).encode() for number in range(300)]


# Numbers that make an append repeatable.


@pytest.mark.parametrize("mode", [StreamMode.DURABLE, LIVE])
def test_a_frame_that_comes_again_under_its_number_is_answered_as_before(
    engine: Engine, dump: Dump, mode: StreamMode
) -> None:
    claimed = running(engine)
    first = engine.append_frame(claimed.handle, frame("a", seq=5, mode=mode))
    engine.append_frame(claimed.handle, frame("b", seq=9, mode=mode))
    before = dump()

    assert engine.append_frame(claimed.handle, frame("a", seq=5, mode=mode)) == first
    assert dump() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"payload": b"b"},
        {"kind": FrameKind.STDOUT},
        {"frame_type": "t"},
        {"correlation_id": "c"},
        {"mode": LIVE},
        {"seq": 4},
    ],
)
def test_another_frame_under_a_known_number_is_a_conflict(engine: Engine, dump: Dump, changes: dict[str, Any]) -> None:
    claimed = running(engine)
    known = frame("a", seq=5)
    engine.append_frame(claimed.handle, known)
    before = dump()
    with refused("frame_conflict") as caught:
        engine.append_frame(claimed.handle, attrs.evolve(known, **changes))
    assert caught.value.details["seq"] == str(changes.get("seq", 5))
    assert dump() == before


def test_a_generator_that_begins_again_appends_only_what_is_new(engine: Engine) -> None:
    claimed = running(engine)
    frames = [frame(str(number), seq=number) for number in range(250)]
    first = append_all(engine, claimed.handle, frames[:140])
    engine.release(claimed.handle)
    again = claim_one(engine, claimed.handle.lane)

    outcomes = append_all(engine, again.handle, frames)

    assert outcomes[:140] == first
    assert payloads(read_all(engine, claimed.execution_id)) == [str(number).encode() for number in range(250)]


@pytest.mark.parametrize("numbered", [True, False])
def test_frames_whose_replies_are_lost_are_seen_once_and_in_order(engine: Engine, numbered: bool) -> None:
    claimed = running(engine)
    store = LosingStore(engine.store)  # type: ignore[arg-type]
    writer = Engine(lambda: (store, None))
    writer.prepare()
    for number in range(1000):
        each = frame(str(number), seq=number if numbered else None)
        if number % 10:
            writer.append_frame(claimed.handle, each)
        else:
            with store.losing():
                writer.append_frame(claimed.handle, each)

    assert store.lost == 100
    assert payloads(read_all(engine, claimed.execution_id)) == [str(number).encode() for number in range(1000)]


def test_a_new_attempt_has_numbers_of_its_frames_only(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    engine.append_frame(claimed.handle, frame("a", seq=5))
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane)
    engine.append_frame(again.handle, frame("b", seq=5))

    assert payloads(read_all(engine, claimed.execution_id, 0)) == [b"a"]
    assert payloads(read_all(engine, claimed.execution_id, 1)) == [b"b"]


def test_only_repeats_are_answered_after_the_lease_is_over(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    known = frame("a", seq=1)
    first = engine.append_frame(claimed.handle, known)
    engine.complete(claimed.handle)
    before = dump()

    outcomes = engine.append_frames(
        [FrameAppend(handle=claimed.handle, frame=each) for each in (known, frame("b", seq=2))]
    )

    assert outcomes[0] == first
    assert getattr(outcomes[1], "code", None) == "execution_not_active"
    assert dump() == before


def test_a_stale_lease_cannot_append_or_repeat_a_frame(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("a", seq=1))
    stranger = attrs.evolve(claimed.handle, lease_id=str(uuid4()), attempt_id=str(uuid4()))
    with refused("stale_lease"):
        engine.append_frame(stranger, frame("a", seq=1))
    with refused("stale_lease"):
        engine.append_frame(attrs.evolve(claimed.handle, attempt_index=1), frame("b", seq=2))


def test_a_live_frame_repeated_after_a_thousand_others_is_not_appended(engine: Engine) -> None:
    claimed = running(engine)
    frames = [live(str(number), seq=number) for number in range(1100)]
    append_all(engine, claimed.handle, frames)

    outcome = engine.append_frame(claimed.handle, frames[3])

    assert (outcome.frame_id, outcome.frame_count) == ("", 0)
    assert engine.append_frame(claimed.handle, live("next", seq=1100)).frame_count == 1101


# Reading.


def test_both_ends_of_a_range_belong_to_it(engine: Engine) -> None:
    claimed = running(engine)
    ids = [StreamCursor(each.frame_id) for each in append_all(engine, claimed.handle, [frame(c) for c in "abcdef"])]

    found = engine.read_stream(claimed.execution_id, 0, ids[1], ids[3], 10)

    assert payloads(found) == [b"b", b"c", b"d"]
    assert found.next_cursor == ids[3]


def test_a_bare_millisecond_means_all_of_it(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame(c) for c in "abc"])
    clock.move(MILLISECOND)
    engine.append_frame(claimed.handle, frame("d"))
    at = StreamCursor(str(clock.ms - 1))

    assert payloads(engine.read_stream(claimed.execution_id, 0, at, at, 10)) == [b"a", b"b", b"c"]
    assert payloads(engine.read_stream(claimed.execution_id, 0, START, StreamCursor(f"0{clock.ms - 1}-1"), 9)) == [
        b"a",
        b"b",
    ]


def test_a_limited_read_goes_on_where_it_ended(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame(str(number)) for number in range(45)])
    found, place = list[bytes](), START
    for expected in (20, 20, 5):
        page = engine.read_stream(claimed.execution_id, 0, place, END, 20)
        assert len(page.frames) == expected
        assert page.more is (expected == 20)
        found += payloads(page)
        ms, number = page.next_cursor.value.split("-")
        place = StreamCursor(f"{ms}-{int(number) + 1}")
    assert found == [str(number).encode() for number in range(45)]


def test_a_read_of_ten_thousand_frames_gets_them(engine: Engine) -> None:
    claimed = running(engine)
    for first in range(0, 1200, 400):
        append_all(engine, claimed.handle, [frame(str(first + number)) for number in range(400)])

    found = engine.read_stream(claimed.execution_id, 0, START, END, 10_000)

    assert payloads(found) == [str(number).encode() for number in range(1200)]
    assert not found.more


def test_a_stream_that_was_never_written_is_empty_and_open(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    before = dump()
    for attempt in (0, 7):
        found = read_all(engine, claimed.execution_id, attempt)
        assert (found.frames, found.is_closed, found.latest_attempt) == ((), False, 0)
    assert dump() == before


def test_a_reader_of_another_namespace_finds_no_execution(engine: Engine) -> None:
    claimed = running(engine)
    engine.append_frame(claimed.handle, frame("secret"))
    other = tenant(engine, "other")
    with refused("execution_not_found"):
        read_all(other, claimed.execution_id)
    with refused("execution_not_found"):
        other.tail_stream(claimed.execution_id, 0, StreamCursor("0-0"), timedelta(seconds=1), 1)
    with refused("execution_not_found"):
        other.read_summary(claimed.execution_id, 0)


def test_attempts_are_read_apart_and_ids_grow_over_all(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    append_all(engine, claimed.handle, [frame("a"), live("b")])
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane)
    append_all(engine, again.handle, [live("c"), frame("d")])

    first, second = (read_all(engine, claimed.execution_id, attempt) for attempt in (0, 1))

    assert payloads(first) == [b"a", b"b"]
    assert payloads(second) == [b"c", b"d"]
    assert first.latest_attempt == second.latest_attempt == 1
    assert second.frames[0].appended_at_ms >= first.frames[-1].appended_at_ms


def test_ids_never_go_back_when_the_clock_does(engine: Engine, clock: Clock) -> None:
    claimed = running(engine)
    first = engine.append_frame(claimed.handle, frame("a"))
    clock.move(-5 * MILLISECOND)
    append_all(engine, claimed.handle, [frame("b"), live("c")])

    found = read_all(engine, claimed.execution_id)

    assert payloads(found) == [b"a", b"b", b"c"]
    assert [each.frame_id.partition("-")[0] for each in found.frames] == [first.frame_id.partition("-")[0]] * 3
    assert found.frames[1].appended_at_ms == clock.ms


def test_a_mode_is_stored_with_each_frame(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame("1"), live("2"), patch("3")])
    modes = [each.mode for each in read_all(engine, claimed.execution_id).frames]
    assert modes == [StreamMode.DURABLE, LIVE, SUMMARY]
