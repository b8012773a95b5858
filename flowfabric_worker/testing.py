"""Testing an application: workers on stores in this process, a clock to move, and runs without threads.

It is a plugin of pytest, too. The fixture `flowfabric` is a worker on a fresh store in memory; `flowfabric_clock` is
that store's clock, which stands still until it is moved. An application's own worker is lent such a store:

    @pytest.fixture
    def shop():
        with in_memory(app.worker):
            yield app.worker

    def test_a_receipt_is_sent(shop):
        run = app.send_receipt.submit(7, "a@b.c")
        run_until_idle(shop)
        assert run.result() == ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.attempts import Attempts
from flowfabric_worker.claimer import hold
from flowfabric_worker.committer import Committer
from flowfabric_worker.engine.limits import MAX_LEASE_MS, MAX_PAGE_SIZE
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.held import Holdings, now
from flowfabric_worker.hooks import Hooks
from flowfabric_worker.middleware import arounds_of
from flowfabric_worker.worker import Worker

# Nothing renews a lease here.
_POLICY = ClaimPolicy(worker_id="test", worker_instance_id="test", lease=timedelta(milliseconds=MAX_LEASE_MS))


@contextmanager
def in_memory(worker: Worker) -> Iterator[Worker]:
    """Lends a worker a fresh store in this process; afterwards it has its own again."""
    url = worker.url
    worker.close()
    worker.url = f"memory://{uuid4().hex}"
    worker.engine.prepare(testing=True)
    try:
        yield worker
    finally:
        worker.close()
        worker.url = url


def run_until_idle(worker: Worker, *, offers: Iterable[str] = ()) -> int:
    """Runs everything that is due, in this thread and without sleeping, also what that brings about.

    All lanes are served. What a handler raises becomes the outcome of its execution, as it does in a worker.

    Args:
        worker: whose tasks to run.
        offers: capabilities, beside those that the worker's tasks need.

    Returns:
        How many times a handler ran.

    Raises:
        EngineError: the store cannot be used.
    """
    return _Here(worker, frozenset(offers)).run_until_idle()


class _Here:
    """The runtime of a worker without threads."""

    def __init__(self, worker: Worker, offers: frozenset[str]) -> None:
        self._worker = worker
        self._engine = worker.engine
        self._offers = offers.union(*(task.options_given.needs for task in worker.tasks.values()))
        holdings = Holdings(1)
        self._hooks = Hooks(worker.middleware)
        self._committer = Committer(holdings, self._engine, self._hooks)
        self._attempts = Attempts(
            self._committer, self._engine, self._engine.limits.payload_bytes, arounds_of(worker.middleware)
        )

    def run_until_idle(self) -> int:
        count = 0
        while claimed := self._claim():
            for each in claimed:
                held = hold(each, self._worker.tasks[each.task], now(), self._hooks.lost)
                self._hooks.tell("on_claim", held)
                self._attempts.run(held)
                self._committer.flush()
                self._hooks.flush()
                count += 1
        return count

    def _claim(self) -> list[Claimed]:
        """The next execution; none when nothing is due any more."""
        lanes = tuple(LaneRequest(lane=lane) for lane in self._lanes())
        request = ClaimRequest(
            lanes=lanes, policy=_POLICY, capabilities=self._offers, tasks=frozenset(self._worker.tasks)
        )
        while lanes:
            claimed = self._engine.claim_many(request)
            # A claim handles little of what is due: there may be more.
            if claimed or not self._engine.run_upkeep().handled:
                return claimed
        return []

    def _lanes(self) -> set[str]:
        """Every lane that was ever used; a handler may have used a new one."""
        lanes: set[str] = set()
        cursor: str | None = None
        while True:
            page = self._engine.list_lanes(cursor, MAX_PAGE_SIZE)
            lanes |= {each.lane for each in page.lanes}
            cursor = page.next_cursor
            if cursor is None:
                return lanes


class Clock:
    """The clock of a worker's store, for tests: it stands still until it is moved.

    Args:
        worker: on a store that was prepared for tests, such as `in_memory` lends.
        moment: what it shows first.

    Attributes:
        now: what it shows.
    """

    def __init__(self, worker: Worker, moment: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._worker = worker
        self.now = moment
        worker.engine.set_clock(moment)

    def move(self, duration: timedelta) -> None:
        """Sets the clock forward; what has become due by then runs with the next `run_until_idle`."""
        self.now += duration
        self._worker.engine.set_clock(self.now)


class MemoryWorker(Worker):
    """A worker of a test, whose work runs when the test says so."""

    def run_until_idle(self, *, offers: Iterable[str] = ()) -> int:
        """Runs everything that is due, in this thread; see the function of this name."""
        return run_until_idle(self, offers=offers)


@pytest.fixture
def flowfabric() -> Iterator[MemoryWorker]:
    """A worker on a fresh store in memory; `flowfabric.run_until_idle()` runs what is due."""
    worker = MemoryWorker("test")
    with in_memory(worker):
        yield worker


@pytest.fixture
def flowfabric_clock(flowfabric: MemoryWorker) -> Clock:
    """The clock of the fixture `flowfabric`; `flowfabric_clock.move(timedelta(hours=1))` sets it forward."""
    return Clock(flowfabric)
