"""Hooks: what middleware is told of each run, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Cancel,
    Delay,
    Fail,
    Middleware,
    Retry,
    RetryPolicy,
    Run,
    TaskContext,
    UnavailableError,
    Worker,
    current,
)
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.observation import ended, in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Another, RunAll, Start, each_way, run_here

SOON = timedelta(milliseconds=1)
ONCE_MORE = RetryPolicy(max_retries=1, backoff="fixed", initial=SOON)


class Telling(Middleware):
    """Keeps what it is told, with the state that the store holds at that moment."""

    def __init__(self) -> None:
        self.told: list[tuple[str, AttemptEvent, PublicState | None]] = []
        self.worker: Worker | None = None

    def _keep(self, name: str, event: AttemptEvent) -> None:
        assert self.worker is not None
        state = self.worker.engine.read_execution_state(ExecutionId.parse(event.execution_id))
        self.told.append((name, event, state))

    def on_claim(self, event: AttemptEvent) -> None:
        self._keep("claim", event)

    def on_success(self, event: AttemptEvent) -> None:
        self._keep("success", event)

    def on_failure(self, event: AttemptEvent) -> None:
        self._keep("failure", event)

    def on_retry(self, event: AttemptEvent) -> None:
        self._keep("retry", event)

    def on_suspend(self, event: AttemptEvent) -> None:
        self._keep("suspend", event)

    def on_lost(self, event: AttemptEvent) -> None:
        self._keep("lost", event)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.told]

    def only(self, name: str) -> tuple[AttemptEvent, PublicState | None]:
        """Return the one event of a name."""
        (found,) = [(event, state) for told, event, state in self.told if told == name]
        return found


@pytest.fixture
def telling() -> Telling:
    return Telling()


@pytest.fixture
def shop(another: Another, telling: Telling) -> Worker:
    """Provide a worker whose hooks are told everything."""
    telling.worker = another(telling)
    return telling.worker


@each_way
def test_hooks_are_told_of_a_success_once_and_after_the_store_knows(
    shop: Worker, start: Start, telling: Telling, run_all: RunAll
) -> None:
    task = shop.task(name="send", lane="mail", tags={"shop": "berlin"})(lambda: time.sleep(0.02))
    run = task.submit()
    run_all(shop, start)
    run.result(10)
    wait_until(lambda: len(telling.told) == 2, "both are told")
    event, state = telling.only("success")

    assert telling.names == ["claim", "success"]
    assert state is PublicState.COMPLETED
    assert (event.execution_id, event.task, event.lane) == (str(run.id), "send", "mail")
    assert (event.attempt, event.retry_count, dict(event.tags), event.error) == (0, 0, {"shop": "berlin"}, "")
    assert event.seconds is not None
    assert event.seconds >= 0.02
    assert telling.only("claim")[0].execution_id == str(run.id)


@each_way
def test_hooks_tell_a_failure_that_is_tried_again_from_the_last_one(
    shop: Worker, start: Start, telling: Telling, run_all: RunAll
) -> None:
    @shop.task(retry=ONCE_MORE)
    def broken() -> None:
        raise ValueError(f"boom {current().attempt}")

    run = broken.submit()
    run_all(shop, start)
    if run_all is run_here:
        wait_until(lambda: shop.run_until_idle() or run.state() is PublicState.FAILED, "the retry is due")
    ended(shop, run)
    wait_until(lambda: len(telling.told) >= 4, "everything is told")
    (retry, _), (failure, state) = telling.only("retry"), telling.only("failure")

    # The claimer and the committer tell side by side, so a claim may be told before the failure that led to it.
    assert sorted(telling.names) == ["claim", "claim", "failure", "retry"]
    assert (retry.attempt, retry.retry_count, retry.error) == (0, 0, "ValueError: boom 0")
    assert (failure.attempt, failure.retry_count, failure.error) == (1, 1, "ValueError: boom 1")
    assert state is PublicState.FAILED


def test_a_run_whose_retry_is_claimed_early_is_not_reported_as_lost(
    shop: Worker, start: Start, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_many = shop.engine.fail_many

    def answer_late(failures: Any) -> Any:
        answers = fail_many(failures)
        wait_until(lambda: telling.names.count("claim") == 2, "the retry is claimed")
        return answers

    monkeypatch.setattr(shop.engine, "fail_many", answer_late)

    @shop.task(retry=ONCE_MORE)
    def unsteady() -> None:
        if current().attempt == 0:
            raise ValueError("boom")

    start(shop)
    unsteady.submit().result(20)
    wait_until(lambda: {"retry", "success"} <= set(telling.names), "everything is told")

    assert sorted(telling.names) == ["claim", "claim", "retry", "success"]


def test_a_failure_is_told_as_a_retry_when_the_store_has_set_its_time(
    shop: Worker, start: Start, telling: Telling
) -> None:
    @shop.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(hours=1)))
    def broken() -> None:
        raise Retry("busy")

    broken.submit()
    start(shop)
    wait_until(lambda: len(telling.told) == 2, "it is told")
    event, state = telling.only("retry")

    assert (event.error, state) == ("busy", PublicState.DELAYED)


@each_way
@pytest.mark.parametrize("how", ["sleep", "delay"])
def test_hooks_are_told_that_a_handler_goes_on_later(
    shop: Worker, start: Start, telling: Telling, run_all: RunAll, how: str
) -> None:
    @shop.task
    def later() -> None:
        if how == "delay":
            raise Delay(timedelta(hours=1))
        current().sleep(timedelta(hours=1))

    run = later.submit()
    run_all(shop, start)
    in_state(shop, run, PublicState.DELAYED)
    wait_until(lambda: len(telling.told) == 2, "both are told")

    assert telling.names == ["claim", "suspend"]
    assert telling.only("suspend")[1] is PublicState.DELAYED
    assert telling.only("suspend")[0].error == ""


@each_way
def test_a_handler_that_cancels_its_execution_is_told_as_a_failure(
    shop: Worker, start: Start, telling: Telling, run_all: RunAll
) -> None:
    @shop.task
    def give_up() -> None:
        raise Cancel("not wanted")

    give_up.submit()
    run_all(shop, start)
    wait_until(lambda: len(telling.told) == 2, "both are told")
    event, state = telling.only("failure")

    assert state is PublicState.CANCELLED
    assert event.error == "cancelled by its handler"


def lose_by_cancel(worker: Worker, run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run.cancel()


def lose_by_timeout(worker: Worker, run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do nothing: the task has a timeout."""


def lose_by_silence(worker: Worker, run: Run[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def away(handles: Any) -> Any:
        raise UnavailableError("renew_many")

    monkeypatch.setattr(worker.engine, "renew_many", away)


@pytest.mark.parametrize(
    ("lose", "timeout", "reason"),
    [
        (lose_by_cancel, None, "cancelled or revoked"),
        (lose_by_timeout, timedelta(seconds=0.5), "timeout"),
        (lose_by_silence, None, "lease lost"),
    ],
)
def test_hooks_are_told_why_a_run_will_not_count(
    shop: Worker,
    start: Start,
    telling: Telling,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Worker, Run[Any], pytest.MonkeyPatch], None],
    timeout: timedelta | None,
    reason: str,
) -> None:
    over = threading.Event()
    # A lost worker would cause a retry, and one attempt is enough here.
    task = shop.task(name="wait", timeout=timeout, max_reclaims=0)(lambda: over.wait(10))
    runtime = start(shop, lease=timedelta(seconds=1))
    run = task.submit()
    wait_until(lambda: "claim" in telling.names, "it is claimed")
    lose(shop, run, monkeypatch)
    wait_until(lambda: "lost" in telling.names, "it is told")
    over.set()
    runtime.stop()

    event, _ = telling.only("lost")
    assert telling.names == ["claim", "lost"]
    assert (event.execution_id, event.error) == (str(run.id), reason)
    assert event.seconds is not None


def test_hooks_are_told_what_a_stop_did_not_wait_for(shop: Worker, start: Start, telling: Telling) -> None:
    over = threading.Event()
    task = shop.task(name="wait")(lambda: over.wait(10))
    runtime = start(shop)
    run = task.submit()
    in_state(shop, run, PublicState.ACTIVE)
    runtime.stop(timedelta())
    over.set()

    assert telling.names == ["claim", "lost"]
    assert telling.only("lost")[0].error == "stopping"


class Ending(Middleware):
    """Keeps how executions ended."""

    def __init__(self) -> None:
        self.ends: list[AttemptEvent] = []

    def on_ended(self, event: AttemptEvent) -> None:
        self.ends.append(event)


@pytest.fixture
def ending() -> Ending:
    return Ending()


def raise_nothing() -> None:
    """End well."""


def raise_error() -> None:
    raise ValueError("boom")


def raise_cancel() -> None:
    raise Cancel("not wanted")


@each_way
@pytest.mark.parametrize(
    ("handler", "outcome", "error"),
    [
        (raise_nothing, "completed", ""),
        (raise_error, "failed", "ValueError: boom"),
        (raise_cancel, "cancelled", "cancelled by its handler"),
    ],
)
def test_an_end_that_a_handler_brought_about_is_told_with_its_outcome(
    another: Another, start: Start, run_all: RunAll, ending: Ending, handler: Any, outcome: str, error: str
) -> None:
    worker = another(ending)
    run = worker.task(name="send")(handler).submit()
    run_all(worker, start)
    wait_until(lambda: ending.ends, "it is told")

    assert [(each.execution_id, each.outcome, each.error) for each in ending.ends] == [(str(run.id), outcome, error)]


@pytest.mark.parametrize(
    ("options", "outcome", "error"),
    [
        ({"timeout": timedelta(seconds=0.3)}, "failed", "attempt_timeout"),
        ({"timeout": timedelta(seconds=0.3), "retry": ONCE_MORE}, "failed", "attempt_timeout"),
        ({"deadline": timedelta(seconds=0.3)}, "expired", "execution_deadline"),
        ({}, "cancelled", "not wanted"),
    ],
    ids=["timeout", "timeout of a retry", "deadline", "cancelled from outside"],
)
def test_an_end_that_time_or_an_operator_brought_about_is_told_once(
    another: Another, start: Start, ending: Ending, options: dict[str, Any], outcome: str, error: str
) -> None:
    over = threading.Event()
    worker = another(ending)
    task = worker.task(name="wait", **options)(lambda: over.wait(10))
    start(worker, threads=2)
    run = task.submit()
    if not options:
        in_state(worker, run, PublicState.ACTIVE)
        run.cancel("not wanted")
    wait_until(lambda: ending.ends, "it is told")
    over.set()

    assert [(each.execution_id, each.outcome, each.error) for each in ending.ends] == [(str(run.id), outcome, error)]


def test_the_end_of_an_attempt_that_timed_out_during_an_outage_is_told(
    another: Another, start: Start, ending: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the hooks ask for the end before any maintenance has brought it about."""
    over = threading.Event()
    worker = another(ending)
    lease = timedelta(seconds=1)
    task = worker.task(name="wait", timeout=lease / 2, lease=lease)(lambda: over.wait(20))

    def away(*_: Any, **__: Any) -> Any:
        raise UnavailableError("renew_many")

    monkeypatch.setattr(worker.engine, "renew_many", away)
    # A claim that waits would end what is over.
    start(worker, threads=1)
    run = task.submit()
    wait_until(lambda: ending.ends, "it is told")
    over.set()

    assert [(each.execution_id, each.error) for each in ending.ends] == [(str(run.id), "attempt_timeout")]


def test_an_end_by_a_claim_is_told_by_hook_and_log(
    another: Another, start: Start, ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    worker = another(ending)
    lease = timedelta(milliseconds=50)
    lost = worker.task(name="lost", lane="l", max_reclaims=0)(lambda: None).submit()
    claim_one(worker.engine, "l", lease=lease)
    late = worker.task(name="late", lane="l", deadline=lease)(lambda: None).submit()
    over = worker.engine.server_time() + 200
    wait_until(lambda: worker.engine.server_time() > over, "lease and deadline are over")

    start(worker)
    wait_until(lambda: len(ending.ends) == 2 and caplog.text.count("failed for good") == 2, "both are told")

    told = {each.execution_id: (each.task, each.outcome, each.error.partition(":")[0]) for each in ending.ends}
    assert told == {
        str(lost.id): ("lost", "failed", "reclaims_exhausted"), str(late.id): ("late", "expired", "execution_deadline"),
    }  # fmt: skip


def test_an_end_by_a_stop_is_told_where_nothing_may_begin_twice(another: Another, start: Start, ending: Ending) -> None:
    over = threading.Event()
    worker = another(ending)
    task = worker.task(name="wait", max_reclaims=0)(lambda: over.wait(10))
    runtime = start(worker)
    run = task.submit()
    in_state(worker, run, PublicState.ACTIVE)
    runtime.stop(timedelta())
    over.set()

    assert [(each.execution_id, each.outcome) for each in ending.ends] == [(str(run.id), "failed")]
    assert ending.ends[0].error == "reclaims_exhausted: its worker was told to stop"


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


def test_a_slow_hook_delays_neither_outcomes_nor_renewals(another: Another, start: Start) -> None:
    over = threading.Event()
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
    start(workers[0], lease=timedelta(seconds=1))
    runs = workers[0].tasks["slow"].submit_many([(0.01,)] * 20 + [(2.5,)])
    for run in runs[:20]:
        run.result(10)
    # It would take what is not renewed.
    start(workers[1], lease=timedelta(seconds=1))
    runs[20].result(10)

    assert not over.is_set()
    assert len(starts) == 21
    over.set()


def test_a_hook_that_never_returns_does_not_keep_a_worker_from_stopping(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.hooks.MAX_QUEUED", 1)
    monkeypatch.setattr("flowfabric_worker._runtime.shutdown.FINISH_WITHIN", 0.5)
    over = threading.Event()

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
    over.set()


def test_a_hook_that_never_returns_stops_no_claim_outcome_or_renewal(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flowfabric_worker._runtime.hooks.MAX_QUEUED", 5)
    over = threading.Event()
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
    assert "5 events wait, and " in line
    assert "Stuck.on_claim has run for" in line
    over.set()


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


def test_the_thread_of_the_hooks_ends_with_the_worker_when_all_is_told(
    another: Another, start: Start, telling: Telling
) -> None:
    telling.worker = worker = another(telling)
    runs = worker.task(name="add")(lambda a: a + 1).submit_many((number,) for number in range(100))
    runtime = start(worker)
    for run in runs:
        run.result(10)
    runtime.stop()

    assert not [thread for thread in threading.enumerate() if thread.name == "flowfabric-hooks"]
    assert sorted(telling.names) == ["claim"] * 100 + ["success"] * 100
