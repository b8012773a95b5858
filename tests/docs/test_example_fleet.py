"""examples/fleet.py does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from examples.fleet import export, geocode, worker
from flowfabric_worker import Client, Worker
from flowfabric_worker.testing import Clock


@pytest.fixture
def flowfabric() -> Iterator[Worker]:
    with worker.in_memory():
        yield worker


@pytest.fixture
def clock(flowfabric: Worker) -> Clock:
    return Clock(flowfabric)


def test_calls_above_the_rate_wait_until_the_window_has_moved(flowfabric: Worker, clock: Clock) -> None:
    runs = geocode.submit_many((f"street {number}",) for number in range(25))
    finished = []
    for _ in range(3):
        flowfabric.run_until_idle()
        finished.append(sum(run.state() == "completed" for run in runs))
        clock.move(timedelta(seconds=1))

    assert finished == [10, 20, 25]
    assert {run.result(0) for run in runs} > {runs[0].result(0)}


def test_each_customer_has_a_rate_of_its_own(flowfabric: Worker, clock: Clock) -> None:
    runs = [export.submit(customer, ["street 1"]) for _ in range(4) for customer in ("acme", "beta")]

    flowfabric.run_until_idle()

    assert [run.state() for run in runs] == [*["completed"] * 6, *["rate_limited"] * 2]
    with Client(flowfabric.url) as client:
        explained = client.explain(runs[-1].id)
    assert explained is None or "task:fleet.export:beta" in explained.text
    clock.move(timedelta(minutes=1))
    flowfabric.run_until_idle()
    assert {run.state() for run in runs} == {"completed"}
