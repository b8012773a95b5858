"""examples/token_budget.py does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from examples import token_budget
from flowfabric_worker import Client, Runtime, Worker, WorkerSettings
from flowfabric_worker.engine.types.budgets import BudgetStatus
from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import ValkeyServer, wait_until


@pytest.fixture
def served(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Provide the worker of the example on a real server."""
    monkeypatch.setattr(token_budget.worker, "url", f"{valkey.url}?prefix=t{uuid4().hex[:12]}")
    yield token_budget.worker
    token_budget.worker.close()


def status(client: Client) -> BudgetStatus:
    found = client.budget(token_budget.BUDGET)
    assert found is not None
    assert found.usage["tokens"] + found.reserved.get("tokens", 0) <= 3000
    return found


def test_workers_stop_at_the_limit_and_go_on_when_it_is_raised(served: Worker) -> None:
    runtime = Runtime(served, WorkerSettings(threads=4))
    with Client(served.url) as client:
        client.create_budget(token_budget.BUDGET, {"tokens": 3000})
        runtime.start()
        try:
            runs = token_budget.answer.submit_many([(f"question {number}",) for number in range(20)])

            def is_stopped() -> bool:
                states = [run.state() for run in runs]
                return (
                    not status(client).reserved
                    and states.count(PublicState.COMPLETED) + states.count(PublicState.RATE_LIMITED) == 20
                )

            wait_until(is_stopped, 20)
            assert 7 <= [run.state() for run in runs].count(PublicState.COMPLETED) <= 8
            client.update_budget(token_budget.BUDGET, {"tokens": 10_000})

            assert {run.result(20) for run in runs} == {f"question {n} is a good question." for n in range(20)}
        finally:
            runtime.stop()
