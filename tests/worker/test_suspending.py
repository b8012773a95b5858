"""Handlers that are left for a wait or raise a Suspend, and what runs around that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Count,
    CountKind,
    DurableCallError,
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    FailureClass,
    Middleware,
    RetryPolicy,
    Single,
    StreamValue,
    Suspend,
    TimeoutBehavior,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.mailbox import Mailbox
from tests.support.observation import ended, in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Start

SHORT = timedelta(milliseconds=150)
LONG = timedelta(minutes=10)
TWICE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(milliseconds=1))


# W9: a failure after a resume


def test_a_retry_after_a_resume_passes_the_wait_without_asking(
    either: Worker, mailbox: Mailbox, start: Start, times: Iterator[int]
) -> None:
    seen: list[tuple[int, list[str]]] = []

    @either.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=timedelta(milliseconds=1)))
    def pay() -> None:
        mailbox.post(current().waitpoint("approval"))
        current().wait_for("approval")
        seen.append((current().attempt, [each.id for each in current().signals]))
        raise OSError(f"run {next(times)}")

    start(either)
    run = pay.submit()
    mailbox.approve(mailbox.take(), True)
    info = ended(either, run)

    assert [attempt for attempt, _ in seen] == [0, 1]
    assert seen[0][1] == seen[1][1]
    assert info.error == "OSError: run 2"
    assert either.engine.list_pending_waitpoints(run.id).waitpoints == ()


# W10: code that catches everything


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_wait_that_the_handler_swallows_still_suspends_it(
    either: Worker, mailbox: Mailbox, start: Start, caplog: pytest.LogCaptureFixture, caught: type[BaseException]
) -> None:
    closed: list[str] = []

    @either.task(retry=TWICE)
    def careless() -> str:
        mailbox.post(current().waitpoint("x"))
        try:
            current().wait_for("x", timeout=LONG)
        except caught:
            return "fallback"
        finally:
            closed.append(current().kind)
        return "waited"

    start(either)
    run = careless.submit()
    token = mailbox.take()
    info = in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "x")

    assert run.result(10) == "waited"
    assert closed == ["fresh", "resumed"]
    assert (info.retry_count, "Traceback" in caplog.text) == (0, False)
    if caught is BaseException:
        wait_until(lambda: f"careless of {run.id.plain} caught the Suspend" in caplog.text, "it is logged")


@pytest.mark.parametrize("call", ["step", "sleep", "wait_for"])
def test_a_durable_call_while_a_wait_leaves_the_handler_is_an_error(
    either: Worker, mailbox: Mailbox, start: Start, call: str
) -> None:
    told: list[str] = []
    calls = {
        "step": lambda: current().step("clean up", int, "1"),
        "sleep": lambda: current().sleep(SHORT),
        "wait_for": lambda: current().wait_for("y"),
    }

    @either.task
    def careless() -> None:
        mailbox.post(current().waitpoint("x"))
        try:
            current().wait_for("x")
        finally:
            if current().kind == "fresh":
                try:
                    calls[call]()
                except DurableCallError as error:
                    told.append(str(error))

    start(either)
    run = careless.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "x")
    run.result(10)

    assert len(told) == 1
    assert "while the handler is being left (Suspend)" in told[0]


def test_the_lease_is_held_while_the_handler_is_left(either: Worker, mailbox: Mailbox, start: Start) -> None:
    states: list[PublicState | None] = []

    @either.task
    def tidy() -> None:
        token = current().waitpoint("x")
        try:
            current().wait_for("x")
        finally:
            if current().kind == "fresh":
                mailbox.signal(token, "x")
            states.append(run.state())

    run = tidy.submit()
    start(either)
    run.result(10)

    assert states == [PublicState.ACTIVE] * 2


# Suspend


def test_a_handler_that_raises_suspend_runs_again_with_the_signals(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def vote() -> list[str]:
        if not current().signals:
            mailbox.post(current().waitpoint("votes"))
            raise Suspend(Count(n=2, kind=CountKind.SOURCES, waitpoint_keys=["votes"]), timeout=LONG)
        return [each.by for each in current().signals]

    start(either)
    run = vote.submit()
    token = mailbox.take()
    for by in ("ann", "ann", "bob"):
        mailbox.signal(token, "yes", by=by)

    assert run.result(10) == ["ann", "ann", "bob"]


def test_a_handler_that_raises_suspend_for_what_is_there_runs_again(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def vote() -> list[str]:
        if not current().signals:
            mailbox.signal(current().waitpoint("votes"), "yes", by="ann")
            raise Suspend(Single("votes"))
        return [each.by for each in current().signals]

    start(either)

    assert vote.submit().result(10) == ["ann"]


def test_a_suspend_of_a_users_class_is_read_by_the_thread_of_its_handler(either: Worker, start: Start) -> None:
    readers: set[str] = set()

    class OwnSuspend(Suspend):
        @property
        def request(self) -> Any:
            readers.add(threading.current_thread().name)
            return Suspend(Single("x"), timeout=SHORT).request

        @request.setter
        def request(self, _: Any) -> None: ...

    @either.task
    def wait() -> None:
        readers.add(threading.current_thread().name)
        raise OwnSuspend(Single("x"))

    start(either, threads=1)

    with pytest.raises(ExecutionFailed, match="suspension_timeout"):
        wait.submit().result(10)
    assert len(readers) == 1


@pytest.mark.parametrize(
    ("behavior", "error"),
    [
        (TimeoutBehavior.FAIL, ExecutionFailed),
        (TimeoutBehavior.CANCEL, ExecutionCancelled),
        (TimeoutBehavior.EXPIRE, ExecutionExpired),
    ],
)
def test_the_time_of_a_suspend_ends_the_execution_as_it_says(
    either: Worker, start: Start, behavior: TimeoutBehavior, error: type[Exception]
) -> None:
    @either.task
    def wait() -> None:
        raise Suspend(Single("x"), timeout=SHORT, on_timeout=behavior)

    start(either)

    with pytest.raises(error, match="suspension_timeout"):
        wait.submit().result(10)


def test_a_suspend_on_what_is_answered_fails_the_execution_for_good(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task(retry=TWICE)
    def wait() -> None:
        mailbox.post(current().waitpoint("x"))
        current().wait_for("x")
        raise Suspend(Single("x"))

    start(either)
    run = wait.submit()
    mailbox.signal(mailbox.take(), "x")
    info = ended(either, run)

    assert (info.retry_count, info.error_class) == (0, FailureClass.PERMANENT)
    assert info.error is not None
    assert info.error.startswith("DurableCallError: The waitpoint is in use or closed")


# The life of an execution


def test_a_run_that_was_cancelled_in_a_wait_waits_again_in_a_replay(
    either: Worker, mailbox: Mailbox, start: Start
) -> None:
    @either.task
    def pay() -> int:
        mailbox.post(current().waitpoint("paid"))
        amount: int = current().wait_for("paid", type=int)
        return amount

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    run.cancel()
    run.replay()

    assert mailbox.take() == token
    mailbox.signal(token, "paid", 7)
    assert run.result(10) == 7


# What is around a wait


class Telling(Middleware):
    """Note which hooks are called."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_suspend(self, event: AttemptEvent) -> None:
        self.told.append(f"suspend {event.error}".rstrip())

    def on_failure(self, event: AttemptEvent) -> None:
        self.told.append(f"failure {event.error}".rstrip())

    def on_retry(self, event: AttemptEvent) -> None:
        self.told.append(f"retry {event.error}".rstrip())

    def on_success(self, event: AttemptEvent) -> None:
        self.told.append(f"success {event.error}".rstrip())


def test_a_wait_is_told_to_the_hook_of_suspensions_alone(another: Callable[..., Worker], start: Start) -> None:
    telling = Telling()
    worker = another(telling)
    task = worker.task(name="wait")(lambda: current().wait_for("x", timeout=SHORT, default=None))
    runtime = start(worker)
    task.submit().result(10)
    runtime.stop(timedelta(seconds=5))

    assert telling.told == ["suspend", "success"]


def test_a_generator_that_waits_does_not_repeat_what_it_yielded(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task
    def say() -> Generator[str, None, str]:
        yield "before"
        mailbox.post(current().waitpoint("go"))
        yield f"go: {current().wait_for('go')}"
        return "after"

    start(either)
    run = say.submit()
    mailbox.signal(mailbox.take(), "go", 7)

    assert run.result(10) == "after"
    assert [item.value for item in run.stream() if isinstance(item, StreamValue)] == ["before", "go: 7"]


def test_a_task_that_may_be_interrupted_waits_too(either: Worker, mailbox: Mailbox, start: Start) -> None:
    @either.task(interrupt=True, timeout=LONG)
    def pay() -> list[Any]:
        mailbox.post(current().waitpoint("paid"))
        return [current().wait_for("paid")]

    start(either)
    run = pay.submit()
    token = mailbox.take()
    in_state(either, run, PublicState.SUSPENDED)
    mailbox.signal(token, "paid", 7)

    assert run.result(10) == [7]
