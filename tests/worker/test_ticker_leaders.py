"""Several schedulers at once, in threads and processes: one submits each tick, another takes over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from uuid import uuid4

import pytest

from flowfabric_worker import TaskContext, Worker
from flowfabric_worker._runtime.ticker import Ticker
from tests.support.servers import ValkeyServer, running, wait_until
from tests.support.tickers import MINUTE, SECOND, START, Counting, beating, rows, scheduler_of, ticks_of
from tests.worker.conftest import Another, Start


@pytest.fixture
def begin() -> Iterator[Callable[[Ticker], Ticker]]:
    """Start schedulers; they are stopped when the test ends."""
    started: list[Ticker] = []

    def begin(scheduler: Ticker) -> Ticker:
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield begin
    for scheduler in started:
        scheduler.stop()
    assert all(scheduler.join(10) for scheduler in started)


def test_three_schedulers_submit_each_of_twenty_ticks_once(another: Another) -> None:
    workers = [another() for _ in range(3)]
    workers[0].engine.prepare(testing=True)
    for worker in workers:
        beating(worker)
    now = START
    workers[0].engine.set_clock(now)
    moved = threading.Barrier(4)
    ticked = threading.Barrier(4)

    def serve(worker: Worker) -> None:
        scheduler = scheduler_of(worker)
        for _ in range(21):
            moved.wait(30)
            scheduler.tick()
            ticked.wait(30)

    threads = [threading.Thread(target=serve, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for _ in range(21):
        moved.wait(30)
        ticked.wait(30)
        now += MINUTE
        workers[0].engine.set_clock(now)
    for thread in threads:
        thread.join(30)

    assert ticks_of(workers[0].engine) == [f"2030-01-01T00:{minute:02}:00Z" for minute in range(1, 21)]


def test_threads_tick_by_the_clock_of_the_store_each_tick_once(
    another: Another, begin: Callable[[Ticker], Ticker]
) -> None:
    workers = [another() for _ in range(3)]
    for worker in workers:
        beating(worker, every=SECOND)
        begin(scheduler_of(worker))
    engine = workers[0].engine

    found = wait_until(lambda: len(ticks_of(engine)) >= 3 and ticks_of(engine), "three ticks")

    moments = [datetime.fromisoformat(tick) for tick in found]
    assert len(set(moments)) == len(moments)
    assert all(moment.microsecond == 0 for moment in moments)
    assert moments[-1].timestamp() * 1000 <= engine.server_time()


def test_a_clock_of_the_store_that_is_far_from_ours_does_not_matter(
    worker: Worker, begin: Callable[[Ticker], Ticker]
) -> None:
    beating(worker, every=SECOND)
    worker.engine.set_clock(START)
    scheduler_of(worker).tick()
    worker.engine.set_clock(START + SECOND)

    scheduler = begin(scheduler_of(worker))

    wait_until(lambda: ticks_of(worker.engine) == ["2030-01-01T00:00:01Z"], "the tick")
    assert scheduler.alive


def test_a_scheduler_survives_a_store_that_goes_away(begin: Callable[[Ticker], Ticker]) -> None:
    with running(ValkeyServer()) as server:
        worker = Worker("shop", f"{server.url}?prefix=t{uuid4().hex[:12]}")
        worker.engine.retry_for = 0
        beating(worker, every=SECOND)
        scheduler = begin(scheduler_of(worker))
        wait_until(lambda: ticks_of(worker.engine), "a tick")
        before = len(ticks_of(worker.engine))
        server.kill()
        wait_until(lambda: not server.answers(), "the server is gone")
        server.start()

        wait_until(lambda: len(ticks_of(worker.engine)) > before, "another tick")

        assert scheduler.alive
        scheduler.stop()
        assert scheduler.join(10)
        worker.close()


def test_one_process_submits_and_the_others_stand_by(another: Another, begin: Callable[[Ticker], Ticker]) -> None:
    workers = [another() for _ in range(3)]
    engines = [Counting(lambda worker=worker: (worker.engine.store, None)) for worker in workers]
    for worker, engine in zip(workers, engines, strict=True):
        beating(worker, every=SECOND)
        begin(Ticker(engine, worker.tasks.values()))

    wait_until(lambda: len(ticks_of(workers[0].engine)) >= 3, "three ticks")

    assert sorted(engine.calls for engine in engines)[:2] == [1, 1]


@pytest.mark.parametrize("resigns", [False, True])
def test_another_process_takes_over_when_the_leader_is_gone(
    another: Another, begin: Callable[[Ticker], Ticker], monkeypatch: pytest.MonkeyPatch, resigns: bool
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.ticker.LEADS_FOR", SECOND)
    workers = [another(), another()]
    for worker in workers:
        beating(worker, every=SECOND)
    leader = begin(scheduler_of(workers[0]))
    wait_until(lambda: rows(workers[0].engine), "the leader leads")
    begin(scheduler_of(workers[1]))
    if not resigns:
        monkeypatch.setattr(leader, "_resign", lambda: None)
    leader.stop()
    assert leader.join(10)
    before = len(ticks_of(workers[0].engine))

    ticks = wait_until(
        lambda: len(found := ticks_of(workers[0].engine)) >= before + 3 and found, "three more", timeout=20
    )

    moments = [datetime.fromisoformat(tick) for tick in ticks]
    assert {later - earlier for earlier, later in pairwise(moments)} == {SECOND}


def test_two_workers_run_each_tick_once(another: Another, start: Start, begin: Callable[[Ticker], Ticker]) -> None:
    ran: list[str] = []
    workers = [another(), another()]
    for worker in workers:

        @worker.task(every=SECOND)
        def beat(context: TaskContext) -> None:
            ran.append(context.tags["tick"])

        start(worker)
        # A second one beside that of the runtime changes nothing.
        begin(scheduler_of(worker))

    wait_until(lambda: len(ran) >= 3, "three runs")

    assert len(set(ran)) == len(ran)
