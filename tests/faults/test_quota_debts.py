"""Damage to quotas of other partitions, and to what partitions owe to each other, stops only what it concerns."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest

from flowfabric_worker.engine import quota_debts
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.wire import pack
from tests.conftest import Clock
from tests.support.executions import claim_one, claimed_ids, created, creation, raw_client, raw_key, request, upkeep_all
from tests.support.lossy_store import AwayStore
from tests.support.quotas import QUOTA, UNDER_QUOTA, away, limited, placed, queued, running_now

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine(f"memory://{uuid4().hex}?partitions=5")
    engine.prepare(testing=True)
    yield engine
    engine.close()


def test_a_damaged_quota_elsewhere_holds_back_only_its_own_work(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    limited(engine, "other", max_concurrent=1)
    with placed("elsewhere"):
        queued(engine, 1)
        (free,) = queued(engine, 1, policy=creation().policy)
    home = engine.home_of_quota(QUOTA)
    gate = raw_key(engine, home, f"gate:q{pack(('default', QUOTA)).decode()}")
    raw_client(engine, home).hset(gate, "window", "damaged")

    claimed = claim_one(engine)
    assert claimed.execution_id == free
    engine.complete(claimed.handle, None)
    clock.move(MINUTE)
    upkeep_all(engine)
    assert claimed_ids(engine) == []


def test_a_damaged_debt_stops_no_other_and_one_of_a_newer_release_is_kept(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        executions = queued(engine, 2)
    held = claim_one(engine)
    key, client = raw_key(engine, away(engine), "owed"), raw_client(engine, away(engine))
    newer = pack(("newer", "a", "b", "c"))
    client.zadd(key, {b"damaged": 1, newer: 2, pack((b"left", b"x", b"y", b"0")): 3})
    engine.complete(held.handle, None)
    clock.move(SECOND)
    upkeep_all(engine)

    assert claimed_ids(engine) == executions[1:]
    assert client.zscore(key, newer) == 2
    assert client.zscore(key, b"damaged") is None


def test_a_holder_that_its_partition_forgot_is_found_by_a_check(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        lost, other = queued(engine, 2)
    claim_one(engine, lease=SECOND)
    raw_client(engine, lost.partition_number).delete(raw_key(engine, lost.partition_number, f"x:{lost.uuid}"))

    for _ in range(4):
        clock.move(MINUTE)
        upkeep_all(engine)
    assert running_now(engine) == 0
    assert claimed_ids(engine) == [other]


def test_slots_that_are_freed_at_once_are_told_to_partitions_in_turn() -> None:
    engine = open_engine(f"memory://{uuid4().hex}?partitions=16")
    engine.prepare()
    limited(engine, max_concurrent=2)
    for number in range(60):
        created(engine, policy=UNDER_QUOTA, idempotency_key=str(number))
    done: list[object] = []

    def work(number: int) -> None:
        while len(done) < 60:
            for claimed in engine.claim_many(request(worker=f"w{number}", limit=2, max_wait=SECOND)):
                engine.complete(claimed.handle, None)
                done.append(claimed.execution_id)

    begun = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    engine.close()

    # A slot that no partition hears of stays free for a second, after which the workers look again.
    assert len(done) == 60
    assert time.monotonic() - begun < 10


def test_work_goes_on_while_the_partition_of_its_quota_is_away(engine: Engine) -> None:
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        queued(engine, 2)
        (plain,) = queued(engine, 1, policy=creation().policy)
    store = AwayStore(engine.store, frozenset())
    tried = Engine(lambda: (store, None))
    held = claim_one(tried)
    store.away = frozenset({engine.home_of_quota(QUOTA)})

    tried.complete(held.handle, None)
    assert store.waits == 2
    other = Engine(lambda: (store, None), retry_for=0)
    other._partitions = engine.partitions
    assert claimed_ids(other, limit=5) == [plain]
    assert claimed_ids(other, limit=5) == []

    assert running_now(engine) == 1
    upkeep_all(engine)
    assert running_now(engine) == 0


def test_a_partition_that_hangs_is_asked_once_each_time_and_less_often(
    engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        (execution,) = queued(engine, 1)
    store = AwayStore(engine.store, frozenset({engine.home_of_quota(QUOTA)}), "store_timeout")
    tried = Engine(lambda: (store, None), retry_for=0)
    tried._partitions = engine.partitions
    began = clock.now
    monkeypatch.setattr(quota_debts, "time", SimpleNamespace(monotonic=lambda: (clock.now - began) / SECOND))
    asked = []

    for second in range(60):
        store.tried.clear()
        assert claimed_ids(tried) == []
        asked += [second] * store.tried.count("admit_claim")
        clock.move(SECOND)

    assert asked == [0, 5, 15, 35, 55]
    store.away = frozenset()
    clock.move(15 * SECOND)
    assert claimed_ids(tried) == [execution]
    assert running_now(engine) == 1
