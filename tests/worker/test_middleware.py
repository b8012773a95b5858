"""Middleware: what goes around handlers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Cancel,
    Delay,
    ExecutionFailed,
    Fail,
    Middleware,
    RetryPolicy,
    TaskContext,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Another, RunAll, Start, each_way

SOON = timedelta(milliseconds=1)
ONCE_MORE = RetryPolicy(max_retries=1, backoff="fixed", initial=SOON)


def noting(notes: list[str], name: str) -> Callable[[TaskContext], Any]:
    """Return a plain function that notes when a handler begins and ends."""

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
def test_the_first_middleware_is_the_outermost(another: Another, start: Start, run_all: RunAll) -> None:
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
def test_a_middleware_sees_the_context_of_the_run(another: Another, start: Start, run_all: RunAll) -> None:
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
    another: Another, start: Start, run_all: RunAll, where: str
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
    another: Another, start: Start, run_all: RunAll, exit_: BaseException
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
def test_a_failure_counts_even_where_a_middleware_swallows_it(another: Another, start: Start, run_all: RunAll) -> None:
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
def test_a_handler_that_a_middleware_kept_from_running_has_failed(
    another: Another, start: Start, run_all: RunAll
) -> None:
    @contextmanager
    def refuse(context: TaskContext) -> Iterator[None]:
        raise LookupError("no such customer")
        yield

    worker = another(lambda _: suppress(LookupError), refuse)
    run = worker.task(name="send")(lambda: 1).submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="A middleware suppressed"):
        run.result(10)


@each_way
def test_a_function_that_returns_no_context_manager_fails_the_run(
    another: Another, start: Start, run_all: RunAll
) -> None:
    worker = another(lambda _: None)
    run = worker.task(name="send")(lambda: 1).submit()
    run_all(worker, start)

    with pytest.raises(ExecutionFailed, match="context manager"):
        run.result(10)


# Refusals


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        (Middleware(), r"must be a collection, such as \[Timing\(\)\]"),
        (7, "must be a collection"),
        ([Middleware], r"write Middleware\(\) instead of Middleware"),
        ([Measuring], r"write Measuring\(\) instead of Measuring"),
        (["timing"], "not 'timing'"),
        ([None], "not None"),
        ([object()], "a function that returns a context manager"),
    ],
)
def test_what_is_no_middleware_is_refused_where_it_is_given(middleware: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Worker("shop", "memory://", middleware=middleware)


def busy(moment: float) -> None:
    """Run Python steps, at each of which an interruption could come."""
    until = time.monotonic() + moment
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize("where", ["enter", "exit"])
def test_an_interruption_reaches_the_handler_and_no_middleware(another: Another, start: Start, where: str) -> None:
    inside, ended = threading.Event(), threading.Event()
    notes: list[str] = []

    @contextmanager
    def transaction(context: TaskContext) -> Iterator[None]:
        if where == "enter":
            inside.set()
            assert context.cancelled.wait(10)
            busy(0.1)
        notes.append("opened")
        try:
            yield
        finally:
            if where == "exit":
                inside.set()
                assert context.cancelled.wait(10)
                busy(0.1)
            notes.append("closed")
            ended.set()

    def handler() -> None:
        notes.append("handler")

    worker = another(transaction)
    run = worker.task(name="send", interrupt=True)(handler).submit()
    start(worker, threads=1)
    assert inside.wait(10)
    run.cancel()

    assert ended.wait(10)
    assert notes == (["opened", "closed"] if where == "enter" else ["opened", "handler", "closed"])


def test_a_loss_that_the_handlers_own_thread_learns_of_is_told(
    another: Another, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Telling(Middleware):
        def on_lost(self, event: AttemptEvent) -> None:
            told.append(event.error)

    worker = another(Telling())
    begun, cancelled = threading.Event(), threading.Event()

    @worker.task(interrupt=True)
    def asking() -> None:
        begun.set()
        assert cancelled.wait(10)
        current().progress(50)

    run = asking.submit()
    start(worker)
    # The message of the store does not come: the handler is the first to hear of it.
    monkeypatch.setattr(worker.engine.listener, "_lost", [])
    assert begun.wait(10)
    run.cancel()
    cancelled.set()

    wait_until(lambda: told, "it is told")
    assert told == ["lease lost"]
