"""Lanes: how a worker divides its time among them, and how little it takes ahead."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from flowfabric_worker import Worker, current
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Start

# So slow that nothing is claimed ahead: each claim takes one.
SLOW = 0.08


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End every handler that still waits when the test ends."""
    over = threading.Event()
    yield over
    over.set()


def fill(worker: Worker, order: list[str], seconds: float, **counts: int) -> None:
    """Put work into lanes; each piece notes its lane when it begins."""

    def note() -> None:
        order.append(current().lane)
        time.sleep(seconds)

    for lane, count in counts.items():
        worker.task(name=lane, lane=lane)(note).submit_many([()] * count)


def test_lanes_that_are_full_get_the_share_that_they_weigh(served: Worker, start: Start) -> None:
    order: list[str] = []
    fill(served, order, SLOW, mail=30, etl=30)
    start(served, threads=1, lanes={"mail": 3, "etl": 1})
    wait_until(lambda: len(order) >= 16, "four rounds are done")

    assert Counter(order[:16]) == {"mail": 12, "etl": 4}


def test_no_lane_waits_longer_than_one_round(served: Worker, start: Start) -> None:
    order: list[str] = []
    fill(served, order, SLOW, heavy=30, light=10, last=10)
    start(served, threads=1, lanes={"heavy": 4, "light": 1, "last": 1})
    wait_until(lambda: len(order) >= 18, "three rounds are done")

    for lane in ("light", "last"):
        places = [place for place, each in enumerate(order[:18]) if each == lane]
        assert places[0] < 6
        assert [later - earlier for earlier, later in itertools.pairwise(places)] == [6, 6]


def test_work_of_a_light_lane_passes_a_crowd_in_a_heavy_one(served: Worker, start: Start) -> None:
    order: list[str] = []
    fill(served, order, SLOW, heavy=100, light=0)
    start(served, threads=1, lanes={"heavy": 5, "light": 1})
    wait_until(lambda: len(order) >= 3, "the crowd is worked on")
    served.tasks["light"].submit()
    wait_until(lambda: "light" in order, "it begins")

    # The round in which it came, and the one that it came first in; one more may have been claimed by then.
    assert order.index("light") <= 3 + 2 * 6


def test_without_weights_the_lanes_of_all_tasks_have_the_same_share(served: Worker, start: Start) -> None:
    order: list[str] = []
    fill(served, order, SLOW, mail=12, etl=12, web=12)
    start(served, threads=1)
    wait_until(lambda: len(order) >= 9, "three rounds are done")

    assert Counter(order[:9]) == {"mail": 3, "etl": 3, "web": 3}


def test_an_empty_lane_costs_nothing(served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[int] = []
    claim = served.engine.claim_many

    def counted(request: Any) -> Any:
        claimed = claim(request)
        claims.append(len(claimed))
        return claimed

    order: list[str] = []
    fill(served, order, 0.02, mail=20, empty=0)
    monkeypatch.setattr(served.engine, "claim_many", counted)
    start(served, threads=1, lanes={"empty": 9, "mail": 1})
    wait_until(lambda: len(order) == 20, "all of it has begun")

    assert 0 not in claims, "no claim came back empty-handed while there was work"
    assert len(claims) <= 20


def test_nothing_is_hoarded_behind_slow_tasks(served: Worker, start: Start) -> None:
    held: list[int] = []

    @served.task
    def slow() -> None:
        held.append(served.engine.list_lanes().lanes[0].depths[PublicState.ACTIVE])
        time.sleep(SLOW)

    slow.submit_many([()] * 60)
    start(served, threads=2)
    wait_until(lambda: len(held) >= 20, "some of it has begun")

    # Those that run, those whose outcomes are on their way, and what the pace of 25 a second starts within 50 ms.
    assert max(held) <= 2 + 2 + 1


def test_quick_tasks_are_claimed_many_at_once_but_never_without_bound(
    served: Worker, start: Start, over: threading.Event
) -> None:
    held: list[int] = []

    @served.task
    def quick(number: int) -> None:
        if number == 2000:
            time.sleep(0.1)
            held.append(served.engine.list_lanes().lanes[0].depths[PublicState.ACTIVE])
            over.wait(30)

    runs = quick.submit_many((number,) for number in range(4000))
    start(served, threads=1)
    wait_until(lambda: held, "the slow one runs")

    assert 1 <= held[0] <= 1 + 480
    over.set()
    for run in runs:
        run.result(30)
    assert info_of(served, runs[2001]).reclaim_count == 0
