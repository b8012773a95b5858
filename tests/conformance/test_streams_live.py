"""Live frames: kept as the pace asks, and a reader is told of what it missed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.streams import (
    BestEffortLiveConfig,
    Frame,
    StreamCursor,
    StreamFrames,
    TailVisibility,
)
from tests.conftest import Clock
from tests.support.executions import BOOM, RETRYING, claim_one, raw_client, raw_key, refused, running
from tests.support.streams import BEGINNING, append_all, frame, live, patch, payloads, read_all, tail

FEW = BestEffortLiveConfig(ttl=timedelta(seconds=1), maxlen_floor=3, maxlen_ceiling=3)


def few(payload: str) -> Frame:
    """Return a live frame of which three are kept."""
    return live(payload, live=FEW)


def kept(engine: Engine, execution_id: ExecutionId) -> int:
    key = raw_key(engine, execution_id.partition_number, f"live:{execution_id.uuid}")
    return int(raw_client(engine, execution_id.partition_number).xlen(key))


def bounds(gaps_ms: list[int], config: BestEffortLiveConfig) -> list[int]:
    """Return the bound after each frame, by the formula as reference texts have it."""
    seconds = max(config.ttl / timedelta(milliseconds=1), 1) / 1000
    rate, found = config.maxlen_floor / (2 * seconds), []
    for place, gap in enumerate(gaps_ms):
        if place:
            rate = config.ema_alpha * 1000 / max(gap, 1) + (1 - config.ema_alpha) * rate
        needed = -int(-(rate * seconds * 2) // 1)
        found.append(max(config.maxlen_floor, min(config.maxlen_ceiling, needed)))
    return found


# The gaps in ms between frames, how they are kept, and the bound after each frame.
PACES: dict[str, tuple[list[int], BestEffortLiveConfig, list[int]]] = {
    "steady": (
        [0, 100, 100, 100],
        BestEffortLiveConfig(ttl=timedelta(seconds=1), maxlen_floor=2, maxlen_ceiling=100),
        [2, 6, 9, 11],
    ),
    "burst": (
        [0, 0, 0, 0, 0],
        BestEffortLiveConfig(ttl=timedelta(milliseconds=10), maxlen_floor=1, maxlen_ceiling=12),
        [1, 5, 8, 11, 12],
    ),
    "burst, then rest": (
        [0, 1, 1, 1, 1, 2000, 2000],
        BestEffortLiveConfig(ttl=timedelta(milliseconds=10), maxlen_floor=2, maxlen_ceiling=100, ema_alpha=0.5),
        [2, 11, 16, 18, 19, 10, 5],
    ),
    "no time to live": (
        [0, 5, 5],
        BestEffortLiveConfig(ttl=timedelta(), maxlen_floor=3, maxlen_ceiling=9, ema_alpha=1.0),
        [3, 3, 3],
    ),
    "a clock that stands": (
        [0, 0, -0],
        BestEffortLiveConfig(ttl=timedelta(milliseconds=10), maxlen_floor=4, maxlen_ceiling=4),
        [4, 4, 4],
    ),
}


@pytest.mark.parametrize("pace", PACES)
def test_live_frames_are_kept_as_their_pace_asks(engine: Engine, clock: Clock, pace: str) -> None:
    gaps, config, expected = PACES[pace]
    assert bounds(gaps, config) == expected
    claimed = running(engine, lease=timedelta(hours=1))
    stored = 0
    for gap, bound in zip(gaps, expected, strict=True):
        clock.move(timedelta(milliseconds=gap))
        engine.append_frame(claimed.handle, live("x", live=config))
        stored = min(stored + 1, bound)
        assert kept(engine, claimed.execution_id) == stored


def test_a_bound_that_shrinks_is_reached_step_by_step(engine: Engine) -> None:
    claimed = running(engine)
    many = BestEffortLiveConfig(maxlen_floor=500, maxlen_ceiling=500)
    append_all(engine, claimed.handle, [live("x", live=many) for _ in range(500)])
    counts = []
    for _ in range(4):
        engine.append_frame(claimed.handle, few("x"))
        counts.append(kept(engine, claimed.execution_id))
    assert counts == [301, 102, 3, 3]


def test_a_reader_behind_what_is_kept_is_told_before_any_frame(engine: Engine) -> None:
    claimed = running(engine)
    ids = [each.frame_id for each in append_all(engine, claimed.handle, [few(str(number)) for number in range(10)])]

    found = read_all(engine, claimed.execution_id)

    assert found.dropped
    assert found.first_kept_id == ids[7]
    assert payloads(found) == [b"7", b"8", b"9"]


@pytest.mark.parametrize(("place", "dropped"), [(5, True), (6, False), (7, False), (9, False)])
def test_a_reader_that_missed_nothing_is_told_nothing(engine: Engine, place: int, dropped: bool) -> None:
    claimed = running(engine)
    ids = [each.frame_id for each in append_all(engine, claimed.handle, [few(str(number)) for number in range(10)])]

    found = tail(engine, claimed.execution_id, StreamCursor(ids[place]))

    assert found.dropped is dropped
    assert (found.first_kept_id is not None) is dropped
    assert payloads(found) == [str(number).encode() for number in range(max(place + 1, 7), 10)]


def test_a_reader_of_durable_frames_missed_nothing(engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame("a"), *(few(str(number)) for number in range(10)), frame("b")])

    found = tail(engine, claimed.execution_id, visibility=TailVisibility.EXCLUDE_BEST_EFFORT)

    assert payloads(found) == [b"a", b"b"]
    assert not found.dropped


def test_a_reader_of_values_missed_no_patches_of_the_summary(engine: Engine) -> None:
    claimed = running(engine)
    patches = [patch(f'{{"at":{number}}}') for number in range(300)]
    append_all(engine, claimed.handle, [frame("a"), *patches, frame("b"), live("c")])
    assert tail(engine, claimed.execution_id).dropped

    found = tail(engine, claimed.execution_id, visibility=TailVisibility.EXCLUDE_SUMMARY)

    assert payloads(found) == [b"a", b"b", b"c"]
    assert not found.dropped


def test_a_reader_that_missed_everything_gets_on_and_is_told_once(engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    append_all(engine, claimed.handle, [few(str(number)) for number in range(5)])
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta())
    again = claim_one(engine, claimed.handle.lane)
    append_all(engine, again.handle, [few(f"again {number}") for number in range(3)])

    def look(attempt: int, after: StreamCursor) -> StreamFrames:
        return tail(engine, claimed.execution_id, after, timedelta(seconds=20), attempt_index=attempt)

    first = look(0, BEGINNING)
    second = look(0, first.next_cursor)

    assert (first.dropped, first.first_kept_id, first.frames) == (True, None, ())
    assert (second.dropped, second.frames, second.is_closed) == (False, (), True)
    assert not look(1, BEGINNING).dropped
    assert payloads(look(1, BEGINNING)) == [b"again 0", b"again 1", b"again 2"]


def test_durable_frames_between_dropped_ones_are_all_read(engine: Engine) -> None:
    claimed = running(engine)
    for number in range(20):
        append_all(engine, claimed.handle, [frame(f"d{number}"), few(f"l{number}")])

    found = read_all(engine, claimed.execution_id)

    assert [each for each in payloads(found) if each.startswith(b"d")] == [f"d{n}".encode() for n in range(20)]
    assert [each for each in payloads(found) if each.startswith(b"l")] == [b"l17", b"l18", b"l19"]
    assert found.dropped


@pytest.mark.parametrize("alpha", [0, -0.1, 1.01, "0.2"])
def test_an_invalid_ema_weight_is_refused(alpha: object) -> None:
    with refused("invalid_input"):
        BestEffortLiveConfig(ema_alpha=alpha)  # type: ignore[arg-type]
