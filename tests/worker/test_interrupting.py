"""Interrupting handlers: it strikes the handler's own code, and never anything else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import Interrupted, Run, Runtime, UnavailableError, ValidationError, Worker, current
from flowfabric_worker._runtime.interruption import Interruption
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import wait_until
from tests.worker.conftest import Start

SECOND = timedelta(seconds=1)
HALF = timedelta(seconds=0.5)


@pytest.fixture
def begun() -> threading.Event:
    return threading.Event()


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """End every handler that still runs when the test ends."""
    over = threading.Event()
    yield over
    over.set()


def spin(over: threading.Event) -> None:
    """Loop without ever asking whether to go on."""
    while not over.is_set():
        pass


# Causes of interruptions


def by_cancel(run: Run[Any], worker: Worker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    run.cancel()


def by_timeout(run: Run[Any], worker: Worker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do nothing: the task has a timeout."""


def by_lost_lease(run: Run[Any], worker: Worker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(handles: Any) -> Any:
        raise UnavailableError("renew_many")

    monkeypatch.setattr(worker.engine, "renew_many", away)


def by_stop(run: Run[Any], worker: Worker, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.stop(timedelta())


Lose = Callable[[Run[Any], Worker, Runtime, pytest.MonkeyPatch], None]
each_loss = pytest.mark.parametrize("lose", [by_cancel, by_timeout, by_lost_lease, by_stop])


@each_loss
def test_a_handler_that_loops_is_interrupted_where_its_task_wants_that(
    served: Worker,
    start: Start,
    begun: threading.Event,
    over: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lose: Lose,
) -> None:
    caught: list[str] = []

    @served.task(interrupt=True, max_reclaims=0, timeout=HALF if lose is by_timeout else None)
    def endless() -> None:
        begun.set()
        try:
            spin(over)
        except Interrupted as interrupted:
            caught.append(interrupted.reason)
            raise

    runtime = start(served, lease=SECOND)
    run = endless.submit()
    assert begun.wait(10)
    lose(run, served, runtime, monkeypatch)

    wait_until(lambda: caught, "it is interrupted")
    assert not over.is_set()
    wait_until(lambda: "was interrupted" in caplog.text, "its outcome is dropped")


@each_loss
def test_a_handler_is_not_interrupted_where_its_task_does_not_want_that(
    served: Worker,
    start: Start,
    begun: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    lose: Lose,
) -> None:
    ended: list[str] = []

    @served.task(max_reclaims=0, timeout=HALF if lose is by_timeout else None)
    def deaf() -> None:
        begun.set()
        assert current().cancelled.wait(10)
        # An interruption would strike within these steps.
        told_at = time.monotonic()
        while time.monotonic() < told_at + 0.2:
            pass
        ended.append("by itself")

    runtime = start(served, lease=SECOND)
    run = deaf.submit()
    assert begun.wait(10)
    lose(run, served, runtime, monkeypatch)

    wait_until(lambda: ended == ["by itself"], "it ends when it likes")


def test_an_interrupted_thread_takes_the_next_execution_unharmed(
    served: Worker, start: Start, over: threading.Event, begun: threading.Event
) -> None:
    threads: list[int] = []

    @served.task(interrupt=True)
    def endless() -> None:
        threads.append(threading.get_ident())
        begun.set()
        spin(over)

    add = served.task(name="add", interrupt=True)(lambda a: (threads.append(threading.get_ident()), a + 1)[1])
    start(served, threads=1)
    first = endless.submit()
    assert begun.wait(10)
    first.cancel()

    assert [add.submit(number).result(10) for number in range(20)] == list(range(1, 21))
    assert len(set(threads)) == 1


# Reactions of handlers


def test_an_interrupted_handler_cleans_up(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event
) -> None:
    cleaned: list[str] = []

    @served.task(interrupt=True)
    def careful() -> None:
        try:
            try:
                begun.set()
                spin(over)
            except (ValueError, RuntimeError):
                cleaned.append("as a failure")
            except BaseException as error:
                cleaned.append(f"except {type(error).__name__}")
                raise
        finally:
            # Long enough that a second blow would strike here.
            time.sleep(0.2)
            cleaned.append("finally")

    start(served)
    run = careful.submit()
    assert begun.wait(10)
    run.cancel()

    wait_until(lambda: len(cleaned) == 2, "it has cleaned up")
    assert cleaned == ["except Interrupted", "finally"]


def test_an_interruption_is_raised_once_and_a_later_result_is_dropped(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caught: list[int] = []

    @served.task(interrupt=True)
    def stubborn() -> str:
        begun.set()
        while len(caught) < 2 and not over.is_set():
            try:
                spin(over)
            except Interrupted:
                caught.append(1)
        return "late"

    start(served)
    run = stubborn.submit()
    assert begun.wait(10)
    run.cancel()
    wait_until(lambda: caught, "it is interrupted")
    over.set()

    wait_until(lambda: "ended (complete), which does not count" in caplog.text, "its result is dropped")
    assert caught == [1]
    assert run.state() is PublicState.CANCELLED


def test_a_shield_holds_the_interruption_back_until_its_block_ends(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event
) -> None:
    steps: list[str] = []

    @served.task(interrupt=True)
    def write() -> None:
        context = current()
        with context.shield():
            with context.shield():
                begun.set()
                assert context.cancelled.wait(10)
                steps.append("written")
            steps.append("renamed")
        steps.append("never")

    start(served)
    run = write.submit()
    assert begun.wait(10)
    run.cancel()

    wait_until(lambda: len(steps) == 2, "the block ends")
    wait_until(lambda: not served_runs(served, run), "the handler ends")
    assert steps == ["written", "renamed"]


def served_runs(worker: Worker, run: Run[Any]) -> bool:
    """Return True if a handler thread still runs the code of a test."""
    frames = sys._current_frames().values()
    return any(frame.f_code.co_filename == __file__ and frame.f_code.co_name == "write" for frame in frames)


def test_a_shield_whose_block_fails_interrupts_all_the_same(
    served: Worker, start: Start, begun: threading.Event, over: threading.Event
) -> None:
    seen: list[str] = []

    @served.task(interrupt=True)
    def careless() -> None:
        try:
            with current().shield():
                begun.set()
                assert current().cancelled.wait(10)
                raise ValueError("the disk is full")
        except ValueError:
            seen.append("goes on as if nothing had been wanted")
            spin(over)
        except Interrupted as interrupted:
            seen.append(type(interrupted.__context__).__name__)
            raise

    start(served)
    run = careless.submit()
    assert begun.wait(10)
    run.cancel()

    wait_until(lambda: seen, "it leaves its block")
    assert seen == ["ValueError"]


def test_a_shield_in_a_clean_up_is_not_struck_again() -> None:
    interruption = Interruption()

    def handler() -> str:
        try:
            with interruption.shield():
                interruption.interrupt()
        except Interrupted:
            with interruption.shield():
                return "cleaned up"
        return "not interrupted"

    assert interruption.run(handler) == "cleaned up"


@pytest.mark.parametrize("call", ["progress", "record_step"])
def test_a_call_of_the_engine_is_never_cut_in_half(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch, begun: threading.Event, call: str
) -> None:
    seen: list[str] = []
    original = getattr(served.engine, call)

    def slowly(*args: Any) -> Any:
        begun.set()
        assert current().cancelled.wait(10)
        # The interruption has been asked for; these steps are the engine's.
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            pass
        seen.append("sent")
        try:
            return original(*args)
        finally:
            seen.append("answered")

    monkeypatch.setattr(served.engine, call, slowly)

    @served.task(interrupt=True)
    def work() -> None:
        try:
            if call == "progress":
                current().progress(50)
            else:
                current().step("one", lambda: 1)
        except Interrupted:
            seen.append("interrupted")
            raise
        seen.append("went on")

    start(served)
    run = work.submit()
    assert begun.wait(10)
    run.cancel()

    wait_until(lambda: len(seen) >= 3, "the handler ends")
    assert seen == ["sent", "answered", "interrupted"]


def test_an_error_of_the_engine_does_not_swallow_an_interruption(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch, begun: threading.Event, over: threading.Event
) -> None:
    seen: list[str] = []

    def refuse(*_: Any) -> None:
        begun.set()
        assert current().cancelled.wait(10)
        raise ValidationError("invalid_input", "the message is too long")

    monkeypatch.setattr(served.engine, "progress", refuse)

    @served.task(interrupt=True)
    def work() -> None:
        try:
            current().progress(50)
        except EngineError:
            spin(over)
        except Interrupted:
            seen.append("interrupted")
            raise

    start(served)
    run = work.submit()
    assert begun.wait(10)
    run.cancel()

    wait_until(lambda: seen, "it is interrupted")
