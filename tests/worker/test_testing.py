"""What applications test their tasks with."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from flowfabric_worker import Delay, ExecutionFailed, RetryPolicy, Worker, current
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.testing import Clock, in_memory, run_until_idle

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)


def test_run_until_idle_runs_what_is_due_in_this_thread(worker: Worker) -> None:
    task = worker.task(name="where")(lambda: threading.current_thread().name)
    runs = task.submit_many([()] * 3)

    assert run_until_idle(worker) == 3
    assert {run.result(1) for run in runs} == {threading.current_thread().name}
    assert run_until_idle(worker) == 0


def test_run_until_idle_of_an_unused_store_is_nothing(worker: Worker) -> None:
    worker.task(len)

    assert run_until_idle(worker) == 0


def test_run_until_idle_also_runs_what_that_work_brings_about(worker: Worker) -> None:
    @worker.task(retry=RetryPolicy(max_retries=2, initial=timedelta()))
    def spread(left: int) -> int:
        if left == 3 and current().attempt == 0:
            raise OSError
        if left:
            spread.options(lane=f"lane-{left}").submit(left - 1)
        return left

    spread.submit(5)

    assert run_until_idle(worker) == 7


def test_run_until_idle_takes_work_of_every_lane_and_need(worker: Worker) -> None:
    task = worker.task(needs=("gpu",))(len)
    runs = [task.options(lane="far").submit("abc"), task.options(needs=("eu",)).submit("abc")]

    assert run_until_idle(worker) == 1
    assert run_until_idle(worker, offers=["eu"]) == 1
    assert [run.result(1) for run in runs] == [3, 3]


def test_run_until_idle_leaves_what_is_for_later_until_the_clock_says_so(worker: Worker) -> None:
    clock = Clock(worker)
    delayed = worker.task(len).options(delay=HOUR).submit_many([("ab",)] * 300)

    assert run_until_idle(worker) == 0
    clock.move(HOUR - timedelta(milliseconds=1))
    assert run_until_idle(worker) == 0
    clock.move(timedelta(milliseconds=1))
    assert run_until_idle(worker) == 300
    assert delayed[299].result(1) == 2


def test_run_until_idle_handles_all_that_is_due_before_it_says_that_nothing_is(worker: Worker) -> None:
    clock = Clock(worker)
    overdue = worker.task(len).options(delay=2 * HOUR, deadline=HOUR).submit_many([("ab",)] * 300)
    due = worker.task(name="size")(len).options(delay=HOUR + timedelta(seconds=1)).submit("ab")
    clock.move(HOUR + timedelta(seconds=1))

    assert run_until_idle(worker) == 1
    assert due.result(1) == 2
    assert {run.state() for run in overdue} == {PublicState.EXPIRED}


def test_retries_delays_and_sleeps_follow_the_clock(worker: Worker) -> None:
    clock = Clock(worker)
    order: list[str] = []

    @worker.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=HOUR, jitter=False))
    def varied() -> str:
        order.append("run")
        if len(order) == 1:
            raise Delay(HOUR)
        current().sleep(HOUR)
        if len(order) == 3:
            raise OSError
        return "done"

    run = varied.submit()
    for passed in range(4):
        assert run_until_idle(worker) == 1
        assert len(order) == passed + 1
        clock.move(HOUR)

    assert run.result(1) == "done"


def test_failures_become_outcomes(worker: Worker) -> None:
    @worker.task
    def broken() -> None:
        raise SystemExit(3)

    run = broken.submit()

    assert run_until_idle(worker) == 1
    with pytest.raises(ExecutionFailed, match="SystemExit: 3"):
        run.result(1)


def test_in_memory_lends_a_worker_a_fresh_store_each_time(tmp_path: Path) -> None:
    worker = Worker("shop", f"embedded://{tmp_path}/store")
    task = worker.task(len)
    with in_memory(worker):
        first = task.options(key="k").submit("a")
        assert first.state() is PublicState.WAITING
    with in_memory(worker):
        assert task.options(key="k").submit("b").created
        assert run_until_idle(worker) == 1

    assert worker.url == f"embedded://{tmp_path}/store"
    assert list(tmp_path.iterdir()) == []


APPLICATION_TESTS = """
from datetime import timedelta
from flowfabric_worker import Worker

def test_a_worker_comes_with_its_store(flowfabric):
    add = flowfabric.task(name="add")(lambda a, b: a + b)
    run = add.options(key="once").submit(1, 2)
    assert isinstance(flowfabric, Worker)
    assert run.created
    assert flowfabric.run_until_idle() == 1
    assert run.result(1) == 3

def test_the_store_is_fresh(flowfabric):
    add = flowfabric.task(name="add")(lambda a, b: a + b)
    assert add.options(key="once").submit(1, 2).created

def test_the_clock_moves(flowfabric, flowfabric_clock):
    add = flowfabric.task(name="add")(lambda a, b: a + b)
    run = add.options(delay=timedelta(days=30)).submit(1, 2)
    assert flowfabric.run_until_idle() == 0
    flowfabric_clock.move(timedelta(days=30))
    assert flowfabric.run_until_idle() == 1
    assert run.result(1) == 3
"""


def test_an_application_gets_the_fixtures_from_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_application.py").write_text(APPLICATION_TESTS)
    installed = any(point.value == "flowfabric_worker.testing" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "flowfabric_worker.testing"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_is_announced_to_pytest() -> None:
    assert "pytest11 =\n    flowfabric = flowfabric_worker.testing\n" in (ROOT / "setup.cfg").read_text()
