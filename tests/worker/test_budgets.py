"""Budgets in handlers: what they use, reserve and settle, and how they stop and go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from flowfabric_worker import Client, Worker, current
from flowfabric_worker.engine.types.budgets import BudgetStatus
from flowfabric_worker.engine.types.states import PublicState


@pytest.fixture
def client(worker: Worker) -> Iterator[Client]:
    """Provide a client on the worker's store."""
    with Client(worker.url) as client:
        yield client


def status(client: Client) -> BudgetStatus:
    found = client.budget("team")
    assert found is not None
    return found


def test_use_counts_once_per_attempt_and_place_against_all_budgets(worker: Worker, client: Client) -> None:
    client.create_budget("team", {"tokens": 100})
    client.create_budget("year", {"tokens": 1000})

    @worker.task(budgets=("team", "year"))
    def ask() -> None:
        current().use(tokens=30)
        current().use("team", tokens=5, calls=1)
        # The handler runs again from its start after the sleep, in the same attempt.
        current().sleep(timedelta(milliseconds=1))

    run = ask.submit()
    worker.run_until_idle()
    worker.engine.set_clock(datetime.now(UTC) + timedelta(seconds=1))
    worker.run_until_idle()

    assert run.state() is PublicState.COMPLETED
    assert status(client).usage == {"tokens": 35, "calls": 1}
    year = client.budget("year")
    assert year is not None
    assert year.usage == {"tokens": 30}


def test_a_handler_above_the_limit_is_blocked_and_goes_on_after_a_reset(worker: Worker, client: Client) -> None:
    client.create_budget("team", {"tokens": 100})
    ended = []

    @worker.task(budgets=["team"])
    def ask(amount: int) -> int:
        current().use(tokens=amount)
        ended.append(amount)
        return amount

    first, second = ask.submit(60), ask.submit(50)
    worker.run_until_idle()

    assert ended == [60]
    assert second.state() is PublicState.RATE_LIMITED
    client.reset_budget("team")
    worker.run_until_idle()
    assert (first.result(1), second.result(1)) == (60, 50)
    info = worker.engine.read_execution_info(second.id)
    assert info is not None
    assert info.retry_count == 0


def test_a_reservation_settles_what_was_used_and_nothing_on_an_error(worker: Worker, client: Client) -> None:
    client.create_budget("team", {"tokens": 100})
    seen = []

    @worker.task(budgets=["team"])
    def ask() -> None:
        with current().reserve(tokens=40) as reservation:
            seen.append(status(client).reserved)
            reservation.settle(tokens=25)
        with current().reserve(tokens=10):
            pass
        with pytest.raises(ValueError, match="no answer"), current().reserve(tokens=60):
            raise ValueError("no answer")

    ask.submit()
    worker.run_until_idle()

    assert seen == [{"tokens": 40}]
    assert (status(client).usage, status(client).reserved) == ({"tokens": 35}, {})


def test_passing_a_soft_limit_is_logged_once(worker: Worker, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.create_budget("team", {"tokens": 100}, soft={"tokens": 50})

    @worker.task(budgets=["team"])
    def ask() -> None:
        for _ in range(4):
            current().use(tokens=20)

    with caplog.at_level(logging.WARNING):
        ask.submit()
        worker.run_until_idle()

    told = [record.getMessage() for record in caplog.records if "above its limit" in record.getMessage()]
    assert told == ["budget 'team' is above its limit of tokens: 60 of 50"]


def test_a_plain_call_uses_no_budget() -> None:
    worker = Worker("shop", "memory://plain")

    @worker.task(budgets=["team"])
    def ask() -> int:
        current().use(tokens=30)
        with current().reserve(tokens=5) as reservation:
            reservation.settle(tokens=4)
        return 1

    assert ask() == 1
