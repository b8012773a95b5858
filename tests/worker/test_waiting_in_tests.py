"""Handlers that wait, as tests of an application run them: in place, and until nothing is due."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import Client, ExecutionExpired, Worker, current
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.testing import Clock

DAY = timedelta(days=1)


def client_of(worker: Worker) -> Client:
    assert worker.url is not None
    return Client(worker.url)


@pytest.fixture
def eager() -> Iterator[Worker]:
    """Provide a worker whose submissions run in place."""
    with Worker("shop").eager() as worker:
        yield worker


@pytest.fixture
def tokens() -> list[str]:
    """Provide where handlers hand tokens out."""
    return []


def deploying(worker: Worker, tokens: list[str], timeout: timedelta | None = None) -> Any:
    @worker.task
    def deploy(version: str) -> str:
        tokens.append(current().waitpoint("approval"))
        approval = current().wait_for("approval", timeout=timeout, default=None)
        if approval is None:
            return f"{version}: no answer"
        return f"{version}: {'deployed' if approval else approval.reason}"

    return deploy


def test_a_submission_in_place_returns_while_it_waits_and_a_signal_ends_it(eager: Worker, tokens: list[str]) -> None:
    run = deploying(eager, tokens, DAY).submit("1.2")
    assert run.state() is PublicState.SUSPENDED

    client_of(eager).approve(tokens[0], False, by="ann", reason="too early")

    assert run.result(0) == "1.2: too early"


def test_the_result_of_a_submission_in_place_lets_its_wait_time_out(eager: Worker, tokens: list[str]) -> None:
    run = deploying(eager, tokens, DAY).submit("1.2")
    began = eager.engine.server_time()

    assert run.result(0) == "1.2: no answer"
    assert DAY - timedelta(seconds=1) <= timedelta(milliseconds=eager.engine.server_time() - began) < 2 * DAY


def test_a_wait_in_place_without_a_limit_says_what_it_waits_for(eager: Worker, tokens: list[str]) -> None:
    run = deploying(eager, tokens).submit("1.2")

    with pytest.raises(RuntimeError, match="has no result yet: It waits for signals at 'approval'"):
        run.result(0)
    assert run.state() is PublicState.SUSPENDED
    eager.engine.resume_execution(run.id)
    assert run.state() is PublicState.COMPLETED


def test_a_deadline_ends_a_wait_in_place(eager: Worker, tokens: list[str]) -> None:
    run = deploying(eager, tokens).options(deadline=DAY).submit("1.2")

    with pytest.raises(ExecutionExpired):
        run.result(0)


def test_other_submissions_in_place_end_while_one_waits(eager: Worker, tokens: list[str]) -> None:
    waiting = deploying(eager, tokens, DAY).submit("1.2")
    other = eager.task(name="other")(lambda: current().sleep(timedelta(hours=1)))

    assert other.submit().state() is PublicState.COMPLETED
    assert waiting.state() is PublicState.SUSPENDED


def test_run_until_idle_stops_at_a_wait_and_goes_on_after_the_signal(tokens: list[str]) -> None:
    with Worker("shop").in_memory() as worker:
        run = deploying(worker, tokens, DAY).submit("1.2")
        assert worker.run_until_idle() == 1
        assert run.state() is PublicState.SUSPENDED

        client_of(worker).approve(tokens[0], True, by="ann")

        assert worker.run_until_idle() == 1
        assert run.result(0) == "1.2: deployed"


def test_run_until_idle_goes_on_when_the_clock_passes_the_time(tokens: list[str]) -> None:
    with Worker("shop").in_memory() as worker:
        clock = Clock(worker)
        run = deploying(worker, tokens, DAY).submit("1.2")
        worker.run_until_idle()
        clock.move(DAY - timedelta(seconds=1))
        assert worker.run_until_idle() == 0
        clock.move(timedelta(seconds=1))

        assert worker.run_until_idle() == 1
        assert run.result(0) == "1.2: no answer"
