"""examples/research.py does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from examples import research
from flowfabric_worker import Client, Runtime, Worker, WorkerSettings
from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import ValkeyServer, wait_until

ANSWER = "the Alps (climate, towns (Bern, Chur), lakes)"


@pytest.fixture
def served(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Provide the worker of the example on a real server."""
    monkeypatch.setattr(research.worker, "url", f"{valkey.url}?prefix=t{uuid4().hex[:12]}")
    yield research.worker
    research.worker.close()


def test_sub_agents_stop_at_the_budget_of_the_agent_and_go_on(
    served: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = Runtime(served, WorkerSettings(threads=4))
    with Client(served.url) as client:

        def counted() -> tuple[int, int]:
            status = client.budget(research.BUDGET)
            assert status is not None
            return status.usage["tokens"], status.reserved.get("tokens", 0)

        client.create_budget(research.BUDGET, {"tokens": 1500}, soft={"tokens": 1000})
        run = research.agent.options(budgets=[research.BUDGET]).submit("the Alps")
        runtime.start()
        try:
            wait_until(lambda: counted() == (1320, 0), "four answers are paid for", 60)
            wait_until(lambda: run.state() is PublicState.WAITING_CHILDREN, "the agent waits for sub-agents", 60)
            client.update_budget(research.BUDGET, {"tokens": 10_000}, soft={"tokens": 9_000})

            assert run.result(60) == ANSWER
            assert counted() == (2640, 0)
        finally:
            runtime.stop()
    assert capsys.readouterr().out.count("warning: budget 'research' is above its limit of tokens: 1320 of 1000") == 1
