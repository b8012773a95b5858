"""Work that was claimed ahead and waits: it goes to a worker that is free, and stays where there is none."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from flowfabric_worker import Run, Runtime, Worker, current
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Another, Start


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End every handler that still waits when the test ends."""
    over = threading.Event()
    yield over
    over.set()


class Pace:
    """How many handlers end in a second, as the claimers see it: so many that each claims 20 ahead."""

    def __init__(self) -> None:
        self.per_second = 400.0


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    pace = Pace()
    monkeypatch.setattr("flowfabric_worker._runtime.claimer._ThroughputEstimate.per_second", lambda _: pace.per_second)
    return pace


def holding_ahead(
    worker: Worker, start: Start, over: threading.Event, pace: Pace, where: list[str]
) -> tuple[Runtime, Run[Any], list[Run[Any]]]:
    """Return a runtime of one thread: one execution keeps it, and others wait behind that one."""
    worker.task(name="slow")(lambda: over.wait(30))
    worker.task(name="quick")(lambda: where.append(f"here {current().attempt}"))
    slow = worker.tasks["slow"].submit()
    quick = worker.tasks["quick"].submit_many([()] * 10)
    runtime = start(worker, threads=1)
    wait_until(lambda: runtime._leases.waiting.qsize() == 10, "it holds them all")
    # The slow one has slowed it down.
    pace.per_second = 0.0
    return runtime, slow, quick


def steady(info: ExecutionInfo) -> tuple[Any, ...]:
    """Return what must not change when work only waits."""
    assert info.current_attempt is not None
    assert info.current_lease is not None
    return (
        info.current_attempt,
        info.current_lease.lease_epoch,
        info.retry_count,
        info.reclaim_count,
        info.total_attempt_count,
    )


def test_work_behind_a_slow_task_goes_to_a_free_worker(
    another: Another, start: Start, over: threading.Event, pace: Pace
) -> None:
    where: list[str] = []
    _, slow, quick = holding_ahead(another(), start, over, pace, where)
    other = another()
    other.task(name="quick")(lambda: where.append(f"there {current().kind} {current().attempt}"))
    began = time.monotonic()
    start(other, threads=1)
    for run in quick:
        run.result(10)

    assert time.monotonic() - began < 15, "no worker waits for a lease of 30 s"
    assert not over.is_set()
    assert slow.state() is PublicState.ACTIVE
    assert set(where) <= {"there fresh 0", "there resumed 0"}
    assert len(where) == 10
    counted = {(info_of(other, run).retry_count, info_of(other, run).reclaim_count) for run in quick}
    assert counted == {(0, 0)}


def record_handovers(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record when the lease keeper of a worker offers waiting work to others, and return the list of these moments."""
    handovers: list[float] = []
    release = worker.engine.release_many

    def noted(handles: Any, **options: Any) -> Any:
        if options.get("if_wanted"):
            handovers.append(time.monotonic())
        return release(handles, **options)

    monkeypatch.setattr(worker.engine, "release_many", noted)
    return handovers


def test_waiting_work_stays_while_no_other_worker_is_free(
    served: Worker, start: Start, over: threading.Event, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    handovers = record_handovers(served, monkeypatch)
    where: list[str] = []
    runtime, slow, quick = holding_ahead(served, start, over, pace, where)
    # Its own claimer may have been waiting for more when it slowed down; that one gets them back, and waits no more.
    wait_until(lambda: len(handovers) >= 2, "it has been offered")
    before = [steady(info_of(served, run)) for run in quick]
    wait_until(lambda: len(handovers) >= 5, "it was offered some times")

    assert handovers[4] - handovers[1] > 0.7, "it is offered now and then, not in a loop"
    assert [steady(info_of(served, run)) for run in quick] == before
    over.set()
    assert slow.result(10) is True
    for run in quick:
        run.result(10)
    assert where == ["here 0"] * 10
    wait_until(lambda: runtime._leases.outstanding() == 0, "its place is free again")


def test_a_worker_that_waits_for_other_work_gets_none_of_it(
    another: Another, start: Start, over: threading.Event, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, other = another(), another()
    handovers = record_handovers(busy, monkeypatch)
    _, _, quick = holding_ahead(busy, start, over, pace, [])
    other.task(name="else")(lambda: "else")
    start(other, threads=1)
    assert other.tasks["else"].submit().result(10) == "else"
    wait_until(lambda: len(handovers) >= 2, "it has been offered")
    before = [steady(info_of(other, run)) for run in quick]
    offered = len(handovers)
    wait_until(lambda: len(handovers) >= offered + 2, "it is offered while the other one waits")

    assert [steady(info_of(other, run)) for run in quick] == before


def test_waiting_work_runs_once_when_its_worker_stops_while_offering_it(
    another: Another, start: Start, over: threading.Event, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = another()
    release = worker.engine.release_many
    offering, stopping, answered = threading.Event(), threading.Event(), threading.Event()

    def slowly(handles: Any, **options: Any) -> Any:
        if options:
            offering.set()
            # The stop begins while the store is asked.
            assert stopping.wait(10)
            answers = release(handles, **options)
            answered.set()
            return answers
        # The keeper's answer says that no worker wants it, so the keeper puts it back.
        assert answered.wait(10)
        return release(handles)

    monkeypatch.setattr(worker.engine, "release_many", slowly)
    where: list[str] = []
    runtime, _, quick = holding_ahead(worker, start, over, pace, where)
    assert offering.wait(10)
    stop = threading.Thread(target=runtime.stop)
    stop.start()
    wait_until(lambda: not runtime._claimer.alive, "it claims nothing more")
    stopping.set()
    wait_until(lambda: {run.state() for run in quick} == {PublicState.WAITING}, "all of it is handed back")
    over.set()
    stop.join(20)
    other = another()
    other.task(name="quick")(lambda: where.append("there"))
    start(other)
    for run in quick:
        run.result(10)

    assert not stop.is_alive()
    assert Counter(where) == {"there": 10}


def test_offered_work_counts_as_held_so_no_other_is_claimed_for_it(
    served: Worker, start: Start, over: threading.Event, pace: Pace, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    runtimes: list[Runtime] = []
    release = served.engine.release_many

    def counted(handles: Any, **options: Any) -> Any:
        if runtimes and options:
            held.append(len(runtimes[0]._leases.executions))
        return release(handles, **options)

    monkeypatch.setattr(served.engine, "release_many", counted)
    served.task(name="slow")(lambda: over.wait(30))
    served.tasks["slow"].submit_many([()] * 200)
    runtimes.append(start(served, threads=1))
    wait_until(lambda: len(held) >= 4, "it was offered some times")

    assert held[-1] <= 21
