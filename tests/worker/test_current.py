"""What `current()` answers, and what of one run shows in another: nothing."""

from __future__ import annotations

import contextvars
import decimal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flowfabric_worker import Middleware, TaskContext, Worker, current
from tests.support.observation import info_of
from tests.support.places import Place
from tests.worker.conftest import RunAll, Start, each_way

of_the_application: contextvars.ContextVar[str] = contextvars.ContextVar("of_the_application", default="unset")


# Context variables


@each_way
def test_context_variables_of_one_run_do_not_show_in_the_next(worker: Worker, start: Start, run_all: RunAll) -> None:
    @worker.task
    def count(number: int) -> list[Any]:
        before = [of_the_application.get(), decimal.getcontext().prec]
        of_the_application.set(f"run {number}")
        decimal.getcontext().prec = number
        return before

    runs = count.submit_many((number,) for number in range(5, 11))
    run_all(worker, start)

    assert [run.result(10) for run in runs] == [["unset", 28]] * 6
    assert (of_the_application.get(), decimal.getcontext().prec) == ("unset", 28)


def test_context_variables_that_a_middleware_sets_reach_the_handler_alone(worker: Worker, start: Start) -> None:
    class Naming(Middleware):
        def around(self, context: TaskContext) -> Any:
            seen.append(of_the_application.get())
            of_the_application.set(context.id)
            return super().around(context)

    seen: list[str] = []
    named = Worker("named", worker.url, middleware=[Naming()])
    task = named.task(name="say")(lambda: of_the_application.get() == current().id)
    start(named, threads=1)

    assert [run.result(10) for run in task.submit_many([()] * 3)] == [True] * 3
    assert seen == ["unset"] * 3


# Threads


def test_threads_that_context_variables_reach_are_in_the_run(place: Place) -> None:
    @place.worker.task
    def spread() -> list[str]:
        context = contextvars.copy_context()
        with ThreadPoolExecutor(1) as pool:
            return [current().id, pool.submit(context.run, lambda: current().id).result()]

    run = spread.submit()
    place.start()

    assert run.result(10) == [str(run.id)] * 2


def test_threads_without_the_context_are_told_how_to_pass_it(place: Place) -> None:
    @place.worker.task
    def spread() -> str:
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(lambda: current().id).result()
            except RuntimeError as error:
                return str(error)

    run = spread.submit()
    place.start()

    assert "pool.submit(contextvars.copy_context().run, function)" in run.result(10)


def test_current_outside_of_a_task_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="outside of a task"):
        current()


# Tasks that are called


def test_a_task_called_inside_a_run_is_part_of_that_run(place: Place) -> None:
    calls: list[str] = []

    @place.worker.task
    def inner(context: TaskContext, number: int) -> list[Any]:
        current().step("inner", calls.append, "inner")
        return [context.id, current().id, current().kind, number]

    @place.worker.task
    def outer() -> list[Any]:
        current().step("outer", calls.append, "outer")
        return inner(number=7)  # type: ignore[call-arg]  # the context is put in

    run = outer.submit()
    place.start()

    assert run.result(10) == [str(run.id), str(run.id), "fresh", 7]
    assert calls == ["outer", "inner"]
    assert info_of(place.worker, run).step_count == 2


def test_a_task_called_in_a_thread_that_the_run_reaches_is_part_of_it(worker: Worker, start: Start) -> None:
    inner = worker.task(name="inner")(lambda: current().id)

    @worker.task
    def outer() -> str:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, inner).result()

    start(worker)
    run = outer.submit()

    assert run.result(10) == str(run.id)


def test_plain_calls_have_their_own_ids_and_share_them_with_inner_calls(worker: Worker) -> None:
    inner = worker.task(name="inner")(lambda: current().id)
    outer = worker.task(name="outer")(lambda: [current().id, inner(), current().step("one", int, "1")])
    first, second = outer(), outer()

    assert first[0] == first[1] != second[0] == second[1]
    assert (first[2], second[2]) == (1, 1)
    with pytest.raises(RuntimeError, match="outside of a task"):
        current()


def test_waiting_for_a_result_is_refused_also_in_a_task_that_a_run_calls(place: Place) -> None:
    add = place.worker.task(name="add")(lambda a: a + 1)

    @place.worker.task
    def inner() -> Any:
        return add.submit(1).result(10)

    @place.worker.task
    def outer() -> str:
        try:
            return str(inner())
        except RuntimeError as error:
            return str(error)

    run = outer.submit()
    place.start()

    assert "current().gather(...)" in run.result(10)


def test_runs_side_by_side_have_contexts_of_their_own(worker: Worker, start: Start) -> None:
    together = threading.Barrier(3)

    @worker.task
    def side_by_side(name: str) -> list[str]:
        of_the_application.set(name)
        together.wait(10)
        return [of_the_application.get(), current().id]

    start(worker, threads=3)
    runs = side_by_side.submit_many((name,) for name in "abc")

    assert [run.result(10) for run in runs] == [[name, str(run.id)] for name, run in zip("abc", runs, strict=True)]
