"""Handlers that do not come back: their threads are counted and replaced, and at last the process is."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import cast

import pytest

from flowfabric_worker import ExecutionFailed, RestartRequired, Runtime, Worker, WorkerSettings, current
from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.handler_pool import HandlerPool
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.races import hurried
from tests.support.servers import wait_until
from tests.worker.conftest import Start

TIMEOUT = timedelta(seconds=0.3)
PATIENCE = timedelta(seconds=0.2)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End every handler that still waits when the test ends."""
    over = threading.Event()
    yield over
    over.set()


def lost_threads(runtime: Runtime) -> int:
    return runtime._handler_pool.lost


def handler_threads() -> int:
    """Return how many handler threads live."""
    return len([thread for thread in threading.enumerate() if "flowfabric-handler" in thread.name])


def test_a_pool_of_one_thread_works_on_when_its_thread_is_lost(
    served: Worker, start: Start, over: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    deaf = served.task(name="deaf", timeout=TIMEOUT)(lambda: over.wait(30))
    add = served.task(name="add")(lambda a: a + 1)
    runtime = start(served, threads=1, interrupt_grace=PATIENCE)
    run = deaf.submit()
    with pytest.raises(ExecutionFailed, match="timeout"):
        run.result(10)

    # Its result no longer counts, and no other task waits for its thread.
    assert [add.submit(number).result(10) for number in range(5)] == [1, 2, 3, 4, 5]
    assert not over.is_set()
    assert lost_threads(runtime) == 1
    assert handler_threads() == 2
    wait_until(lambda: "its stuck thread is replaced. Stuck threads: 1." in caplog.text, "it is logged")
    assert "deaf of" in caplog.text


def test_a_lost_thread_ends_with_its_handler_and_its_result_is_dropped(
    served: Worker, start: Start, over: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    deaf = served.task(name="deaf", timeout=TIMEOUT)(lambda: over.wait(30))
    add = served.task(name="add")(lambda a: a + 1)
    runtime = start(served, threads=1, interrupt_grace=PATIENCE)
    run = deaf.submit()
    wait_until(lambda: lost_threads(runtime), "its thread is lost")
    over.set()

    wait_until(lambda: lost_threads(runtime) == 0, "the thread has ended")
    wait_until(lambda: "ended (complete), which does not count: timeout" in caplog.text, "its result is dropped")
    assert handler_threads() == 1
    assert run.state() is PublicState.FAILED
    assert add.submit(1).result(10) == 2


def test_capacity_is_counted_right_when_threads_were_stuck_and_returned(
    served: Worker, start: Start, over: threading.Event
) -> None:
    deaf = served.task(name="deaf", timeout=TIMEOUT)(lambda: over.wait(30))
    add = served.task(name="add")(lambda a: a + 1)
    runtime = start(served, threads=2, interrupt_grace=PATIENCE, max_stuck_threads=9)
    deaf.submit_many([()] * 3)
    wait_until(lambda: lost_threads(runtime) == 3, "three are lost")
    over.set()
    wait_until(lambda: lost_threads(runtime) == 0, "all have ended")
    for run in add.submit_many((number,) for number in range(50)):
        run.result(10)

    wait_until(lambda: runtime._leases.outstanding() == 0, "nothing is thought to run")
    assert handler_threads() == 2


def test_a_handler_that_leaves_in_time_keeps_its_thread(served: Worker, start: Start) -> None:
    idents: list[int | None] = []

    @served.task
    def polite() -> None:
        idents.append(threading.get_ident())
        assert current().cancelled.wait(10)

    add = served.task(name="add")(lambda: threading.get_ident())
    runtime = start(served, threads=1, interrupt_grace=timedelta(seconds=5))
    run = polite.submit()
    wait_until(lambda: idents, "it runs")
    run.cancel()

    assert add.submit().result(10) == idents[0]
    assert lost_threads(runtime) == 0


def test_a_process_that_has_lost_too_many_threads_stops_in_order(
    served: Worker, start: Start, over: threading.Event
) -> None:
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def note(what: str) -> None:
        with lock:
            counts[what] += 1

    deaf = served.task(name="deaf", timeout=TIMEOUT)(lambda: over.wait(30))
    worn: list[Runtime] = []

    @served.task
    def slow(number: int) -> int:
        note(f"slow {number}")
        # It runs until the process has begun to stop.
        wait_until(lambda: worn[0]._restart_reason, "the process is worn out")
        return number

    @served.task
    def quick(number: int) -> int:
        note(f"quick {number}")
        time.sleep(0.05)
        return number

    deaf.submit_many([(), ()])
    slow_runs = slow.submit_many([(0,), (1,)])
    quick_runs = quick.submit_many((number,) for number in range(100))
    settings = WorkerSettings(threads=4, interrupt_grace=PATIENCE, max_stuck_threads=2, grace=timedelta(seconds=20))
    worn.append(Runtime(served, settings))
    with pytest.raises(RestartRequired, match="2 threads stuck in handlers"):
        worn[0].run()

    assert [run.state() for run in slow_runs] == [PublicState.COMPLETED] * 2
    assert {run.state() for run in quick_runs} <= {PublicState.COMPLETED, PublicState.WAITING}
    # A fresh process goes on.
    start(served, threads=4)
    assert [run.result(20) for run in quick_runs] == list(range(100))
    assert counts == Counter([f"slow {number}" for number in range(2)] + [f"quick {number}" for number in range(100)])


class Brief:
    """Takes the place of the runs: each ends a few steps after its thread is about to be given up."""

    def __init__(self) -> None:
        self._chance = random.Random(6)
        self.runs = threading.Event()
        self.near = threading.Event()

    def run(self, _: LeasedExecution) -> None:
        self.runs.set()
        self.near.wait(10)
        for _ in range(self._chance.randrange(300)):
            pass


def test_a_thread_that_ends_while_it_is_given_up_is_counted_once(worker: Worker) -> None:
    rounds = 500
    task = worker.task(name="wait")(lambda: None)
    task.submit()
    claimed = claim_one(worker.engine, "default")
    holdings, brief, fallen = LeaseTable(threads=1), Brief(), Counter[bool]()
    handlers = HandlerPool(holdings, cast(AttemptRunner, brief), -1.0, rounds, lambda _: None)
    handlers.start()
    first = handlers._threads[0]
    with hurried():
        for number in range(1, rounds + 1):
            held = LeasedExecution(claimed, task, claimed.handle, now())
            held.lose("timeout")
            brief.runs.clear()
            brief.near.clear()
            holdings.begin(held)
            assert brief.runs.wait(10)
            brief.near.set()
            while holdings.finished_in_all() < number:
                handlers.replace_lost()
                fallen[not handlers.alive] += 1

    wait_until(lambda: handlers.lost == 0, "who was given up has ended")
    assert holdings.finished_in_all() == rounds
    assert holdings.outstanding() == 0
    assert not fallen[True]
    assert handlers._threads[0] is not first, "some did not come back in time"
    handlers.stop()
    assert handlers.join(10)


def test_a_loss_that_several_threads_learn_of_is_told_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    task = worker.task(name="wait")(lambda: None)
    task.submit()
    claimed = claim_one(worker.engine, "default")
    told: list[str | None] = []
    together = threading.Barrier(3)
    losses = [
        LeasedExecution(claimed, task, claimed.handle, now(), lambda held: told.append(held.lost)) for _ in range(50)
    ]

    def slow_clock() -> float:
        # Others get their turn between the look at a loss and its note.
        time.sleep(0.001)
        return time.monotonic()

    monkeypatch.setattr("flowfabric_worker._runtime.lease_table.now", slow_clock)

    def lose_all(reason: str) -> None:
        for held in losses:
            together.wait(10)
            held.lose(reason)

    threads = [threading.Thread(target=lose_all, args=(reason,)) for reason in ("cancelled", "lost", "stopping")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert told == [held.lost for held in losses]


def test_a_thread_that_ends_before_its_replacement_is_not_dead(worker: Worker) -> None:
    task = worker.task(name="wait")(lambda: None)
    task.submit()
    claimed = claim_one(worker.engine, "default")
    holdings, brief = LeaseTable(threads=1), Brief()
    handlers = HandlerPool(holdings, cast(AttemptRunner, brief), -1.0, 1, lambda _: None)
    handlers.start()
    (thread,) = handlers._threads
    held = LeasedExecution(claimed, task, claimed.handle, now())
    holdings.begin(held)
    assert brief.runs.wait(10)
    assert thread.give_up(held)
    brief.near.set()
    thread.join(10)

    assert not thread.alive
    assert handlers.alive
