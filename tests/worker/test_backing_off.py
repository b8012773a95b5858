"""A store that is away: claims pause longer and longer, and what runs goes on."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from flowfabric_worker import TransportError, Worker
from tests.support.servers import wait_until
from tests.worker.conftest import Start

PAUSES = (0.05, 0.1, 0.2, 0.4)


def test_claims_pause_longer_and_longer_while_the_store_is_away(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[float] = []
    away = threading.Event()
    away.set()
    claim = served.engine.claim_many

    def sometimes(request: Any) -> Any:
        claims.append(time.monotonic())
        if away.is_set():
            raise TransportError()
        return claim(request)

    monkeypatch.setattr(served.engine, "claim_many", sometimes)
    add = served.task(name="add")(lambda a: a + 1)
    start(served)
    wait_until(lambda: len(claims) > len(PAUSES), "it tries some times")
    pauses = [later - earlier for earlier, later in itertools.pairwise(claims)]
    away.clear()

    assert all(pause >= least for pause, least in zip(pauses, PAUSES, strict=False))
    assert add.submit(1).result(10) == 2


def test_handlers_go_on_while_the_store_is_away_and_results_arrive_later(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, away, refused = served.engine, threading.Event(), []
    over = threading.Event()

    def unless_away(name: str) -> Any:
        original = getattr(engine, name)

        def call(*args: Any, **options: Any) -> Any:
            if away.is_set():
                refused.append(name)
                raise TransportError()
            return original(*args, **options)

        return call

    for name in ("claim_many", "complete_many", "renew_many", "run_upkeep", "register_worker", "release_many"):
        monkeypatch.setattr(engine, name, unless_away(name))
    ended: list[int] = []

    @served.task
    def through(number: int) -> int:
        over.wait(10)
        ended.append(number)
        return number

    start(served, threads=4)
    runs = through.submit_many((number,) for number in range(4))
    wait_until(lambda: not served.engine.list_lanes().lanes[0].depths.get("waiting"), "all run")
    away.set()
    over.set()
    wait_until(lambda: len(ended) == 4, "the handlers run on")
    wait_until(lambda: refused.count("complete_many") >= 3, "their outcomes are tried again")
    away.clear()

    assert [run.result(10) for run in runs] == [0, 1, 2, 3]
    assert sorted(ended) == [0, 1, 2, 3], "nothing ran twice"
