"""Stopping a worker: what runs may finish, the rest is handed back, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta

import pytest

from flowfabric_worker import Interrupted, RunSettings, Runtime, Worker, current
from flowfabric_worker.engine.types.states import PublicState
from tests.servers import wait_until
from tests.worker.conftest import Another, Start
from tests.worker.looking import info_of

MINUTE = timedelta(minutes=1)


def test_what_runs_may_finish_within_the_grace(served: Worker, start: Start) -> None:
    begun = threading.Event()

    @served.task
    def slow() -> str:
        begun.set()
        time.sleep(0.5)
        return "done"

    runtime = start(served, threads=1)
    running, waiting = slow.submit_many([(), ()])
    assert begun.wait(10)
    runtime.stop(MINUTE)

    assert running.state() is PublicState.COMPLETED
    assert waiting.state() is PublicState.WAITING


def test_what_still_runs_after_the_grace_starts_elsewhere_at_once(another: Another, start: Start) -> None:
    over = threading.Event()
    begun = threading.Event()
    told: list[str] = []

    def deaf() -> str:
        begun.set()
        over.wait(30)
        try:
            current().check()
        except Interrupted as interrupted:
            told.append(interrupted.reason)
        return "here"

    stopped, other = another(), another()
    task = stopped.task(name="wait")(deaf)
    other.task(name="wait")(lambda: f"elsewhere {current().kind} {current().attempt}")
    runs = task.submit_many([()] * 4)
    runtime = start(stopped, threads=2)
    assert begun.wait(10)
    start(other, threads=2)
    began = time.monotonic()
    runtime.stop(timedelta(milliseconds=100))
    results = {run.result(10) for run in runs}

    assert time.monotonic() - began < 5, "nobody waits for the leases of 30 s"
    assert results <= {"elsewhere fresh 0", "elsewhere resumed 0"}
    for run in runs:
        info = info_of(other, run)
        assert (info.retry_count, info.reclaim_count, info.total_attempt_count) == (0, 0, 1)
    over.set()
    wait_until(lambda: len(told) == 2, "the handlers here end")
    assert told == ["stopping", "stopping"]
    assert {run.result(10) for run in runs} == results


def test_a_cooperative_handler_leaves_when_the_grace_is_over(another: Another, start: Start) -> None:
    def polite() -> None:
        while True:
            current().check()
            time.sleep(0.01)

    stopped = another()
    task = stopped.task(polite)
    runtime = start(stopped)
    run = task.submit()
    wait_until(lambda: run.state() is PublicState.ACTIVE, "it runs")
    runtime.stop(timedelta(milliseconds=100))

    assert run.state() is PublicState.WAITING
    wait_until(lambda: not [t for t in threading.enumerate() if "handler" in t.name], "its thread ends")


def test_a_second_request_does_not_wait_for_handlers(served: Worker, start: Start) -> None:
    over = threading.Event()
    task = served.task(name="wait")(lambda: over.wait(30))
    runtime = start(served)
    run = task.submit()
    wait_until(lambda: run.state() is PublicState.ACTIVE, "it runs")
    stopping = threading.Thread(target=runtime.stop, args=(MINUTE,))
    stopping.start()
    stopping.join(0.3)
    assert stopping.is_alive()

    runtime.request_stop()
    stopping.join(5)

    assert not stopping.is_alive()
    assert run.state() is PublicState.WAITING
    over.set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_at_a_signal_and_gives_the_signals_back(served: Worker, number: signal.Signals) -> None:
    previous = signal.getsignal(number)

    @served.task
    def stop_me() -> str:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
        return "done"

    run = stop_me.submit()
    Runtime(served).run()

    assert run.result(1) == "done"
    assert signal.getsignal(number) is previous


def test_run_hands_everything_back_at_a_second_signal(served: Worker) -> None:
    over = threading.Event()

    @served.task
    def stop_me() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(30)

    run = stop_me.submit()
    began = time.monotonic()
    Runtime(served, RunSettings(grace=MINUTE)).run()

    assert time.monotonic() - began < 10
    assert run.state() is PublicState.WAITING
    over.set()


def test_stops_at_any_moment_lose_and_double_nothing(another: Another, start: Start) -> None:
    lock = threading.Lock()
    counts: dict[int, int] = {}

    def count(number: int) -> None:
        with lock:
            counts[number] = counts.get(number, 0) + 1
        time.sleep(0.005)

    producer = another()
    runs = producer.task(count).submit_many((number,) for number in range(600))
    for moment in (0.0, 0.02, 0.05, 0.1, 0.2):
        worker = another()
        worker.task(count)
        runtime = start(worker, threads=4)
        time.sleep(moment)
        runtime.stop()
    start(producer, threads=4)
    for run in runs:
        run.result(20)

    assert counts == dict.fromkeys(range(600), 1)
    assert {info_of(producer, run).reclaim_count for run in runs} == {0}
