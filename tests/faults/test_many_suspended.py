"""Ten thousand suspended executions: they cost no worker anything, and their timeouts hold no call up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import LANE, claim_one, creation, depths, request, running
from tests.support.servers import ValkeyServer
from tests.support.suspensions import signal, suspend

MANY = 10_000
HOUR = timedelta(hours=1)


@pytest.fixture
def engine(valkey: ValkeyServer) -> Iterator[Engine]:
    engine = open_engine(f"{valkey.url}?prefix=many-suspended")
    engine.prepare(testing=True)
    yield engine
    engine.erase()
    engine.close()


def test_ten_thousand_suspended_executions_hold_nothing_up(engine: Engine) -> None:
    clock = Clock(engine)
    for _ in range(MANY // 100):
        engine.create_executions([creation() for _ in range(100)])
        for claimed in engine.claim_many(request(limit=100)):
            suspend(engine, claimed, "go", timeout=HOUR)
    assert depths(engine, LANE) == {PublicState.SUSPENDED: MANY}
    listed, cursor = 0, None
    while True:
        page = engine.list_suspended(0, cursor, 1000)
        listed, cursor = listed + len(page.executions), page.next_cursor
        if cursor is None:
            break
    assert listed == MANY

    other = running(engine, lane="other")
    (waitpoint,) = suspend(engine, other, "go")
    began = time.perf_counter()
    signal(engine, other.execution_id, waitpoint)
    claim_one(engine, "other")
    assert time.perf_counter() - began < 3

    clock.move(HOUR)
    took: list[float] = []
    handled = 0
    while handled < MANY:
        began = time.perf_counter()
        handled += engine.run_upkeep(500).handled
        took.append(time.perf_counter() - began)
    assert depths(engine, LANE) == {PublicState.FAILED: MANY}
    # A single call may have to wait for the processor.
    assert statistics.median(took) < 0.5
