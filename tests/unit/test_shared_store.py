"""How long the calls of a worker are while others submit work to the same server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.limits import MAX_LEASE_ITEMS, SHARED_LEASE_ITEMS
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Reply
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from tests.conftest import Clock
from tests.support.executions import creation, request
from tests.support.lossy_store import LosingStore


class Measuring(LosingStore):
    """A store that notes how many executions each call claims or completes."""

    sizes: list[int]

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        reply = super().call(function, partition, arguments, timeout)
        if function == "claim_many":
            self.sizes.append(len(reply[3]))
        elif function == "complete_many":
            self.sizes.append(len(reply))
        return reply


@pytest.fixture
def engine() -> Iterator[Engine]:
    opened = open_engine("memory://")
    store = Measuring(opened.store)
    store.sizes = []
    measured = Engine(lambda: (store, None))
    measured.prepare(testing=True)
    yield measured
    measured.close()
    opened.close()


def claim_and_complete(engine: Engine, count: int) -> list[int]:
    """Claim and complete executions; return how many each call had."""
    store = engine.store
    assert isinstance(store, Measuring)
    store.sizes.clear()
    claimed: list[Claimed] = engine.claim_many(request(limit=count))
    assert len(claimed) == count
    assert engine.complete_many([Completion(handle=each.handle) for each in claimed]) == [None] * count
    return [size for size in store.sizes if size]


def test_calls_are_short_while_others_submit_and_long_again_afterwards(engine: Engine) -> None:
    clock = Clock(engine)
    engine.create_executions([creation() for _ in range(4 * MAX_LEASE_ITEMS)])

    assert claim_and_complete(engine, MAX_LEASE_ITEMS) == [MAX_LEASE_ITEMS] * 2

    engine.create_execution(creation(lane="other"))
    engine.claim_many(request(limit=1))
    assert max(claim_and_complete(engine, MAX_LEASE_ITEMS)) == SHARED_LEASE_ITEMS

    clock.move(timedelta(seconds=3))
    engine.claim_many(request(limit=1))
    assert claim_and_complete(engine, MAX_LEASE_ITEMS) == [MAX_LEASE_ITEMS] * 2


def test_submissions_before_any_work_ends_do_not_shorten_calls(engine: Engine) -> None:
    Clock(engine)
    engine.create_executions([creation() for _ in range(MAX_LEASE_ITEMS)])
    engine.create_execution(creation())

    assert claim_and_complete(engine, MAX_LEASE_ITEMS) == [MAX_LEASE_ITEMS] * 2
