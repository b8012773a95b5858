"""Generators as tasks: they emit what they yield, their result is what they return, and they are always closed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from typing import Any

import attrs
import pytest

from flowfabric_worker import (
    DurableCallError,
    ExecutionFailed,
    TaskContext,
    Worker,
    current,
)
from flowfabric_worker._tasks.local_context import LocalContext
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.streams import StreamCloseReason
from tests.support.mailbox import Mailbox
from tests.support.observation import info_of
from tests.support.places import SLOWLY, SOON, Place
from tests.support.servers import wait_until
from tests.support.streams import read_all, values_of
from tests.worker.conftest import Start

# Values and results


def test_what_a_generator_returns_is_the_result(place: Place) -> None:
    @place.worker.task
    def count() -> Generator[int, None, dict[str, int]]:
        yield 1
        yield 2
        return {"n": 2}

    place.start()
    run = count.submit()

    assert values_of(run) == [1, 2]
    assert run.result(10) == {"n": 2}


def test_a_generator_that_only_yields_has_no_result(place: Place) -> None:
    @place.worker.task
    def count(most: int) -> Iterator[int]:
        yield from range(most)

    @place.worker.task
    def nothing() -> Iterable[int]:
        yield from ()

    place.start()
    run, other = count.submit(3), nothing.submit()

    assert (values_of(run), run.result(10)) == ([0, 1, 2], None)
    assert (values_of(other), other.result(10)) == ([], None)


@attrs.frozen
class Token:
    text: str
    price: Decimal


def test_values_travel_by_the_annotation(place: Place) -> None:
    @place.worker.task
    def talk() -> Generator[Token, None, set[int]]:
        yield Token("a", Decimal("0.10"))
        current().emit(Token("b", Decimal(2)))
        return {1}

    place.start()
    run = talk.submit()

    assert values_of(run) == [Token("a", Decimal("0.10")), Token("b", Decimal(2))]
    assert run.result(10) == {1}


def test_a_generator_that_fails_keeps_what_it_yielded(place: Place) -> None:
    @place.worker.task
    def breaks() -> Iterator[int]:
        yield 1
        raise ValueError("boom")

    place.start()
    run = breaks.submit()

    assert values_of(run) == [1]
    with pytest.raises(ExecutionFailed, match="ValueError: boom"):
        run.result(10)
    assert read_all(place.worker.engine, run.id).closed_reason is StreamCloseReason.ATTEMPT_FAILURE


def test_a_generator_begins_from_the_start_in_a_retry(place: Place, times: Any) -> None:
    @place.worker.task(retry=SLOWLY)
    def write() -> Iterator[str]:
        again = next(times) > 1
        yield "a"
        yield "b"
        if not again:
            raise ValueError
        yield "c"

    place.start()

    assert values_of(write.submit()) == ["a", "b", [1], "a", "b", "c"]


def test_a_generator_that_sleeps_yields_nothing_twice(place: Place) -> None:
    left: list[str] = []

    @place.worker.task
    def nap() -> Generator[str, None, str]:
        try:
            yield "a"
            current().emit("beside")
            current().sleep(SOON)
            yield "b"
        finally:
            left.append("left")
        return "slept"

    place.start()
    run = nap.submit()

    assert values_of(run) == ["a", "beside", "b"]
    assert run.result(10) == "slept"
    assert left == ["left", "left"]


def test_a_generator_that_waits_for_a_signal_yields_nothing_twice(served: Worker, start: Start) -> None:
    mailbox, left = Mailbox(served), list[str]()

    @served.task
    def ask() -> Generator[str, None, str]:
        try:
            yield "asked"
            mailbox.post(current().waitpoint("answer"))
            answer = current().wait_for("answer", type=str)
            yield answer
        finally:
            left.append("left")
        return "answered"

    start(served)
    run = ask.submit()
    wait_until(lambda: run.state() is PublicState.SUSPENDED, "the run waits")
    assert left == ["left"]
    mailbox.signal(mailbox.take(), "answer", "yes")

    assert values_of(run) == ["asked", "yes"]
    assert run.result(10) == "answered"
    assert left == ["left", "left"]


def test_a_part_of_a_generator_may_be_another_task(place: Place) -> None:
    @place.worker.task
    def inner(most: int) -> Generator[str, None, int]:
        for number in range(most):
            yield f"{current().task} {number}"
        return most

    @place.worker.task
    def outer() -> Generator[str, None, int]:
        return (yield from inner(2))

    place.start()
    run = outer.submit()

    assert values_of(run) == ["shop.outer 0", "shop.outer 1"]
    assert run.result(10) == 2


def test_a_decorator_may_collect_what_a_generator_yields(place: Place) -> None:
    def collected(function: Callable[..., Iterator[int]]) -> Callable[..., list[int]]:
        @functools.wraps(function)
        def collect(*args: int) -> list[int]:
            return list(function(*args))

        return collect

    @collected
    def count(most: int) -> Iterator[int]:
        yield from range(most)

    task = place.worker.task(count)
    place.start()
    run = task.submit(3)

    assert (values_of(run), run.result(10)) == ([], [0, 1, 2])
    assert task(2) == [0, 1]


# Errors


def test_a_value_that_is_refused_closes_the_generator_and_fails_for_good(place: Place) -> None:
    closed: list[type[BaseException]] = []

    @place.worker.task(retry=SLOWLY)
    def talk() -> Iterator[str]:
        yield "good"
        try:
            yield "x" * 70_000
        except BaseException as error:
            closed.append(type(error))
            raise

    place.start()
    run = talk.submit()

    with pytest.raises(ExecutionFailed, match=r"an emitted value of 'shop\.talk' has 70002 bytes"):
        run.result(10)
    assert values_of(run) == ["good"]
    assert closed == [GeneratorExit]
    assert info_of(place.worker, run).retry_count == 0


def test_a_value_of_another_type_fails_for_good(place: Place) -> None:
    @place.worker.task(retry=SLOWLY)
    def talk() -> Iterator[int]:
        yield "text"  # type: ignore[misc]

    place.start()
    run = talk.submit()

    with pytest.raises(ExecutionFailed, match=r"An emitted value of talk\(\) cannot be encoded"):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0


def test_nothing_is_emitted_while_a_generator_is_left_for_a_sleep(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    @place.worker.task
    def stubborn() -> Generator[str, None, str]:
        yield "a"
        with suppress(BaseException):
            current().sleep(SOON)
        yield "b"
        return "done"

    @place.worker.task
    def chatty() -> Iterator[str]:
        try:
            yield "a"
            current().sleep(SOON)
            yield "b"
        finally:
            if len(refused) == 0:
                with pytest.raises(DurableCallError) as caught:
                    current().emit("left")
                refused.append(str(caught.value))

    refused: list[str] = []
    place.start()
    run, other = stubborn.submit(), chatty.submit()

    assert (values_of(run), run.result(10)) == (["a", "b"], "done")
    assert "caught the Delay by which a durable call leaves the handler" in caplog.text
    assert values_of(other) == ["a", "b"]
    assert len(refused) == 1
    assert "emit() was made while the handler is being left (Delay)" in refused[0]


def returns_a_list() -> list[int]:
    yield 1  # type: ignore[misc]


def returns_an_int() -> int:  # type: ignore[misc]
    yield 1


def is_sent_text() -> Generator[int, str, None]:
    yield 1


def yields_objects() -> Iterator[threading.Lock]:
    yield threading.Lock()


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (returns_a_list, r"annotate Iterator\[T\] or Generator\[T, None, R\] and not list\[int\]"),
        (returns_an_int, r"annotate Iterator\[T\] or Generator\[T, None, R\] and not int"),
        (is_sent_text, r"expects str from send\(\), which a worker does not call"),
        (yields_objects, r"An emitted value of yields_objects\(\) cannot be encoded"),
    ],
)
def test_a_generator_of_an_unsupported_kind_is_refused(
    worker: Worker, function: Callable[..., Any], reason: str
) -> None:
    with pytest.raises(TypeError, match=reason):
        worker.task(function)


# Around it


def test_middleware_surrounds_the_whole_iteration(worker: Worker, start: Start) -> None:
    events: list[str] = []

    @contextmanager
    def around(context: TaskContext) -> Iterator[None]:
        events.append("enter")
        yield
        events.append("exit")

    worker.middleware = (around,)

    @worker.task
    def talk() -> Iterator[int]:
        events.append("first")
        yield 1
        events.append("second")
        yield 2

    start(worker)
    talk.submit().result(10)

    assert events == ["enter", "first", "second", "exit"]


# Plain calls


def test_a_plain_call_of_a_generator_runs_in_its_own_context(worker: Worker) -> None:
    @worker.task
    def talk(name: str) -> Generator[str, None, list[Any]]:
        context = current()
        assert isinstance(context, LocalContext)
        context.emit(name)
        yield name
        assert current() is context
        yield f"{name} again"
        return context.emitted

    first, second = talk("a"), talk("b")

    assert [next(first), next(second), next(first), next(second)] == ["a", "b", "a again", "b again"]
    with pytest.raises(RuntimeError, match="outside of a task"):
        current()
    with pytest.raises(StopIteration) as end:
        next(first)
    assert end.value.value == ["a"]


def test_a_plain_call_of_a_generator_can_be_closed_and_thrown_into(worker: Worker) -> None:
    ends: list[str] = []

    @worker.task
    def talk() -> Iterator[str]:
        try:
            yield "a"
        except KeyError:
            yield "caught"
        finally:
            ends.append(current().task)

    thrown = talk()
    assert isinstance(thrown, Generator)
    assert next(thrown) == "a"
    assert thrown.throw(KeyError()) == "caught"
    thrown.close()
    closed = talk()
    assert isinstance(closed, Generator)
    next(closed)
    closed.close()

    assert ends == ["shop.talk", "shop.talk"]


def test_a_wrong_plain_call_of_a_generator_fails_at_once(worker: Worker) -> None:
    @worker.task
    def talk(name: str) -> Iterator[str]:
        yield name

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        talk()  # type: ignore[call-arg]
