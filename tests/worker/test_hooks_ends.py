"""The hook `on_ended`: it is told of every end once, with its outcome."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptEvent,
    Cancel,
    Middleware,
    RetryPolicy,
    UnavailableError,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import claim_one
from tests.support.observation import in_state
from tests.support.servers import wait_until
from tests.worker.conftest import Another, RunAll, Start, each_way

SOON = timedelta(milliseconds=1)
ONCE_MORE = RetryPolicy(max_retries=1, backoff="fixed", initial=SOON)


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
