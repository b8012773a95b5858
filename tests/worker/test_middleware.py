"""Middleware: what goes around handlers, and what hooks are told of each run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeAlias

import pytest

from flowfabric_worker import (
    Cancel,
    Delay,
    ExecutionFailed,
    Fail,
    Middleware,
    Retry,
    RetryPolicy,
    Run,
    RunEvent,
    TaskContext,
    UnavailableError,
    Worker,
    current,
)
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState
from tests.servers import wait_until
from tests.worker.conftest import Start
from tests.worker.looking import ended, in_state

Make: TypeAlias = Callable[..., Worker]
SOON = timedelta(milliseconds=1)
ONCE_MORE = RetryPolicy(max_retries=1, backoff="fixed", initial=SOON)


@pytest.fixture
def another(served_url: str) -> Iterator[Make]:
    """Makes workers on one store, each with the middleware that it is given."""
    made: list[Worker] = []

    def make(*middleware: Any) -> Worker:
        made.append(Worker("shop", served_url, middleware=middleware))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def run_here(worker: Worker, start: Start) -> None:
    worker.run_until_idle()


def run_in_threads(worker: Worker, start: Start) -> None:
    start(worker)


each_way = pytest.mark.parametrize("run_all", [run_here, run_in_threads])
RunAll: TypeAlias = Callable[[Worker, Start], None]


# Around a handler


def noting(notes: list[str], name: str) -> Callable[[TaskContext], Any]:
    """A plain function that notes when a handler begins and ends."""

    @contextmanager
    def around(context: TaskContext) -> Iterator[None]:
        notes.append(f"{name} enters {context.task}")
        yield
        notes.append(f"{name} leaves {context.task}")

    return around


class Measuring(Middleware):
    """Notes what a handler raised, and lets it out."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def around(self, _: TaskContext) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.seen.append(type(error).__name__)
            raise


@each_way
def test_the_first_middleware_is_the_outermost(another: Make, start: Start, run_all: RunAll) -> None:
    notes: list[str] = []

    class Second(Middleware):
        def around(self, context: TaskContext) -> Any:
            return noting(notes, "second")(context)

    worker = another(noting(notes, "first"), Second(), noting(notes, "third"))
    run = worker.task(name="send")(lambda: notes.append("handler")).submit()
    run_all(worker, start)
    run.result(10)

    assert notes == [
        "first enters send", "second enters send", "third enters send",
        "handler",
        "third leaves send", "second leaves send", "first leaves send",
    ]  # fmt: skip


@each_way
def test_a_middleware_sees_the_context_of_the_run(another: Make, start: Start, run_all: RunAll) -> None:
    seen: list[tuple[Any, ...]] = []

    @contextmanager
    def look(context: TaskContext) -> Iterator[None]:
        seen.append((context.id, context.task, context.lane, context.attempt, dict(context.tags), context is current()))
        yield

    worker = another(look)
    run = worker.task(name="send", lane="mail", tags={"shop": "berlin"})(lambda: 1).submit()
    run_all(worker, start)

    assert run.result(10) == 1
    assert seen == [(str(run.id), "send", "mail", 0, {"shop": "berlin"}, True)]


@each_way
@pytest.mark.parametrize("where", ["enters", "leaves"])
def test_what_a_middleware_raises_counts_as_raised_by_the_handler(
    another: Make, start: Start, run_all: RunAll, where: str
) -> None:
    begun: list[int] = []

    @contextmanager
    def refuse(context: TaskContext) -> Iterator[None]:
        if where == "enters":
            raise LookupError("no such customer")
        yield
        raise LookupError("no such customer")

    worker = another(refuse)
    # The second run would succeed, were the first one not for good.
    task = worker.task(name="send", permanent=(LookupError,), retry=ONCE_MORE)(lambda: begun.append(1))
    run = task.submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="LookupError: no such customer"):
        run.result(10)
    assert len(begun) == (0 if where == "enters" else 1)


@each_way
@pytest.mark.parametrize("exit_", [Fail("no"), Delay(timedelta(hours=1)), Cancel("no")])
def test_a_middleware_sees_how_a_handler_leaves_and_changes_nothing(
    another: Make, start: Start, run_all: RunAll, exit_: BaseException
) -> None:
    measuring = Measuring()
    worker = another(measuring)

    @worker.task
    def leaves() -> None:
        raise exit_

    run = leaves.submit()
    run_all(worker, start)

    state = {Fail: PublicState.FAILED, Delay: PublicState.DELAYED, Cancel: PublicState.CANCELLED}[type(exit_)]
    in_state(worker, run, state)
    assert measuring.seen == [type(exit_).__name__]


@each_way
def test_a_failure_counts_even_where_a_middleware_swallows_it(another: Make, start: Start, run_all: RunAll) -> None:
    worker = another(lambda _: suppress(BaseException))

    @worker.task
    def broken() -> None:
        raise ValueError("boom")

    @worker.task
    def later() -> None:
        raise Delay(timedelta(hours=1))

    failing, delayed = broken.submit(), later.submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="ValueError: boom"):
        failing.result(10)
    in_state(worker, delayed, PublicState.DELAYED)


@each_way
def test_a_handler_that_never_ran_because_a_middleware_swallowed_why_has_failed(
    another: Make, start: Start, run_all: RunAll
) -> None:
    @contextmanager
    def refuse(context: TaskContext) -> Iterator[None]:
        raise LookupError("no such customer")
        yield

    worker = another(lambda _: suppress(LookupError), refuse)
    run = worker.task(name="send")(lambda: 1).submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="A middleware swallowed"):
        run.result(10)


@each_way
def test_a_function_that_returns_no_context_manager_fails_the_run(another: Make, start: Start, run_all: RunAll) -> None:
    worker = another(lambda _: None)
    run = worker.task(name="send")(lambda: 1).submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="context manager"):
        run.result(10)


# Hooks


class Telling(Middleware):
    """Keeps what it is told, with the state that the store holds at that moment."""

    def __init__(self) -> None:
        self.told: list[tuple[str, RunEvent, PublicState | None]] = []
        self.worker: Worker | None = None

    def _keep(self, name: str, event: RunEvent) -> None:
        assert self.worker is not None
        state = self.worker.engine.read_execution_state(ExecutionId.parse(event.execution_id))
        self.told.append((name, event, state))

    def on_claim(self, event: RunEvent) -> None:
        self._keep("claim", event)

    def on_success(self, event: RunEvent) -> None:
        self._keep("success", event)

    def on_failure(self, event: RunEvent) -> None:
        self._keep("failure", event)

    def on_retry(self, event: RunEvent) -> None:
        self._keep("retry", event)

    def on_suspend(self, event: RunEvent) -> None:
        self._keep("suspend", event)

    def on_lost(self, event: RunEvent) -> None:
        self._keep("lost", event)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.told]

    def only(self, name: str) -> tuple[RunEvent, PublicState | None]:
        """The one event of a name."""
        (found,) = [(event, state) for told, event, state in self.told if told == name]
        return found


@pytest.fixture
def telling() -> Telling:
    return Telling()


@pytest.fixture
def shop(another: Make, telling: Telling) -> Worker:
    """A worker whose hooks are told everything."""
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


def test_a_run_whose_retry_is_claimed_before_its_answer_is_read_is_not_told_as_lost(
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
    """Its task has one."""


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
    # Where its worker was lost it would be tried again; one time is enough to see.
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


@each_way
@pytest.mark.parametrize("raised", [ValueError("a defect"), Fail("a defect"), SystemExit("a defect")])
def test_a_failing_hook_is_logged_and_changes_nothing(
    another: Make, start: Start, run_all: RunAll, raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    class Broken(Middleware):
        def on_claim(self, _: RunEvent) -> None:
            raise raised

        def on_success(self, _: RunEvent) -> None:
            raise raised

    class Whole(Middleware):
        def on_success(self, event: RunEvent) -> None:
            told.append(event.execution_id)

    worker = another(Broken(), Whole())
    task = worker.task(name="add")(lambda a: a + 1)
    runs = task.submit_many([(1,), (2,)])
    run_all(worker, start)

    assert [run.result(10) for run in runs] == [2, 3]
    wait_until(lambda: set(told) == {str(run.id) for run in runs}, "the other one is told")
    assert f"A hook failed for add of {runs[0].id}" in caplog.text
    assert "a defect" in caplog.text


def test_a_slow_hook_delays_neither_outcomes_nor_renewals(another: Make, start: Start) -> None:
    over = threading.Event()
    starts: list[int] = []

    class Slow(Middleware):
        def on_claim(self, _: RunEvent) -> None:
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
    another: Make, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowfabric_worker.hooks.MAX_QUEUED", 1)
    monkeypatch.setattr("flowfabric_worker.runtime._JOIN", 0.3)
    over = threading.Event()

    class Stuck(Middleware):
        def on_claim(self, _: RunEvent) -> None:
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


@pytest.mark.parametrize("middleware", [(), (Middleware(),), (Measuring(),), (lambda _: None,)])
def test_no_thread_is_started_where_nobody_overrides_a_hook(another: Make, start: Start, middleware: Any) -> None:
    worker = another(*middleware)
    worker.task(len)
    start(worker)

    assert not [thread for thread in threading.enumerate() if thread.name == "flowfabric-hooks"]


def test_the_thread_of_the_hooks_ends_with_the_worker_when_all_is_told(
    another: Make, start: Start, telling: Telling
) -> None:
    telling.worker = worker = another(telling)
    runs = worker.task(name="add")(lambda a: a + 1).submit_many((number,) for number in range(100))
    runtime = start(worker)
    for run in runs:
        run.result(10)
    runtime.stop()

    assert not [thread for thread in threading.enumerate() if thread.name == "flowfabric-hooks"]
    assert sorted(telling.names) == ["claim"] * 100 + ["success"] * 100


# What is refused


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        (Middleware(), r"is a collection, such as \[Timing\(\)\]"),
        (7, "is a collection"),
        ([Middleware], r"write Middleware\(\) instead of Middleware"),
        ([Telling], r"write Telling\(\) instead of Telling"),
        (["timing"], "not 'timing'"),
        ([None], "not None"),
        ([object()], "a function that returns a context manager"),
    ],
)
def test_what_is_no_middleware_is_refused_where_it_is_given(middleware: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Worker("shop", "memory://", middleware=middleware)
