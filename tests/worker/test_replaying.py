"""A replay of a handler with steps and waits: all of it kept, forgotten, or forgotten from a name on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowfabric_worker import Client, NotFoundError, Run, StateError, ValidationError, Worker, current

worker = Worker("replays")
ran: list[str] = []
tokens: list[str] = []


def note(name: str) -> str:
    ran.append(name)
    return f"{name} {len(ran)}"


@worker.task
def order() -> list[str]:
    before = current().step("before", note, "before")
    tokens.append(current().waitpoint("paid"))
    paid: str = current().wait_for("paid")
    after = current().step("after", note, "after")
    return [before, paid, after]


@pytest.fixture(autouse=True)
def store() -> Iterator[None]:
    ran.clear()
    tokens.clear()
    with worker.in_memory():
        yield


def answered(run: Run[list[str]], payload: str) -> list[str]:
    """Answer what a run waits for, and return its result."""
    worker.run_until_idle()
    assert run.state() == "suspended"
    with Client(worker.url) as client:
        client.signal(tokens[-1], "paid", payload)
    worker.run_until_idle()
    return run.result(0)


def test_a_replay_keeps_steps_and_answers() -> None:
    run = order.submit()
    first = answered(run, "cash")

    run.replay()
    worker.run_until_idle()

    assert run.result(0) == first == ["before 1", "cash", "after 2"]
    assert ran == ["before", "after"]


def test_a_replay_that_forgets_runs_every_step_and_waits_again() -> None:
    run = order.submit()
    answered(run, "cash")
    old = tokens[-1]

    run.replay(steps="forget")
    again = answered(run, "card")

    assert again == ["before 3", "card", "after 4"]
    assert tokens[-1] != old
    with Client(worker.url) as client, pytest.raises(StateError, match="closed"):
        client.signal(old, "paid", "late")


@pytest.mark.parametrize(
    ("name", "waits", "result"),
    [
        ("before", True, ["before 3", "card", "after 4"]),
        ("paid", True, ["before 1", "card", "after 3"]),
        ("after", False, ["before 1", "cash", "after 3"]),
    ],
)
def test_a_replay_from_a_step_or_a_wait_keeps_what_came_before(name: str, waits: bool, result: list[str]) -> None:
    run = order.submit()
    answered(run, "cash")

    with Client(worker.url) as client:
        client.replay(run.id, from_step=name)
    if waits:
        again = answered(run, "card")
    else:
        worker.run_until_idle()
        again = run.result(0)

    assert again == result


def test_a_replay_names_what_it_cannot_do() -> None:
    run = order.submit()
    answered(run, "cash")

    with pytest.raises(NotFoundError, match="no such step"):
        run.replay(from_step="never")
    with pytest.raises(ValidationError, match="keep, forget"):
        run.replay(steps="some")
    assert run.state() == "completed"
