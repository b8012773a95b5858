"""`worker.eager()`: submissions run in place."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Delay,
    EngineError,
    ExecutionFailed,
    Middleware,
    RetryPolicy,
    Run,
    Worker,
    current,
)
from flowfabric_worker._runtime import eager
from flowfabric_worker._runtime.inline import InlineRuntime
from flowfabric_worker.engine.types.admin import ReplayExecutionArgs
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.testing import Clock

DAY = timedelta(days=1)


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Provide a worker whose submissions run in place."""
    with Worker("shop").eager() as worker:
        yield worker


# In place


def test_a_submission_has_ended_when_it_comes_back(worker: Worker) -> None:
    task = worker.task(name="where")(lambda: threading.current_thread().name)

    run = task.submit()

    assert run.state() is PublicState.COMPLETED
    assert run.result(0) == threading.current_thread().name


def test_a_failure_comes_out_of_the_result_alone(worker: Worker) -> None:
    @worker.task
    def broken() -> None:
        raise SystemExit(3)

    run = broken.submit()

    with pytest.raises(ExecutionFailed, match="SystemExit: 3"):
        run.result(0)


def test_every_way_of_submitting_runs_in_place(worker: Worker) -> None:
    task = worker.task(len)

    runs = [task.submit("a"), task.options(lane="far").submit("ab"), *task.submit_many([("abc",), ("abcd",)])]

    assert [run.state() for run in runs] == [PublicState.COMPLETED] * 4


def test_work_that_handlers_submit_runs_after_them_before_submit_returns(worker: Worker) -> None:
    order: list[str] = []

    @worker.task
    def step(left: int) -> None:
        order.append(f"begin {left}")
        if left:
            assert step.submit(left - 1).state() is PublicState.WAITING
        order.append(f"end {left}")

    step.submit(2)

    assert order == ["begin 2", "end 2", "begin 1", "end 1", "begin 0", "end 0"]


def test_what_a_hook_submits_runs_too() -> None:
    ended: list[str] = []

    class Alarm(Middleware):
        def on_failure(self, event: AttemptEvent) -> None:
            alarm.submit(event.task)

    worker = Worker("shop", middleware=[Alarm()])
    alarm = worker.task(name="alarm")(ended.append)

    @worker.task
    def broken() -> None:
        raise OSError

    with worker.eager():
        broken.submit()

    assert ended == ["shop.broken"]


def test_a_long_chain_of_submissions_needs_no_deep_stack(worker: Worker) -> None:
    @worker.task
    def step(left: int) -> None:
        if left:
            step.submit(left - 1)

    assert step.submit(300).state() is PublicState.COMPLETED


# Time


def test_eager_runs_wait_for_no_delay_and_no_retry(worker: Worker) -> None:
    runs: list[int] = []

    @worker.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=DAY, jitter=False))
    def varied() -> int:
        runs.append(worker.engine.server_time())
        if len(runs) == 1:
            raise Delay(DAY)
        current().sleep(DAY)
        if len(runs) == 3:
            raise OSError
        return len(runs)

    begun = worker.engine.server_time()

    assert varied.options(delay=DAY).submit().result(0) == 4
    days = [(moment - begun) // 1000 // 3600 / 24 for moment in runs]
    assert days == [1, 2, 3, 4]


def test_the_clock_begins_at_the_present_moment(worker: Worker) -> None:
    task = worker.task(name="now")(lambda: worker.engine.server_time())

    begun = datetime.now(UTC)
    moments = [task.options(at=begun + DAY).submit().result(0), task.options(at=begun - DAY).submit().result(0)]

    assert [datetime.fromtimestamp(moment / 1000, UTC) - begun < DAY + timedelta(hours=1) for moment in moments]
    assert [round(moment / 1000 - begun.timestamp()) // 3600 for moment in moments] == [24, 24]


def test_what_a_handler_submits_for_later_runs_in_place_too(worker: Worker) -> None:
    order: list[str] = []

    @worker.task
    def remind(text: str) -> None:
        order.append(text)

    @worker.task
    def order_goods() -> None:
        remind.options(delay=2 * DAY).submit("second")
        remind.options(delay=DAY).submit("first")

    order_goods.submit()

    assert order == ["first", "second"]


def test_results_outlast_the_moves_of_the_clock(worker: Worker) -> None:
    task = worker.task(len)
    first = task.submit("abc")
    task.options(delay=400 * DAY).submit("a")

    assert first.result(0) == 3


def test_a_retention_that_a_task_asks_for_is_kept_to(worker: Worker) -> None:
    task = worker.task(len)
    first = task.options(retention=DAY).submit("abc")
    task.options(delay=2 * DAY).submit("a")

    assert first.state() is None


def test_the_clock_can_be_moved_and_goes_on_from_there(worker: Worker) -> None:
    clock = Clock(worker)
    task = worker.task(len)
    first = task.options(key="k").submit("a")
    clock.move(2 * DAY)

    assert task.options(key="k").submit("a").id != first.id
    assert clock.now - datetime(2030, 1, 3, tzinfo=UTC) < timedelta(hours=1)


def test_real_time_counts_for_a_timeout(worker: Worker) -> None:
    @worker.task(timeout=timedelta(milliseconds=50))
    def slow() -> str:
        threading.Event().wait(0.2)
        return "too late"

    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        slow.submit().result(0)


def test_a_handler_that_wants_it_is_interrupted_at_its_timeout(worker: Worker) -> None:
    @worker.task(timeout=timedelta(milliseconds=50), interrupt=True)
    def endless() -> None:
        while True:
            threading.Event().wait(0.001)

    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        endless.submit().result(0)


# Handlers without an end


def test_what_a_task_needs_is_offered_and_the_rest_has_to_be(worker: Worker) -> None:
    task = worker.task(requires=("gpu",))(len)

    assert task.submit("abc").result(0) == 3
    with pytest.raises(RuntimeError, match=r"len.* cannot end in eager\(\): .*needs \(tape\)"):
        task.options(requires=("tape",)).submit("abc")
    with worker.eager(capabilities=["tape"]):
        assert task.options(requires=("tape",)).submit("abc").result(0) == 3


def test_a_paused_lane_is_named(worker: Worker) -> None:
    task = worker.task(len)
    task.submit("a")
    worker.engine.pause_lane("default")

    with pytest.raises(RuntimeError, match="lane 'default' is paused"):
        task.submit("a")


def test_an_execution_that_could_not_end_is_cancelled_and_never_runs(worker: Worker) -> None:
    task = worker.task(len)

    @worker.task
    def parent() -> None:
        stuck.append(task.options(requires=("gpu",)).submit("abc").id)

    stuck: list[object] = []
    with pytest.raises(RuntimeError, match="gpu"):
        parent.submit()

    assert task.submit("abcd").result(0) == 4
    assert [str(task.run(each).state()) for each in stuck] == ["cancelled"]  # type: ignore[arg-type]  # an id it is


def test_work_that_makes_new_work_for_ever_is_stopped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "MOST_MOVES", 20)
    runs: list[int] = []

    @worker.task
    def again() -> None:
        runs.append(1)
        again.options(delay=DAY).submit()

    with pytest.raises(RuntimeError, match="keeps submitting itself"):
        again.submit()
    assert len(runs) == 21
    assert worker.task(len).submit("a").result(0) == 1


def test_ctrl_c_in_a_handler_comes_out_of_the_submission(worker: Worker) -> None:
    @worker.task
    def stuck() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stuck.submit()
    assert worker.task(len).submit("a").result(0) == 1


# Around it


def test_its_store_is_fresh_each_time_and_the_own_one_comes_back() -> None:
    worker = Worker("shop", "memory://")
    task = worker.task(len)
    own = task.options(key="k").submit("a")
    for _ in range(2):
        with worker.eager():
            assert task.options(key="k").submit("a").created

    assert own.state() is PublicState.WAITING
    assert task.submit("a").state() is PublicState.WAITING
    worker.close()


def test_a_closed_worker_stays_eager(worker: Worker) -> None:
    task = worker.task(len)
    run = task.options(delay=DAY).submit("abc")
    worker.close()

    assert task.run(run.id).result(0) == 3
    assert task.submit("a").state() is PublicState.COMPLETED
    assert worker.engine.server_time() > (datetime.now(UTC).timestamp() + 3600) * 1000


def test_a_run_that_was_made_ready_again_runs_when_its_result_is_asked_for(
    worker: Worker, times: Iterator[int]
) -> None:
    task = worker.task(name="count")(lambda: next(times))
    run = task.submit()
    worker.engine.replay_execution(ReplayExecutionArgs(execution_id=run.id))

    assert run.state() is PublicState.WAITING
    assert run.result(0) == 2


def test_one_of_several_threads_runs_the_work_of_all(worker: Worker) -> None:
    inside, go_on = threading.Event(), threading.Event()
    ran_in: list[str] = []

    @worker.task
    def first() -> None:
        inside.set()
        assert go_on.wait(20)

    second = worker.task(name="second")(lambda: ran_in.append(threading.current_thread().name))

    def later() -> None:
        run = second.submit()
        go_on.set()
        run.result(20)

    runner = threading.Thread(target=first.submit, name="runner")
    runner.start()
    assert inside.wait(20)
    other = threading.Thread(target=later, name="other")
    other.start()
    for thread in (runner, other):
        thread.join(20)

    assert ran_in == ["runner"]


def test_work_that_comes_after_the_last_look_for_some_is_run_too(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = worker.task(len)
    late: list[Run[int]] = []
    run_until_idle = InlineRuntime.run_until_idle

    def and_then_comes_another(inline: InlineRuntime, most: float) -> int:
        count = run_until_idle(inline, most)
        if not late:
            other = threading.Thread(target=lambda: late.append(task.submit("abc")))
            other.start()
            other.join(20)
        return count

    monkeypatch.setattr(InlineRuntime, "run_until_idle", and_then_comes_another)
    task.submit("a")

    assert late[0].state() is PublicState.COMPLETED


def test_many_threads_may_submit_at_the_same_time(worker: Worker) -> None:
    @worker.task
    def child(number: int) -> int:
        return number

    @worker.task
    def parent(number: int) -> int:
        current().sleep(timedelta(milliseconds=1))
        child.submit(number)
        return number

    wrong: list[object] = []

    def submit(first: int) -> None:
        for number in range(first, first + 10):
            try:
                answer: object = parent.submit(number).result(30)
            except (RuntimeError, EngineError) as error:
                answer = error
            if answer != number:
                wrong.append(answer)

    threads = [threading.Thread(target=submit, args=(10 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []


def test_log_records_of_handlers_are_those_of_a_worker(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    @worker.task
    def talkative() -> None:
        current().log.warning("hello")

    with caplog.at_level(logging.WARNING):
        run = talkative.submit()

    assert [(record.message, record.__dict__["ff_execution_id"]) for record in caplog.records] == [
        ("hello", str(run.id))
    ]


def test_a_task_that_submits_itself_without_end_is_refused(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.eager.MOST_RUNS", 50)

    @worker.task
    def again() -> None:
        again.submit()

    with worker.eager(), pytest.raises(RuntimeError, match="after 50 runs of handlers at one moment"):
        again.submit()


def test_a_task_that_fails_for_ever_without_a_pause_is_told(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.eager.MOST_RUNS", 50)

    @worker.task(retry=RetryPolicy(max_retries=1_000_000, initial=timedelta(), jitter=False))
    def broken() -> None:
        raise ValueError

    with worker.eager(), pytest.raises(RuntimeError, match="after 50 runs of handlers at one moment"):
        broken.submit()
