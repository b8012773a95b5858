"""Tasks as a typed application writes them. mypy reads this file and must agree with every line of it.

An error that is expected is ignored by its name; mypy complains about an `ignore` that ignores nothing.
"""

from __future__ import annotations

from typing import assert_type

from flowfabric_worker import Call, Run, Submission, Task, Worker, current

worker = Worker("shop")


@worker.task
def price(order: int, country: str = "de") -> float:
    """Return a task without options."""
    return 0.25 * order * len(country)


@worker.task(lane="mail", priority=3)
def receipt(order: int, *, to: str) -> list[str]:
    """Return a task with options."""
    return [f"{order}: {to}"]


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
    current().step("price", price, "seven")  # type: ignore[arg-type]
    assert_type(price.submit(7).result(), str)  # type: ignore[assert-type]
