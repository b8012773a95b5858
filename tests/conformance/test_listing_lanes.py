"""Listings of lanes."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import (
    created,
    refused,
    tenant,
)


def test_lanes_are_paged_by_name(engine: Engine) -> None:
    for lane in ("echo", "alpha", "delta", "charlie", "bravo"):
        created(engine, lane=lane)

    pages = []
    cursor = None
    while True:
        page = engine.list_lanes(cursor, 2)
        pages.append([lane.lane for lane in page.lanes])
        cursor = page.next_cursor
        if cursor is None:
            break

    assert pages == [["alpha", "bravo"], ["charlie", "delta"], ["echo"]]
    assert [lane.lane for lane in engine.list_lanes(limit=5).lanes] == [*pages[0], *pages[1], *pages[2]]
    assert engine.list_lanes(limit=5).next_cursor is None
    assert engine.list_lanes(limit=0).lanes == ()


def test_a_lane_whose_name_begins_like_another_one_is_listed_once(engine: Engine) -> None:
    names = [" ", "!", "a", "a ", "aa", "ab", "a~", "b", "~" * 64]
    for name in names:
        created(engine, lane=name)

    assert [lane.lane for lane in engine.list_lanes().lanes] == names
    assert [lane.lane for lane in engine.list_lanes("a").lanes] == names[3:]


def test_a_lane_exists_from_its_first_use_also_when_that_is_a_pause(engine: Engine, clock: Clock) -> None:
    engine.pause_lane("quiet")

    (lane,) = engine.list_lanes().lanes

    assert (lane.lane, lane.paused_since_ms) == ("quiet", clock.ms)
    assert set(lane.depths) == set(PublicState)
    assert set(lane.depths.values()) == {0}


def test_lanes_of_two_namespaces_never_meet(engine: Engine) -> None:
    other = tenant(engine, "defaul")
    created(engine, lane="shared")
    created(other, lane="shared")
    created(other, lane="theirs")
    other.pause_lane("shared")

    (mine,) = engine.list_lanes().lanes

    assert (mine.lane, mine.depths[PublicState.WAITING], mine.paused_since_ms) == ("shared", 1, None)
    assert [lane.lane for lane in other.list_lanes().lanes] == ["shared", "theirs"]


@pytest.mark.parametrize("cursor", ["\n", "x" * 65, 5, "ä"])
def test_an_invalid_cursor_of_lanes_is_refused(engine: Engine, cursor: Any) -> None:
    with refused("invalid_cursor"):
        engine.list_lanes(cursor)
