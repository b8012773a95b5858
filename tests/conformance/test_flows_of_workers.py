"""Flows and children as applications write them, on every store."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from flowfabric_worker import Client, ExecutionFailed, Fail, ResultError, Worker, current
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import PublicState


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


def test_children_spend_from_the_budgets_of_all_above_them_once(worker: Worker) -> None:
    def usage() -> list[int]:
        return [status.usage["tokens"] for name in ("team", "own") if (status := client.budget(name)) is not None]

    @worker.task
    def leaf(tokens: int) -> int:
        current().use(tokens=tokens)
        return tokens

    @worker.task
    def branch(tokens: int) -> int:
        return sum(current().gather(*(current().spawn(f"leaf {number}", leaf, tokens) for number in range(2))))

    @worker.task
    def root(tokens: int) -> int:
        current().use(tokens=1)
        inner = current().spawn("inner", branch.options(budgets=["own"]), tokens)
        outer = current().spawn("outer", leaf, tokens)
        return sum(current().gather(inner, outer))

    with Client(worker.url) as client:
        client.create_budget("team", {"tokens": 100})
        client.create_budget("own", {"tokens": 100})
        run = root.options(budgets=["team"]).submit(10)
        worker.run_until_idle()
        assert (run.result(5), usage()) == (30, [31, 20])

        # The leaves of a tree whose budget is full wait for it, whatever their parents' other budgets hold.
        blocked = root.options(budgets=["team"]).submit(30)
        worker.run_until_idle()
        assert blocked.state() is PublicState.WAITING_CHILDREN
        assert usage()[0] == 92
        client.update_budget("team", {"tokens": 1000})
        worker.run_until_idle()
        assert (blocked.result(5), usage()) == (90, [122, 80])
