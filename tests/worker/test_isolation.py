"""Executions whose workers were lost again and again: they run alone, and are given up at last."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import ExecutionFailed, Run, Worker, current
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.lease_table import LeaseTable, now
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.executions import request
from tests.support.observation import in_state, info_of
from tests.support.servers import wait_until
from tests.worker.conftest import Another, Start

SUSPECTS = "suspects"
BLINK = timedelta(milliseconds=1)
OPTIONS: dict[str, Any] = {"lane": SUSPECTS, "max_reclaims": 1000}


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End every handler that still waits when the test ends."""
    over = threading.Event()
    yield over
    over.set()


def lose_workers(worker: Worker, runs: list[Run[Any]], times: int = 2) -> None:
    """Let executions lose the workers that hold them, each at least so often."""
    losses: Counter[str] = Counter()
    while any(losses[str(run.id)] < times for run in runs):
        claims = worker.engine.claim_many(request(SUSPECTS, worker="ghost", lease=BLINK, limit=100))
        losses.update(str(claimed.execution_id) for claimed in claims)


class Company:
    """Who runs at the same time in one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: list[str] = []
        self.alone: list[str] = []
        self.disturbed: list[list[str]] = []
        self.most = 0

    def run(self, name: str, seconds: float) -> None:
        suspect = current().lane == SUSPECTS
        with self._lock:
            self._inside.append(name)
            self._look()
            if suspect:
                self.alone.append(name)
        time.sleep(seconds)
        with self._lock:
            self._look()
            self._inside.remove(name)

    def _look(self) -> None:
        self.most = max(self.most, len(self._inside))
        if len(self._inside) > 1 and any(name.startswith("suspect") for name in self._inside):
            self.disturbed.append(list(self._inside))


def test_suspects_run_one_at_a_time_and_with_nothing_else(served: Worker, start: Start) -> None:
    company = Company()
    suspect = served.task(name="suspect", **OPTIONS)(lambda n: company.run(f"suspect {n}", 0.1))
    plain = served.task(name="plain")(lambda n: company.run(f"plain {n}", 0.02))
    suspects = suspect.submit_many((number,) for number in range(3))
    lose_workers(served, suspects)
    before = plain.submit_many((number,) for number in range(40))
    start(served, threads=4)
    after = plain.submit_many((number,) for number in range(40, 80))
    for run in [*suspects, *before, *after]:
        run.result(20)

    assert sorted(company.alone) == ["suspect 0", "suspect 1", "suspect 2"]
    assert company.disturbed == []
    assert company.most > 1, "others run side by side"
    assert [run.state() for run in suspects] == [PublicState.COMPLETED] * 3


def test_work_that_lost_a_worker_once_runs_with_others(served: Worker, start: Start) -> None:
    together = threading.Barrier(2)
    once = served.task(name="once", **OPTIONS)(lambda: together.wait(10) >= 0)
    run = once.submit()
    lose_workers(served, [run], times=1)
    # An additional claim must not cause another loss.
    plain = served.task(name="plain")(lambda: together.wait(10) >= 0)
    beside = plain.submit()
    start(served, threads=2)

    assert (run.result(20), beside.result(20)) == (True, True)
    assert info_of(served, run).reclaim_count == 1


def test_another_worker_takes_the_other_work_meanwhile(another: Another, start: Start, over: threading.Event) -> None:
    workers = {"guarding": another(), "free": another()}
    begun: list[str] = []
    for name, worker in workers.items():
        worker.task(name="suspect", **OPTIONS)(lambda name=name: (begun.append(name), over.wait(20))[1])
        worker.task(name="plain")(lambda name=name: name)
    run = workers["guarding"].tasks["suspect"].submit()
    lose_workers(workers["guarding"], [run])
    start(workers["guarding"], threads=4)
    wait_until(lambda: begun, "it runs")
    runs = workers["free"].tasks["plain"].submit_many([()] * 20)
    start(workers["free"], threads=2)

    assert {each.result(10) for each in runs} == {"free"}
    assert run.state() is PublicState.ACTIVE
    over.set()
    assert run.result(10) is True
    assert begun == ["guarding"]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let suspects wait for other handlers for as long as a test takes."""
    monkeypatch.setattr("flowfabric_worker._runtime.suspects.ISOLATE_WITHIN", 60.0)


def waiting_alone(worker: Worker, start: Start, over: threading.Event, **settings: Any) -> tuple[Any, Run[Any]]:
    """Return a runtime that holds a suspect back, because a handler of another execution runs on."""
    worker.task(name="suspect", **OPTIONS)(lambda: f"here {current().attempt}")
    long = worker.task(name="long")(lambda: over.wait(30))
    run = worker.tasks["suspect"].submit()
    lose_workers(worker, [run])
    # The other one begins first.
    worker.engine.pause_lane(SUSPECTS)
    other = long.submit()
    runtime = start(worker, threads=2, **settings)
    in_state(worker, other, PublicState.ACTIVE)
    worker.engine.resume_lane(SUSPECTS)
    wait_until(lambda: runtime._leases.suspects, "the suspect is held back")
    return runtime, run


def attempt_of(info: ExecutionInfo) -> int:
    assert info.current_attempt is not None
    return info.current_attempt.attempt_index


@pytest.mark.usefixtures("patient")
def test_isolated_work_keeps_its_lease_while_it_waits(served: Worker, start: Start, over: threading.Event) -> None:
    _, run = waiting_alone(served, start, over, lease=timedelta(seconds=1))
    before = info_of(served, run)

    def renewals() -> bool:
        lease, former = info_of(served, run).current_lease, before.current_lease
        assert lease is not None
        assert former is not None
        return lease.expires_at_ms > former.expires_at_ms + 1500

    wait_until(renewals, "it is renewed beyond its first lease")
    over.set()
    assert run.result(10) == f"here {attempt_of(before)}"
    after = info_of(served, run)
    assert (after.reclaim_count, after.retry_count) == (before.reclaim_count, 0)


@pytest.mark.usefixtures("patient")
def test_isolated_work_is_handed_to_a_worker_that_waits(another: Another, start: Start, over: threading.Event) -> None:
    _, run = waiting_alone(another(), start, over)
    other = another()
    other.task(name="suspect", **OPTIONS)(lambda: "elsewhere")
    before = info_of(other, run).reclaim_count
    start(other)

    assert run.result(10) == "elsewhere"
    assert not over.is_set()
    assert info_of(other, run).reclaim_count == before


@pytest.mark.usefixtures("patient")
def test_isolated_work_is_handed_back_by_a_stop(served: Worker, start: Start, over: threading.Event) -> None:
    runtime, run = waiting_alone(served, start, over)
    before = info_of(served, run)
    runtime.stop(timedelta())
    after = info_of(served, run)

    assert run.state() is PublicState.WAITING
    assert (after.reclaim_count, attempt_of(after)) == (before.reclaim_count, attempt_of(before))


def test_claiming_continues_after_isolated_work_has_ended(served: Worker, start: Start, over: threading.Event) -> None:
    _, run = waiting_alone(served, start, over)
    add = served.task(name="add")(lambda a: a + 1)
    over.set()

    assert run.result(10).startswith("here")
    start(served)
    assert [add.submit(number).result(10) for number in range(5)] == [1, 2, 3, 4, 5]


def test_other_work_continues_beside_a_suspect_that_does_not_end(
    served: Worker, start: Start, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.suspects.ISOLATE_FOR", 0.2)
    suspect = served.task(name="suspect", **OPTIONS)(lambda: over.wait(30))
    add = served.task(name="add")(lambda a: a + 1)
    suspects = suspect.submit_many([(), ()])
    lose_workers(served, suspects)
    start(served, threads=3)
    in_state(served, suspects[0], PublicState.ACTIVE)

    assert [add.submit(number).result(10) for number in range(20)] == list(range(1, 21))
    assert not over.is_set()


def test_a_suspect_runs_although_another_handler_does_not_end(
    served: Worker, start: Start, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.suspects.ISOLATE_WITHIN", 0.2)
    _, run = waiting_alone(served, start, over)

    assert run.result(10).startswith("here")
    assert not over.is_set()


def test_a_suspect_that_is_revoked_before_it_begins_is_not_running(worker: Worker) -> None:
    suspect = worker.task(name="suspect", **OPTIONS)(lambda: None)
    run = suspect.submit()
    lose_workers(worker, [run])
    (claimed,) = wait_until(lambda: worker.engine.claim_many(request(SUSPECTS)), "its last lease is over")
    held = hold(claimed, suspect, now())
    holdings = LeaseTable(threads=1)
    holdings.hold(held)
    holdings.queue(held)
    assert holdings.suspects.popleft() is held
    holdings.begin(held)
    assert holdings.outstanding() == 1

    assert holdings.take_back_waiting() == [held]
    holdings.hand_over(held)
    assert holdings.outstanding() == 0


def test_what_loses_too_many_workers_fails_with_how_the_last_one_died(served: Worker, start: Start) -> None:
    task = served.task(name="deadly", lane=SUSPECTS, max_reclaims=2)(lambda: "never")
    engine = served.engine
    run = task.submit()
    for number in range(3):
        instance = f"ghost-{number}"
        engine.register_worker(RegisterWorkerArgs(worker_id="ghost", worker_instance_id=instance, lanes=(SUSPECTS,)))
        wait_until(
            lambda instance=instance: engine.claim_many(request(SUSPECTS, worker=instance, lease=BLINK)), "claimed"
        )
        engine.mark_worker_dead(instance, f"killed by signal {number}")
    start(served)

    with pytest.raises(ExecutionFailed, match="reclaims_exhausted") as caught:
        run.result(10)
    assert caught.value.detail == "worker ghost-2: killed by signal 2"
