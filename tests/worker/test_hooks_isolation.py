"""Hooks that fail, are slow or hang affect neither outcomes nor leases nor stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Fail,
    Middleware,
    TaskContext,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Another, RunAll, Start, each_way


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Provide an event for which hooks wait, and set it after a test that failed too, so that its threads end."""
    event = threading.Event()
    yield event
    event.set()


@each_way
@pytest.mark.parametrize("raised", [ValueError("a defect"), Fail("a defect"), SystemExit("a defect")])
def test_a_failing_hook_is_logged_and_changes_nothing(
    another: Another, start: Start, run_all: RunAll, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    class Broken(Middleware):
        def on_claim(self, _: AttemptEvent) -> None:
            raise raised

        def on_success(self, _: AttemptEvent) -> None:
            raise raised

    class Whole(Middleware):
        def on_success(self, event: AttemptEvent) -> None:
            told.append(event.execution_id)

    worker = another(Broken(), Whole())
    task = worker.task(name="add")(lambda a: a + 1)
    runs = task.submit_many([(1,), (2,)])
    run_all(worker, start)

    assert [run.result(10) for run in runs] == [2, 3]
    wait_until(lambda: set(told) == {str(run.id) for run in runs}, "the other one is told")
    wait_until(lambda: f"A hook failed for add of {runs[0].id.plain}" in caplog.text, "the defect is logged")
    assert "a defect" in caplog.text


def test_a_slow_hook_delays_neither_outcomes_nor_renewals(
    another: Another, start: Start, over: threading.Event
) -> None:
    starts: list[int] = []

    class Slow(Middleware):
        def on_claim(self, event: AttemptEvent) -> None:  # noqa: ARG002  the name that all hooks have
            over.wait(30)

        on_success = on_lost = on_claim

    def slow(seconds: float) -> int:
        starts.append(1)
        time.sleep(seconds)
        return len(starts)

    workers = [another(Slow()), another()]
    for worker in workers:
        worker.task(slow)
    start(workers[0], lease=timedelta(seconds=2))
    runs = workers[0].tasks["slow"].submit_many([(0.01,)] * 20 + [(3.5,)])
    for run in runs[:20]:
        run.result(10)
    # It would take what is not renewed.
    start(workers[1], lease=timedelta(seconds=2))
    runs[20].result(10)

    assert not over.is_set()
    assert len(starts) == 21


def test_a_hook_that_never_returns_does_not_keep_a_worker_from_stopping(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch, over: threading.Event
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.hooks.MAX_QUEUED", 1)
    monkeypatch.setattr("flowfabric_worker._runtime.shutdown.FINISH_WITHIN", 0.5)

    class Stuck(Middleware):
        def on_claim(self, _: AttemptEvent) -> None:
            over.wait(60)

    worker = another(Stuck())
    runs = worker.task(name="add")(lambda a: a + 1).submit_many((number,) for number in range(3))
    runtime = start(worker, threads=1)
    runs[0].result(10)
    stopping = threading.Thread(target=runtime.stop, args=(timedelta(),))
    stopping.start()
    stopping.join(20)

    assert not stopping.is_alive()


def test_the_time_for_hanging_hooks_runs_while_other_parts_end(
    another: Another,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    over: threading.Event,
) -> None:
    within = 2.0
    monkeypatch.setattr("flowfabric_worker.runtime._HOOKS_WITHIN", within)
    marked: list[float] = []

    class Stuck(Middleware):
        def on_success(self, _: AttemptEvent) -> None:
            over.wait(60)

    def mark_slowly(*_: object) -> None:
        """Take as long to deregister as a process for suspects whose own hooks hang."""
        time.sleep(within)
        marked.append(time.monotonic())

    worker = another(Stuck())
    run = worker.task(name="add")(lambda a: a + 1).submit(1)
    runtime = start(worker, threads=1)
    run.result(10)
    monkeypatch.setattr(worker.engine, "mark_worker_dead", mark_slowly)
    runtime.stop()

    # The hooks have had their time by then, and get none of it again.
    assert time.monotonic() - marked[0] < within
    assert "The hooks missed 1 event at the stop: " in caplog.text


# While an interruption is armed for a blocked thread, CPython 3.11 stops every other thread that a tool traces.
@pytest.mark.untraced
def test_a_hook_that_never_returns_stops_no_claim_outcome_or_renewal(
    another: Another,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    over: threading.Event,
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.hooks.MAX_QUEUED", 5)
    starts: list[int] = []

    class Stuck(Middleware):
        def on_claim(self, event: AttemptEvent) -> None:  # noqa: ARG002  the name that all hooks have
            over.wait(60)

        on_success = on_failure = on_lost = on_claim

    worker = another(Stuck())
    add = worker.task(name="add")(lambda a: a + 1)
    slow = worker.task(name="slow")(lambda: (starts.append(1), time.sleep(2.5))[1])
    cancelled = worker.task(name="cancelled", interrupt=True)(lambda: over.wait(20))
    start(worker, threads=3, lease=timedelta(seconds=1))
    long, unwanted = slow.submit(), cancelled.submit()
    in_state(worker, unwanted, PublicState.ACTIVE)
    unwanted.cancel()

    assert [add.submit(number).result(10) for number in range(30)] == list(range(1, 31))
    long.result(10)
    assert len(starts) == 1
    assert not over.is_set()
    wait_until(lambda: "The hooks are too slow" in caplog.text, "it is told")
    (line,) = [record.getMessage() for record in caplog.records if "too slow" in record.getMessage()]
    assert "Waiting: 5 events; dropped: " in line
    assert "Stuck.on_claim has run for" in line


class Around(Middleware):
    """Goes around handlers, and is told nothing."""

    def around(self, _: TaskContext) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("middleware", [(), (Middleware(),), (Around(),), (lambda _: None,)])
def test_no_thread_is_started_if_no_middleware_overrides_a_hook(
    another: Another, start: Start, middleware: Any
) -> None:
    worker = another(*middleware)
    worker.task(len)
    start(worker)

    assert not [thread for thread in threading.enumerate() if thread.name == "flowfabric-hooks"]
