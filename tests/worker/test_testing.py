"""What applications test their tasks with: a store in memory, its clock, and runs without threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Client,
    Delay,
    ExecutionFailed,
    Middleware,
    RetryPolicy,
    TaskContext,
    Worker,
    current,
)
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.testing import Clock

HOUR = timedelta(hours=1)


def test_run_until_idle_runs_what_is_due_in_this_thread(worker: Worker) -> None:
    task = worker.task(name="where")(lambda: threading.current_thread().name)
    runs = task.submit_many([()] * 3)

    assert worker.run_until_idle() == 3
    assert {run.result(1) for run in runs} == {threading.current_thread().name}
    assert worker.run_until_idle() == 0


def test_run_until_idle_of_an_unused_store_is_nothing(worker: Worker) -> None:
    worker.task(len)

    assert worker.run_until_idle() == 0


def test_run_until_idle_also_runs_what_that_work_brings_about(worker: Worker) -> None:
    @worker.task(retry=RetryPolicy(max_retries=2, initial=timedelta()))
    def spread(left: int) -> int:
        if left == 3 and current().attempt == 0:
            raise OSError
        if left:
            spread.options(lane=f"lane-{left}").submit(left - 1)
        return left

    spread.submit(5)

    assert worker.run_until_idle() == 7


def test_run_until_idle_takes_work_of_every_lane_and_need(worker: Worker) -> None:
    task = worker.task(requires=("gpu",))(len)
    runs = [task.options(lane="far").submit("abc"), task.options(requires=("eu",)).submit("abc")]

    assert worker.run_until_idle() == 1
    assert worker.run_until_idle(capabilities=["eu"]) == 1
    assert [run.result(1) for run in runs] == [3, 3]


def test_run_until_idle_leaves_what_is_for_later_until_the_clock_says_so(worker: Worker) -> None:
    clock = Clock(worker)
    delayed = worker.task(len).options(delay=HOUR).submit_many([("ab",)] * 300)

    assert worker.run_until_idle() == 0
    clock.move(HOUR - timedelta(milliseconds=1))
    assert worker.run_until_idle() == 0
    clock.move(timedelta(milliseconds=1))
    assert worker.run_until_idle() == 300
    assert delayed[299].result(1) == 2


def test_run_until_idle_handles_all_that_is_due_before_it_returns(worker: Worker) -> None:
    clock = Clock(worker)
    overdue = worker.task(len).options(delay=2 * HOUR, deadline=HOUR).submit_many([("ab",)] * 300)
    due = worker.task(name="size")(len).options(delay=HOUR + timedelta(seconds=1)).submit("ab")
    clock.move(HOUR + timedelta(seconds=1))

    assert worker.run_until_idle() == 1
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
        assert worker.run_until_idle() == 1
        assert len(order) == passed + 1
        clock.move(HOUR)

    assert run.result(1) == "done"


def test_failures_become_outcomes(worker: Worker) -> None:
    @worker.task
    def broken() -> None:
        raise SystemExit(3)

    run = broken.submit()

    assert worker.run_until_idle() == 1
    with pytest.raises(ExecutionFailed, match="SystemExit: 3"):
        run.result(1)


def test_in_memory_lends_a_worker_a_fresh_store_each_time(tmp_path: Path) -> None:
    worker = Worker("shop", f"embedded://{tmp_path}/store")
    task = worker.task(len)
    with worker.in_memory():
        first = task.options(key="k").submit("a")
        assert first.state() is PublicState.WAITING
    with worker.in_memory():
        assert task.options(key="k").submit("b").created
        assert worker.run_until_idle() == 1

    assert worker.url == f"embedded://{tmp_path}/store"
    assert list(tmp_path.iterdir()) == []


def test_the_own_store_is_there_again_when_the_lent_one_goes() -> None:
    worker = Worker("shop", "memory://")
    task = worker.task(len)
    kept = task.options(key="k").submit("a")
    with worker.in_memory():
        assert task.options(key="k").submit("a").id != kept.id
        worker.close()

    assert task.options(key="k").submit("a").id == kept.id
    worker.close()


def test_nothing_is_kept_of_a_lent_store() -> None:
    worker = Worker("shop")
    with worker.in_memory():
        url = str(worker.url)
        run = worker.task(len).submit("a")

    assert open_engine(url).read_execution_state(run.id) is None


def test_a_run_can_be_asked_when_the_lent_store_is_gone() -> None:
    worker = Worker("shop")
    task = worker.task(len)
    with worker.in_memory():
        run = task.submit("abc")
        worker.run_until_idle()

    assert run.result(1) == 3


def test_a_store_is_lent_by_name_so_that_a_client_finds_it() -> None:
    worker = Worker("shop")
    worker.task(name="size")(len)
    with worker.in_memory():
        with Client(worker.url) as client:
            run = client.submit("size", ["abc"])
        worker.run_until_idle()
        assert worker.engine.get_execution_result(run.id) == b"3"


def test_a_handler_is_told_when_its_time_is_over(worker: Worker) -> None:
    @worker.task(timeout=timedelta(milliseconds=50))
    def slow() -> bool:
        return current().cancelled.wait(20)

    run = slow.submit()

    assert worker.run_until_idle() == 1
    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        run.result(1)


def test_a_handler_has_all_the_time_while_the_clock_stands_still(worker: Worker) -> None:
    Clock(worker)

    @worker.task(timeout=timedelta(milliseconds=50))
    def slow() -> bool:
        return current().cancelled.wait(0.2)

    run = slow.submit()

    assert worker.run_until_idle() == 1
    assert run.result(1) is False


def test_a_handler_that_moves_the_clock_over_its_timeout_has_timed_out(worker: Worker) -> None:
    clock = Clock(worker)

    @worker.task(timeout=HOUR)
    def slow() -> str:
        clock.move(HOUR)
        return "too late"

    run = slow.submit()

    assert worker.run_until_idle() == 1
    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        run.result(1)


def test_middleware_goes_around_handlers_and_is_told_of_them() -> None:
    told: list[str] = []

    class Telling(Middleware):
        @contextmanager
        def around(self, context: TaskContext) -> Iterator[None]:
            told.append(f"before {context.task}")
            yield
            told.append("after")

        def on_claim(self, event: AttemptEvent) -> None:
            told.append(f"claimed {event.task}")

        def on_success(self, event: AttemptEvent) -> None:
            told.append(f"completed {event.task}")

    worker = Worker("shop", middleware=[Telling()])
    task = worker.task(len)
    with worker.in_memory():
        task.submit("abc")
        worker.run_until_idle()

    assert told == ["before shop.len", "after", "claimed shop.len", "completed shop.len"]


def test_ctrl_c_in_a_handler_stops_the_caller_too(worker: Worker) -> None:
    @worker.task
    def stuck() -> None:
        raise KeyboardInterrupt

    runs = stuck.submit_many([(), ()])

    with pytest.raises(KeyboardInterrupt):
        worker.run_until_idle()
    assert sorted(str(run.state()) for run in runs) == ["failed", "waiting"]
    with pytest.raises(KeyboardInterrupt):
        worker.run_until_idle()
    assert worker.run_until_idle() == 0


def test_a_clock_tells_its_moment_and_moves_from_there(worker: Worker) -> None:
    clock = Clock(worker, datetime(2031, 5, 1, 12, tzinfo=UTC))
    clock.move(HOUR)

    assert clock.now == datetime(2031, 5, 1, 13, tzinfo=UTC)
    assert worker.engine.server_time() == int(clock.now.timestamp() * 1000)


def test_a_schedule_runs_when_the_clock_comes_to_it(worker: Worker) -> None:
    ticks: list[str] = []
    worker.task(name="report", every=HOUR)(lambda: ticks.append(current().tags["tick"]))
    clock = Clock(worker, datetime(2031, 5, 1, 12, 30, tzinfo=UTC))

    counts = []
    for step in (timedelta(), HOUR / 2, timedelta(), HOUR, 3 * HOUR):
        clock.move(step)
        counts.append(worker.run_until_idle())

    assert counts == [0, 1, 0, 1, 1]
    assert [tick[11:16] for tick in ticks] == ["13:00", "14:00", "17:00"]
