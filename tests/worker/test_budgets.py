"""Budgets in handlers: what they use, reserve and settle, and how they stop and go on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flowfabric_worker import AttemptEvent, BudgetLimitPassed, Client, Middleware, Run, StreamValue, Worker, current
from flowfabric_worker.engine.types.budgets import BudgetStatus, OnHardLimit
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


class Telling(Middleware):
    """Keeps which hooks are called, with the budget and the reason."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, str]] = []

    def on_soft_limit(self, event: AttemptEvent) -> None:
        self.told.append(("soft limit", event.budget, event.error))

    def on_suspend(self, event: AttemptEvent) -> None:
        self.told.append(("suspend", event.budget, event.error))

    def on_failure(self, event: AttemptEvent) -> None:
        self.told.append(("failure", event.budget, event.error))

    def on_lost(self, event: AttemptEvent) -> None:
        self.told.append(("lost", event.budget, event.error))

    def on_ended(self, event: AttemptEvent) -> None:
        self.told.append((f"ended {event.outcome}", event.budget, event.error))


@pytest.fixture
def telling(worker: Worker) -> Telling:
    """Provide middleware of the worker that keeps what it is told."""
    telling = Telling()
    worker.middleware = (telling,)
    return telling


def marks_of(run: Run[Any]) -> list[tuple[str, str, int, int]]:
    """Return the limits that the stream of a run tells."""
    items = [item for item in run.stream(timeout=1) if isinstance(item, BudgetLimitPassed)]
    return [(item.budget, item.dimension, item.used, item.limit) for item in items]


def test_passing_a_soft_limit_is_told_once_in_each_period(
    worker: Worker, client: Client, telling: Telling, caplog: pytest.LogCaptureFixture
) -> None:
    client.create_budget("team", {"tokens": 1000}, soft={"tokens": 50})
    hours = itertools.count(1)

    @worker.task(budgets=["team"])
    def ask(times: int) -> None:
        for _ in range(times):
            current().use(tokens=20)
            current().emit("used")
        # The handler runs again from its start after the sleep, and its uses are not counted again.
        current().sleep(timedelta(milliseconds=1))

    def asked(*times: int) -> list[list[tuple[str, str, int, int]]]:
        runs = [ask.submit(each) for each in times]
        worker.run_until_idle()
        worker.engine.set_clock(datetime.now(UTC) + timedelta(hours=next(hours)))
        worker.run_until_idle()
        assert [sum(isinstance(item, StreamValue) for item in run.stream(timeout=1)) for run in runs] == [*times]
        return [marks_of(run) for run in runs]

    mark, text = ("team", "tokens", 60, 50), "budget 'team' is above its limit of tokens: 60 of 50"
    with caplog.at_level(logging.WARNING):
        assert asked(2, 2, 1) == [[], [mark], []]
        client.reset_budget("team")
        assert asked(4) == [[mark]]

    assert [each for each in telling.told if each[0] == "soft limit"] == [("soft limit", "team", text)] * 2
    assert [record.getMessage() for record in caplog.records].count(text) == 2


def test_a_use_tells_the_dimension_that_it_takes_above_its_soft_limit(
    worker: Worker, client: Client, telling: Telling
) -> None:
    client.create_budget("team", {}, soft={"calls": 1, "tokens": 50})

    @worker.task(budgets=["team"])
    def ask() -> None:
        current().use(calls=2)
        current().use(calls=1, tokens=51)
        with current().reserve(calls=1, tokens=1):
            pass

    run = ask.submit()
    worker.run_until_idle()

    assert marks_of(run) == [("team", "calls", 2, 1), ("team", "tokens", 51, 50)]
    assert [each[2] for each in telling.told if each[0] == "soft limit"] == [
        "budget 'team' is above its limit of calls: 2 of 1",
        "budget 'team' is above its limit of tokens: 51 of 50",
    ]


@pytest.mark.parametrize("use", ["use", "reserve"])
@pytest.mark.parametrize(
    ("on_hard_limit", "hooks"),
    [("block", ["suspend"]), ("suspend", ["suspend"]), ("fail", ["failure", "ended failed"])],
)
def test_hooks_are_told_what_a_full_budget_does_to_a_run(
    worker: Worker, client: Client, telling: Telling, on_hard_limit: OnHardLimit, hooks: list[str], use: str
) -> None:
    client.create_budget("team", {"tokens": 10}, on_hard_limit=on_hard_limit)

    @worker.task(budgets=["team"])
    def ask() -> None:
        current().use(tokens=9)
        getattr(current(), use)(tokens=5)

    ask.submit()
    worker.run_until_idle()

    reason = "budget 'team' has reached its limit of tokens, 9 of 10"
    assert telling.told == [(hook, "team", reason) for hook in hooks]


def test_a_plain_call_uses_no_budget() -> None:
    worker = Worker("shop", "memory://plain")

    @worker.task(budgets=["team"])
    def ask() -> int:
        current().use(tokens=30)
        with current().reserve(tokens=5) as reservation:
            reservation.settle(tokens=4)
        return 1

    assert ask() == 1
