"""Flows as applications write them: results as arguments, joins, outcomes and cancellation, wherever tasks run."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    Client,
    ConflictError,
    EngineTimeoutError,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionSkipped,
    Fail,
    FlowRun,
    ResultError,
    Retry,
    Worker,
    chain,
    chord,
    current,
    group,
)
from flowfabric_worker.engine.types.flows import CancelFlowStatus, FlowState
from flowfabric_worker.engine.types.states import PublicState
from tests.support.places import Place

MOMENT = datetime(2030, 1, 1, tzinfo=UTC)


@attrs.frozen
class Offer:
    """What a provider wants."""

    price: float
    until: datetime


def shop(worker: Worker) -> Any:
    """Return the tasks of a shop, which fail where they are told to."""

    @worker.task
    def offer(price: float) -> Offer:
        if price < 0:
            raise Fail(f"{price} is no price")
        return Offer(price, MOMENT)

    @worker.task
    def prices(offers: list[Offer]) -> list[float]:
        return [each.price for each in offers]

    @worker.task
    def add(*numbers: float) -> float:
        return sum(numbers)

    @worker.task
    def outcomes(offers: list[Offer | ResultError], late: int | ResultError = 0) -> list[str]:
        return [each.reason if isinstance(each, ResultError) else str(each.price) for each in offers]

    return attrs.make_class("Shop", ["offer", "prices", "add", "outcomes"])(offer, prices, add, outcomes)


def test_results_of_nodes_come_as_arguments_in_the_order_of_listing(place: Place) -> None:
    tasks = shop(place.worker)
    with place.worker.flow("compare", tags={"day": "monday"}) as flow:
        offers = [tasks.offer.node(float(price)) for price in range(10)]
        listed = tasks.prices.node(offers)
        single = tasks.prices.options(key="single").node([offers[3]])
        flow.returns([listed, [single]])
    place.start()
    run = flow.submit()

    assert run.result(20) == [[float(price) for price in range(10)], [[3.0]]]
    assert run.node(offers[1]).result(0) == Offer(1.0, MOMENT)
    assert run.node("single").result(0) == [3.0]
    assert run.state() is FlowState.COMPLETED
    described = run.describe()
    assert described is not None
    assert (described.kind, described.tags, described.node_count) == ("compare", {"day": "monday"}, 12)
    assert described.member_counts[PublicState.COMPLETED] == 12


@pytest.mark.parametrize(("parent", "child"), [("json", "msgpack"), ("msgpack", "json")])
def test_results_pass_between_codecs(place: Place, parent: str, child: str) -> None:
    @place.worker.task(codec=parent)
    def make() -> tuple[bytes, datetime]:
        return b"\0\xff", MOMENT

    @place.worker.task(codec=child)
    def take(made: tuple[bytes, datetime]) -> str:
        return f"{made!r}"

    with place.worker.flow("codecs") as flow:
        take.node(make.node())
    place.start()

    assert flow.submit().result(10) == repr((b"\0\xff", MOMENT))


def test_an_empty_fan_out_and_an_empty_flow_end_at_once(place: Place) -> None:
    tasks = shop(place.worker)
    with place.worker.flow("nothing") as nothing:
        pass
    with place.worker.flow("empty") as empty:
        chain(partial(tasks.offer.node, 1.0), group([]), tasks.prices).node()
    place.start()

    assert nothing.submit().result(10) == {}
    assert empty.submit().result(10) == []


def test_a_quorum_takes_its_successes_in_the_order_of_edges(place: Place) -> None:
    tasks = shop(place.worker)
    with place.worker.flow("quorum") as flow:
        bad, *good = (tasks.offer.node(price) for price in (-1.0, 3.0, 2.0))
        tasks.prices.options(need=2).node([bad, *good])
    place.start()

    assert flow.submit().result(10) == [3.0, 2.0]


def test_a_race_takes_the_first_success_and_cancels_the_others(place: Place) -> None:
    @place.worker.task
    def ask(provider: str) -> str:
        if provider == "broken":
            raise Fail("down")
        if provider == "slow":
            current().sleep(timedelta(hours=1))
        return provider

    @place.worker.task
    def use(answer: str, default: str = "") -> str:
        return f"used {answer}"

    with place.worker.flow("race") as flow:
        asked = [ask.options(key=provider).node(provider) for provider in ("broken", "slow", "quick")]
        use.options(need=1, others="cancel").node(asked)
    place.start()
    run = flow.submit()

    assert run.result(10) == "used quick"
    if run.node("slow").state() is not PublicState.COMPLETED:
        with pytest.raises(ExecutionCancelled):
            run.node("slow").result(10)
    assert run.state() is FlowState.COMPLETED


def test_a_join_on_all_ended_gets_values_and_failures(place: Place) -> None:
    tasks = shop(place.worker)
    with place.worker.flow("report") as flow:
        offers = [tasks.offer.node(price) for price in (1.0, -2.0, 3.0)]
        behind = tasks.prices.node([offers[1]])
        report = tasks.outcomes.options(need="ended", after=behind).node(offers)
    place.start()
    run = flow.submit()

    assert run.node(report).result(10) == ["1.0", "-2.0 is no price", "3.0"]
    with pytest.raises(ExecutionSkipped):
        run.node(behind).result(0)
    with pytest.raises(ExecutionFailed, match=r"the node 'offer-2': -2\.0 is no price"):
        run.result(10)
    assert run.state() is FlowState.FAILED


@pytest.mark.parametrize("shape", ["chain", "groups", "several ends"])
def test_a_failure_skips_what_depends_on_it_and_names_its_node(place: Place, shape: str) -> None:
    tasks = shop(place.worker)
    bad = partial(tasks.offer.options(key="bad").node, -1.0)
    with place.worker.flow(shape) as flow:
        if shape == "chain":
            chain(bad, lambda offer: tasks.prices.node([offer]), place.worker.task(name="last")(len)).node()
        elif shape == "groups":
            chain(group(partial(tasks.offer.node, 1.0), bad), group(tasks.prices, tasks.prices)).node()
        else:
            tasks.prices.node([tasks.offer.node(1.0)])
            tasks.prices.node([bad()])
    place.start()
    run = flow.submit()

    with pytest.raises(ExecutionFailed, match=r"the node 'bad': -1\.0 is no price") as failure:
        run.result(10)
    assert failure.value.execution_id == run.node("bad").id
    with pytest.raises(ExecutionSkipped):
        run.node("prices-2" if shape != "chain" else "prices").result(10)


def test_a_retry_of_a_parent_delays_its_children_and_skips_none(place: Place) -> None:
    @place.worker.task
    def stumble() -> int:
        if current().retry_count < 2:
            raise Retry(after=timedelta(milliseconds=10))
        return 7

    @place.worker.task
    def double(number: int) -> int:
        return 2 * number

    with place.worker.flow("retried") as flow:
        double.options(others="cancel").node(stumble.node())
    place.start()

    assert flow.submit().result(10) == 14


def test_compositions_nest(place: Place) -> None:
    tasks = shop(place.worker)
    a, b = (partial(tasks.offer.node, price) for price in (1.0, 2.0))

    @place.worker.task
    def total(numbers: list[float]) -> float:
        return sum(numbers)

    with place.worker.flow("nested") as flow:
        flow.returns(chord(group(a, b), group(chain(tasks.prices, total), tasks.prices)).node())
    place.start()

    assert flow.submit().result(10) == [3.0, [1.0, 2.0]]


def plain_value(plan: Any, given: list[Any]) -> Any:
    """Return what a plan gives when it is evaluated in plain Python."""
    kind, parts = plan
    if kind == "task":
        return [parts, given]
    if kind == "chain":
        for part in parts:
            given = [plain_value(part, given)]
        return given[0]
    return [plain_value(part, given) for part in parts]


def part_of(plan: Any, task: Any) -> Any:
    kind, parts = plan
    if kind == "task":
        return lambda *given: task.node(parts, list(given))
    composed = [part_of(each, task) for each in parts]
    return chain(*composed) if kind == "chain" else group(composed)


def random_plan(rng: random.Random, depth: int) -> Any:
    kind = rng.choice(["task", "chain", "group"]) if depth else "task"
    if kind == "task":
        return "task", rng.randrange(100)
    least = 1 if kind == "chain" else 0
    return kind, [random_plan(rng, depth - 1) for _ in range(rng.randint(least, 3))]


@pytest.mark.parametrize("seed", range(8))
def test_random_nestings_give_what_plain_python_gives(worker: Worker, seed: int) -> None:
    @worker.task
    def note(number: int, given: list[Any]) -> list[Any]:
        return [number, given]

    plan = random_plan(random.Random(seed), 4)
    with worker.flow("random") as flow:
        flow.returns(part_of(plan, note).node() if plan[0] != "task" else part_of(plan, note)())
    run = flow.submit()
    worker.run_until_idle()

    assert run.result(1) == plain_value(plan, [])


# Keys, handles and cancellation


def test_a_flow_under_a_key_is_submitted_once(either: Worker) -> None:
    tasks = shop(either)

    def submitted(price: float) -> FlowRun:
        with either.flow("keyed", key="monday") as flow:
            tasks.offer.node(price)
        return flow.submit()

    first, again = submitted(1.0), submitted(1.0)

    assert (first.created, again.created) == (True, False)
    assert first.id == again.id
    assert first.node("offer").id == again.node("offer").id
    with pytest.raises(ConflictError):
        submitted(2.0)


def test_a_client_submits_and_reopens_flows(either: Worker) -> None:
    shop(either)
    either.publish()
    assert either.url is not None
    with Client(either.url) as client:
        with client.flow("remote") as flow:
            offers = [client.node("shop.offer", [price]) for price in (1.0, 2.0)]
            client.node("prices", [offers])
        run = flow.submit()
        again = client.flow_run(run.id)
        either.run_until_idle()

        assert run.result(1) == again.result(1) == [1.0, 2.0]
        assert again.node("offer-2").result(0) == {"price": 2.0, "until": MOMENT.isoformat()}
        assert [each.flow_id for each in client.flows()] == [run.id]  # type: ignore[union-attr]  # none is damaged
        assert "- offer-2 (shop.offer) [completed]" in again.picture()
        with pytest.raises(KeyError, match=r"Did you mean 'offer-2'"):
            again.node("offer-3")


def test_cancelling_a_flow_cancels_its_members(either: Worker) -> None:
    tasks = shop(either)
    with either.flow("cancelled") as flow:
        tasks.prices.node([tasks.offer.node(1.0)])
    run = flow.submit()
    result = run.cancel("not needed", wait=5)

    assert (result.status, result.member_count) == (CancelFlowStatus.CANCELLED, 2)
    assert run.state() is FlowState.CANCELLED
    with pytest.raises(ExecutionCancelled, match="the node 'prices'"):
        run.result(5)
    assert either.run_until_idle() == 0


def test_waiting_for_a_flow_ends_with_its_time(either: Worker) -> None:
    tasks = shop(either)
    with either.flow("slow") as flow:
        tasks.offer.node(1.0)
        tasks.offer.node(2.0)
    run = flow.submit()

    with pytest.raises(EngineTimeoutError):
        run.result(0.2)
    with pytest.raises(EngineTimeoutError):
        run.result(timedelta(0))


def test_waiting_for_a_flow_inside_a_handler_is_refused(place: Place) -> None:
    @place.worker.task
    def nothing() -> None: ...

    @place.worker.task
    def wait() -> str:
        with place.worker.flow("inner") as inner:
            nothing.node()
        try:
            inner.submit().result()
        except RuntimeError as error:
            return str(error)
        return ""

    with place.worker.flow("outer") as flow:
        wait.node()
    place.start()

    assert "would block its thread" in flow.submit().result(10)


def test_a_node_that_waits_for_a_signal_holds_its_children_back(worker: Worker) -> None:
    @worker.task
    def approve() -> str:
        return str(current().wait_for("approval", timeout=timedelta(days=1), default="none"))

    @worker.task
    def ship(answer: str) -> str:
        return f"shipped after {answer}"

    with worker.eager():
        with worker.flow("approved") as flow:
            ship.node(approve.node())
        run = flow.submit()
        assert run.node("approve").state() is PublicState.SUSPENDED
        assert run.node("ship").state() is PublicState.WAITING_CHILDREN
        # Waiting for the result moves the clock to the end of the wait.
        assert run.result() == "shipped after none"


def test_results_above_the_limit_fail_before_user_code(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    monkeypatch.setattr(worker.engine, "limits", attrs.evolve(worker.engine.limits, fan_in_bytes=100))

    @worker.task
    def text() -> str:
        return "x" * 60

    @worker.task
    def join(texts: list[str]) -> int:
        ran.append(len(texts))
        return len(texts)

    with worker.flow("wide") as flow:
        join.node([text.node(), text.node()])
    run = flow.submit()
    worker.run_until_idle()

    with pytest.raises(ExecutionFailed, match=r"fan_in_too_large: with the edge '.*' for 'texts.1.'.*at most 100"):
        run.result(1)
    assert ran == []
