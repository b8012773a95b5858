"""Hooks: what middleware is told of each run, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Cancel,
    Delay,
    Middleware,
    Retry,
    RetryPolicy,
    Run,
    UnavailableError,
    Worker,
    current,
)
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.states import PublicState
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
