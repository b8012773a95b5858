"""Tasks as a typed application writes them. mypy reads this file and must agree with every line of it.

An error that is expected is ignored by its name; mypy complains about an `ignore` that ignores nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import Any, assert_type

from flowfabric_worker import (
    AttemptBegan,
    Call,
    Child,
    FlowRun,
    Node,
    ResultError,
    Run,
    StreamItem,
    StreamValue,
    Submission,
    Task,
    ValuesDropped,
    Worker,
    current,
    step,
)

worker = Worker("shop")


@worker.task
def price(order: int, country: str = "de") -> float:
    """Return a task without options."""
    return 0.25 * order * len(country)


@worker.task(lane="mail", priority=3)
def receipt(order: int, *, to: str) -> list[str]:
    """Return a task with options."""
    return [f"{order}: {to}"]


@worker.task
def words(text: str) -> Generator[str, None, int]:
    """Return a generator with a result."""
    yield from text.split()
    return len(text)


@worker.task(lane="mail")
def numbers(most: int) -> Iterator[int]:
    """Return a generator without a result."""
    yield from range(most)


@worker.task
def pairs(most: int) -> Iterable[tuple[int, int]]:
    """Return a generator that is annotated as an iterable."""
    for number in range(most):
        yield number, number


@step("charge")
def charge(order: int, *, currency: str = "CHF") -> float:
    """Return the result of a step."""
    return 0.25 * order * len(currency)


def streams() -> None:
    """Use the streams of generators, with the types that must come out."""
    assert_type(words.submit("a b").result(), int)
    assert_type(numbers.submit(3).result(), Any)
    assert_type(list(words("a b")), list[str])
    assert_type(next(words.submit("a b").stream()), StreamItem[str])
    assert_type(next(pairs.submit(3).stream()), StreamItem[tuple[int, int]])
    assert_type(next(price.submit(7).stream()), StreamItem[Any])
    for item in numbers.options(priority=3).submit(3).stream(timeout=5):
        match item:
            case StreamValue(value):
                assert_type(value, int)
            case AttemptBegan(attempt) | ValuesDropped(attempt):
                assert_type(attempt, int)


def flows() -> None:
    """Build a flow, with the types that must come out."""
    with worker.flow("prices") as flow:
        nodes = [price.node(number) for number in range(3)]
        assert_type(nodes, list[Node[float]])
        best = receipt.options(need=2, others="cancel").node(7, to="a@b.c")
        assert_type(best, Node[list[str]])
        flow.returns([best, nodes])
    run = flow.submit()
    assert_type(run, FlowRun)
    assert_type(run.node(best), Run[list[str]])
    assert_type(run.node("price").result(), Any)
    assert_type(flow.picture("svg"), str)


def children() -> None:
    """Spawn and gather children, with the types that must come out."""
    first = current().spawn("first", price, 7, country="fr")
    assert_type(first, Child[float])
    second = current().spawn("second", receipt.options(detached=True), 7, to="a@b.c")
    assert_type(second, Child[list[str]])
    assert_type(current().gather(first, first), list[float])
    assert_type(current().gather(second, settle=True), list[list[str] | ResultError])


def right() -> None:
    """Use what must be accepted, with the types that must come out."""
    assert_type(price(7), float)
    assert_type(price.submit(7, country="fr"), Run[float])
    assert_type(price.submit(7).result(), float)
    assert_type(receipt(7, to="a@b.c"), list[str])
    assert_type(receipt.submit(7, to="a@b.c").result(timeout=5), list[str])
    assert_type(receipt.options(priority=9).submit(7, to="a@b.c"), Run[list[str]])
    assert_type(price.submit_many([(1, "fr"), (2,)]), list[Run[float]])
    assert_type(price.submit_many([Call(1, "fr")]), list[Run[float]])
    assert_type(price.run("{fp:0}:0191d0a4-0000-7000-8000-000000000000").result(), float)
    assert_type(current().step("price", price, 7), float)
    assert_type(step("price", price, 7, country="fr"), float)
    assert_type(charge(7, currency="EUR"), float)
    assert_type(current().wait_for(["left", "right"], need=1), dict[str, Any])
    assert_type(current().waitpoint("left"), str)
    task: Task[[int, str], float] = worker.task(lambda order, country: float(order) + len(country))
    submission: Submission[[int, str], float] = task.options(lane="mail")
    submission.submit(1, "de")


def wrong() -> None:
    """Use what must be an error."""
    price("seven")  # type: ignore[arg-type]
    price.submit("seven")  # type: ignore[arg-type]
    price.submit()  # type: ignore[call-arg]
    price.submit(7, land="fr")  # type: ignore[call-arg]
    receipt.submit(7, "a@b.c")  # type: ignore[call-arg]
    receipt.options(priority=9).submit(7)  # type: ignore[call-arg]
    current().step("price", price, "seven")  # type: ignore[call-overload]
    charge("seven")  # type: ignore[arg-type]
    assert_type(price.submit(7).result(), str)  # type: ignore[assert-type]
