"""Stopping a worker: what runs may finish, the rest is handed back, and nothing is lost or doubled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import Interrupted, Runtime, Worker, WorkerSettings, current
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.middleware import AttemptEvent, Middleware
from tests.support.executions import claim_one
from tests.support.observation import info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Another, Start

MINUTE = timedelta(minutes=1)
BLINK = timedelta(milliseconds=50)


def signal_from_outside(number: int) -> None:
    """Send this process a signal from another one, as an operator does, a moment later."""
    subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -{int(number)} {os.getpid()}"])


def test_running_handlers_may_finish_within_the_grace(served: Worker, start: Start) -> None:
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


def test_work_that_outlives_the_grace_starts_elsewhere_at_once(another: Another, start: Start) -> None:
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

    assert time.monotonic() - began < 15, "no worker waits for the leases of 30 s"
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
        signal_from_outside(signal.SIGTERM)
        time.sleep(0.5)
        signal_from_outside(signal.SIGINT)
        over.wait(30)

    run = stop_me.submit()
    began = time.monotonic()
    Runtime(served, WorkerSettings(grace=MINUTE)).run()

    assert time.monotonic() - began < 25
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


# Lost workers


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def raise_in_own_thread() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("harm", [kill_own_process, raise_in_own_thread])
def test_a_handler_that_signals_its_own_process_is_given_up_at_last(served: Worker, harm: Callable[[], None]) -> None:
    over = threading.Event()
    starts: list[int] = []

    @served.task(max_reclaims=2)
    def stop_me() -> None:
        starts.append(1)
        harm()
        over.wait(30)

    run = stop_me.submit()
    while run.state() is not PublicState.FAILED:
        Runtime(served, WorkerSettings(grace=BLINK)).run()
    info = info_of(served, run)
    over.set()

    assert len(starts) == 3
    assert info.error == "reclaims_exhausted"
    assert b"stopped, because it sent itself a signal" in info.error_detail


def test_a_stop_from_outside_counts_as_no_loss(served: Worker) -> None:
    over = threading.Event()

    @served.task(max_reclaims=2)
    def deployed() -> None:
        signal_from_outside(signal.SIGTERM)
        over.wait(30)

    run = deployed.submit()
    for _ in range(4):
        Runtime(served, WorkerSettings(grace=BLINK)).run()
    info = info_of(served, run)
    over.set()

    assert run.state() is PublicState.WAITING
    assert (info.reclaim_count, info.total_attempt_count) == (0, 1)


@pytest.fixture
def deaf() -> Iterator[None]:
    """Ignore signals that arrive after the worker has ended."""
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("signals", ["TERM", "TERM INT"])
def test_signals_from_outside_count_as_no_loss_in_a_busy_process(served: Worker, signals: str) -> None:
    kills = "; ".join(f"kill -{name} {os.getpid()}" for name in signals.split())
    overs = [threading.Event() for _ in range(8)]

    @served.task
    def compute(turn: int, number: int) -> None:
        if number == 0:
            # The first moment is before the main thread waits for signals, the others are during its wait.
            subprocess.Popen(["sh", "-c", f"sleep {turn * 0.1:.1f}; {kills}"])
        while not overs[turn].is_set():
            pass

    reasons = []
    for turn, over in enumerate(overs):
        compute.submit_many((turn, number) for number in range(4))
        runtime = Runtime(served, WorkerSettings(threads=4, grace=timedelta(), max_stuck_threads=100))
        runtime.run()
        reasons.append(runtime._own_reason)
        over.set()

    assert reasons == [""] * len(overs)


def test_a_signal_in_a_forked_child_is_no_signal_of_its_worker(served: Worker) -> None:
    @served.task
    def fork() -> int:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, lambda *_: None)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    run = fork.submit()
    runtime = Runtime(served)
    # Longer than the worker needs to notice a signal that a handler sent to its own thread.
    asking = threading.Timer(1.5, runtime.request_stop)
    asking.start()
    runtime.run()
    asking.join()

    assert run.result(1) == 0
    assert runtime._own_reason == ""


def test_a_stop_from_outside_reaches_a_handler_past_its_timeout(served: Worker, start: Start) -> None:
    over, begun = threading.Event(), threading.Event()
    task = served.task(name="slow", timeout=timedelta(seconds=3))(lambda: (begun.set(), over.wait(30))[1])
    runtime = start(served)
    run = task.submit()
    assert begun.wait(10)
    runtime.stop(timedelta(seconds=2.8))
    served.engine.run_upkeep()
    over.set()

    served.task(name="other")(lambda: None)
    start(served)
    wait_until(lambda: info_of(served, run).reclaim_count == 1, "it is begun again")
    assert "was told to stop" in (info_of(served, run).past_attempts[0].error or "")


def test_work_that_may_not_start_twice_ends_with_its_worker(served: Worker, start: Start) -> None:
    over, begun = threading.Event(), threading.Event()
    once = served.task(name="once", max_reclaims=0)(lambda: (begun.set(), over.wait(30))[1])
    runtime = start(served, threads=1)
    run = once.submit()
    assert begun.wait(10)
    unbegun = once.submit()
    runtime.stop(timedelta())
    over.set()

    assert run.state() is PublicState.FAILED
    assert info_of(served, run).error == "reclaims_exhausted"
    assert unbegun.state() is PublicState.WAITING


def test_work_that_had_not_begun_is_not_counted_as_lost(served: Worker, start: Start) -> None:
    over, begun = threading.Event(), threading.Event()
    task = served.task(name="wait")(lambda: (begun.set(), over.wait(30))[1])
    runtime = start(served, threads=1)
    running = task.submit()
    assert begun.wait(10)
    unbegun = task.submit()
    runtime._leases.hold(hold(claim_one(served.engine, "default"), task, now()))
    runtime._own_reason = "it sent itself a signal"
    runtime.stop(timedelta())
    over.set()
    start(served, threads=1)

    assert (running.result(20), unbegun.result(20)) == (True, True)
    assert (info_of(served, running).reclaim_count, info_of(served, unbegun).reclaim_count) == (1, 0)


def test_the_last_line_counts_what_the_store_has_acknowledged(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flowfabric_worker")
    over, begun = threading.Event(), threading.Event()
    task = served.task(name="wait")(lambda: (begun.set(), over.wait(30))[1])
    runtime = start(served, threads=1)
    task.submit_many([()] * 3)
    assert begun.wait(10)

    def away(*_: Any, **__: Any) -> Any:
        raise UnavailableError("release_many")

    monkeypatch.setattr(served.engine, "release_many", away)
    runtime.stop(timedelta())
    over.set()

    assert "stopped; it handed back 0, of which 0 had begun." in caplog.text
    assert "The store has not acknowledged the release of 1 execution;" in caplog.text


def test_a_process_sends_beats_while_its_stop_waits_for_a_hook(
    another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric_worker.runtime._HOOKS_WITHIN", 3.0)
    over = threading.Event()

    class Hanging(Middleware):
        def on_success(self, event: AttemptEvent) -> None:  # noqa: ARG002  the name that all hooks have
            over.wait(60)

    worker = another(Hanging())
    task = worker.task(name="add")(lambda: 1)
    ours, theirs = socket.socketpair()
    with ours:
        runtime = Runtime(worker, WorkerSettings(threads=1), channel_socket=theirs)
        runtime.start()
        assert task.submit().result(10) == 1
        ours.recv(4096)
        ours.setblocking(False)
        runtime.stop()
        over.set()

        assert ours.recv(4096).count(b".") >= 2


def test_a_hook_that_hangs_does_not_keep_a_stop_waiting_for_the_grace(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flowfabric_worker.runtime._HOOKS_WITHIN", 0.5)
    over = threading.Event()

    class Hanging(Middleware):
        def on_success(self, event: AttemptEvent) -> None:  # noqa: ARG002  the name that all hooks have
            over.wait(60)

    worker = another(Hanging())
    run = worker.task(name="add")(lambda: 1).submit()
    runtime = start(worker)
    assert run.result(10) == 1
    begun_at = time.monotonic()
    runtime.stop(timedelta(seconds=30))
    took = time.monotonic() - begun_at
    over.set()

    assert took < 20
    assert "1 event at the stop: " in caplog.text
