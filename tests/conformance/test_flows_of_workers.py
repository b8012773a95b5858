"""Flows and children as applications write them, on every store."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from flowfabric_worker import ExecutionFailed, Fail, ResultError, Worker, current
from flowfabric_worker.engine.types.flows import FlowState


@pytest.fixture
def worker(store_url: str) -> Iterator[Worker]:
    """Provide a worker on an empty store that was prepared for tests."""
    worker = Worker("shop", store_url)
    worker.engine.prepare(testing=True)
    yield worker
    worker.close()


@attrs.frozen
class Offer:
    """A result with fields."""

    price: int


def test_results_pass_through_a_flow_and_failures_to_a_join_of_all_ended(worker: Worker) -> None:
    """Run a join that knows which of its parents succeeded."""

    @worker.task
    def offer(price: int) -> Offer:
        if price < 0:
            raise Fail("no price")
        return Offer(price)

    @worker.task
    def cheapest(offers: list[Offer]) -> int:
        return min(each.price for each in offers)

    @worker.task
    def report(offers: list[Offer | ResultError], best: int | ResultError) -> list[str]:
        return [each.reason if isinstance(each, ResultError) else str(each.price) for each in offers] + [str(best)]

    with worker.flow("offers") as flow:
        offers = [offer.node(price) for price in (3, -1, 2)]
        best = cheapest.options(need=2).node(offers)
        told = report.options(need="ended").node(offers, best)
    run = flow.submit()
    worker.run_until_idle()

    assert run.node(told).result(5) == ["3", "no price", "2", "2"]
    with pytest.raises(ExecutionFailed, match="the node 'offer-2': no price"):
        run.result(5)
    assert run.state() is FlowState.FAILED
    assert "- offer-2 (shop.offer) [failed]" in run.picture()


def test_a_parent_gathers_children_that_have_children(worker: Worker) -> None:
    @worker.task
    def nest(depth: int) -> int:
        if depth == 0:
            return 1
        children = [current().spawn(f"child {number}", nest, depth - 1) for number in range(2)]
        return sum(current().gather(*children))

    run = nest.submit(3)
    worker.run_until_idle()

    assert run.result(5) == 8
