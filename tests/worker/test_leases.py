"""Leases in a worker: how long they are kept, and what happens when one is lost."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import Interrupted, Runtime, Worker, WorkerSettings, current
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.lease_table import LeaseTable, now
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError, UnavailableError, ValidationError
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.servers import ValkeyServer, running, wait_until
from tests.worker.conftest import Another, Start

SECOND = timedelta(seconds=1)
# Renewals on a loaded machine may be late by two thirds of this.
LEASE = timedelta(seconds=2)


@pytest.fixture
def begun() -> threading.Event:
    return threading.Event()


@pytest.fixture
def over() -> threading.Event:
    return threading.Event()


# Keeping them


def test_a_task_of_three_leases_runs_once(another: Another, start: Start) -> None:
    starts: list[str] = []

    def slow() -> str:
        starts.append(current().id)
        time.sleep(3 * LEASE.total_seconds())
        return "done"

    workers = [another(), another()]
    for worker in workers:
        worker.task(slow)
        start(worker, lease=LEASE)
    run = workers[0].tasks["slow"].submit()

    assert run.result(10) == "done"
    assert starts == [str(run.id)]


def test_a_lease_is_kept_while_its_worker_stops(another: Another, start: Start, begun: threading.Event) -> None:
    starts: list[str] = []

    def slow() -> str:
        starts.append(current().id)
        begun.set()
        time.sleep(2 * LEASE.total_seconds())
        return "done"

    workers = [another(), another()]
    for worker in workers:
        worker.task(slow)
    run = workers[0].tasks["slow"].submit()
    runtime = start(workers[0], lease=LEASE)
    assert begun.wait(10)
    start(workers[1], lease=LEASE)
    runtime.stop(timedelta(seconds=10))

    assert run.result(10) == "done"
    assert starts == [str(run.id)]


def test_a_lease_is_kept_until_the_store_has_acknowledged_the_outcome(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []
    workers = [another(), another()]
    for worker in workers:
        worker.task(name="quick")(lambda: starts.append(current().id))
    run = workers[0].tasks["quick"].submit()
    complete = workers[0].engine.complete_many

    def late(completions: Any) -> Any:
        time.sleep(1.5 * LEASE.total_seconds())
        return complete(completions)

    monkeypatch.setattr(workers[0].engine, "complete_many", late)
    start(workers[0], lease=LEASE)
    wait_until(lambda: starts, "it has begun")
    start(workers[1], lease=LEASE)

    assert run.result(10) is None
    assert starts == [str(run.id)]


def test_a_task_keeps_a_lease_of_its_own(served: Worker, start: Start, over: threading.Event) -> None:
    task = served.task(name="wait", lease=timedelta(minutes=10))(lambda: over.wait(10))
    served.task(name="quick", lease=SECOND)(lambda: None)
    start(served)
    run = task.submit()

    def seconds_left() -> float:
        info = served.engine.read_execution_info(run.id)
        assert info is not None
        lease = info.current_lease
        return (lease.expires_at_ms - served.engine.server_time()) / 1000 if lease else 0

    wait_until(lambda: seconds_left() > 500, "it is renewed for its own time")
    over.set()
    assert run.result(10) is True


def test_a_task_that_holds_the_interpreter_delays_renewals_and_is_named(
    served: Worker, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    starts: list[str] = []

    @served.task
    def hog() -> None:
        starts.append(current().id)
        # A C function that does not let other threads run meanwhile.
        ctypes.PyDLL(None).usleep(2_000_000)
        time.sleep(0.5)

    start(served)
    run = hog.submit()
    run.result(20)

    assert starts == [str(run.id)]
    wait_until(lambda: "s late. If a task holds Python's global lock" in caplog.text, "it is logged")
    assert "hog" in caplog.text


# Losing them


def is_told(begun: threading.Event, told: list[str]) -> Callable[[], str]:
    """Return a handler that waits until its result will not count, and then returns one all the same."""

    def handler() -> str:
        if begun.is_set():
            return "again"
        begun.set()
        assert current().cancelled.wait(10)
        try:
            current().check()
        except Interrupted as interrupted:
            told.append(interrupted.reason)
        return "late"

    return handler


def test_a_handler_is_told_at_once_that_an_operator_cancelled_it(
    served: Worker, start: Start, begun: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    task = served.task(name="wait")(is_told(begun, told))
    start(served)
    run = task.submit()
    assert begun.wait(10)
    cancelled_at = time.monotonic()
    run.cancel("not wanted")
    wait_until(lambda: told, "it is told")

    assert time.monotonic() - cancelled_at < 5
    assert told == ["cancelled or revoked"]
    wait_until(lambda: "ended (complete), which does not count: cancelled or revoked" in caplog.text, "it is dropped")
    assert run.state() is PublicState.CANCELLED


def test_a_revoked_lease_is_lost_and_the_work_is_done_again(
    served: Worker, start: Start, begun: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    task = served.task(name="wait")(is_told(begun, told))
    start(served)
    run = task.submit()
    assert begun.wait(10)
    served.engine.revoke_lease(RevokeLeaseArgs(execution_id=run.id))

    assert run.result(10) == "again"
    wait_until(lambda: "ended (complete), which does not count" in caplog.text, "the late result is dropped")
    assert len(told) == 1
    assert run.result(10) == "again"


def test_a_lease_that_ran_out_is_lost_even_while_the_store_is_away(
    start: Start, begun: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    with running(ValkeyServer("--appendfsync", "always")) as server:
        worker = Worker("shop", server.url)
        task = worker.task(name="wait")(is_told(begun, told))
        runtime = start(worker, lease=SECOND)
        run = task.submit()
        assert begun.wait(10)
        server.kill()
        wait_until(lambda: told, "it is told")
        server.start()

        assert told == ["lease lost"]
        assert run.result(20) == "again"
        wait_until(lambda: "ended (complete), which does not count: lease lost" in caplog.text, "it is logged")
        runtime.stop()
        worker.close()


def test_a_handler_that_never_asks_has_its_result_dropped(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    @served.task
    def deaf() -> str:
        begun.set()
        over.wait(10)
        return "late"

    start(served)
    run = deaf.submit()
    assert begun.wait(10)
    run.cancel()
    over.set()

    wait_until(lambda: "ended (complete), which does not count" in caplog.text, "it is dropped")
    assert run.state() is PublicState.CANCELLED


def test_news_of_an_earlier_lease_leave_the_present_one_alone(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event
) -> None:
    told: list[bool] = []

    @served.task
    def wait() -> None:
        begun.set()
        assert over.wait(10)
        told.append(current().cancelled.wait(0.3))

    start(served)
    run = wait.submit()
    assert begun.wait(10)
    engine = served.engine
    earlier = "00000000-0000-4000-8000-000000000000:1:00000000-0000-4000-8000-000000000000"
    engine.store.wake(engine.listener.topic, f"lost {run.id} {earlier}".encode())
    over.set()

    assert run.result(10) is None
    assert told == [False]


def test_work_that_comes_back_is_lost_to_its_former_holder(worker: Worker) -> None:
    task = worker.task(name="wait")(lambda: None)
    run = task.submit()
    holdings = LeaseTable(threads=1)
    former = hold(claim_one(worker.engine, "default"), task, now())
    holdings.hold(former)
    assert not former.cancelled.is_set()
    worker.engine.revoke_lease(RevokeLeaseArgs(execution_id=run.id))
    present = hold(claim_one(worker.engine, "default"), task, now())
    holdings.hold(present)

    assert (former.lost, present.lost) == ("lease lost", None)
    assert former.cancelled.is_set()
    holdings.drop(former)
    assert holdings.executions == {str(run.id): present}


# Threads that go on


@pytest.mark.parametrize("operation", ["run_upkeep", "register_worker", "renew_many"])
def test_an_error_of_the_store_does_not_end_the_keeper(
    worker: Worker, start: Start, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.lease_keeper.MAINTENANCE_EVERY", 0.1)
    monkeypatch.setattr("flowfabric_worker._runtime.lease_keeper.HEARTBEAT_EVERY", 0.1)
    task = worker.task(name="nap")(lambda: time.sleep(1.5))
    start(worker, lease=SECOND)
    called: list[int] = []
    original = getattr(worker.engine, operation)

    def sometimes(*args: Any) -> Any:
        called.append(1)
        if len(called) % 2:
            raise UnavailableError(operation)
        return original(*args)

    monkeypatch.setattr(worker.engine, operation, sometimes)
    run = task.submit()

    assert run.result(10) is None
    assert len(called) >= 3


def test_an_error_of_the_store_does_not_end_the_claimer(
    worker: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter(range(3))
    original = worker.engine.claim_many

    def sometimes(request: Any) -> Any:
        for _ in failures:
            raise UnavailableError("claim_many")
        return original(request)

    monkeypatch.setattr(worker.engine, "claim_many", sometimes)
    task = worker.task(name="add")(lambda a: a + 1)
    start(worker)

    assert task.submit(1).result(10) == 2


@pytest.mark.parametrize("answered", [False, True])
def test_outcomes_that_are_refused_together_are_sent_one_by_one(
    worker: Worker, start: Start, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    sizes: list[int] = []
    complete = worker.engine.complete_many

    def refuse_many(completions: Any) -> Any:
        sizes.append(len(completions))
        if len(completions) > 1:
            if answered:
                return [TransportError("function_failed")] * len(completions)
            raise ValidationError("invalid_input", "too many at once")
        # So that others gather meanwhile.
        time.sleep(0.01)
        return complete(completions)

    monkeypatch.setattr(worker.engine, "complete_many", refuse_many)
    task = worker.task(name="add")(lambda a: a + 1)
    runs = task.submit_many((number,) for number in range(30))
    start(worker)

    assert [run.result(10) for run in runs] == list(range(1, 31))
    assert max(sizes) > 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("operation", "part"), [("claim_many", "claimer"), ("renew_many", "lease keeper")])
def test_a_worker_stops_when_one_of_its_threads_has_died(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, operation: str, part: str
) -> None:
    def defect(*_: Any) -> Any:
        raise AssertionError("a defect")

    monkeypatch.setattr(Engine, operation, defect)
    worker.task(name="nap")(lambda: current().cancelled.wait(5)).submit()
    previous = signal.getsignal(signal.SIGTERM)

    with pytest.raises(RuntimeError, match=f"The {part} of shop-.* ended unexpectedly"):
        Runtime(worker, WorkerSettings(lease=SECOND, grace=timedelta())).run()
    assert signal.getsignal(signal.SIGTERM) is previous
