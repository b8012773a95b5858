"""Children of a handler: `spawn` and `gather`, wherever tasks run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    ChildFailed,
    DurableCallError,
    ExecutionCancelled,
    ExecutionFailed,
    Fail,
    ResultError,
    Run,
    ValidationError,
    WaitChildren,
    Worker,
    current,
)
from flowfabric_worker._runtime import handler_context
from flowfabric_worker.engine.flow_graphs import children_id, member_id
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.types.budgets import BudgetDefinition, BudgetDimension, CreateBudgetArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import in_state
from tests.support.places import Place
from tests.support.servers import wait_until
from tests.worker.conftest import Start

HOUR = timedelta(hours=1)


def family(worker: Worker) -> Any:
    """Return a task whose runs are children in these tests."""

    @worker.task
    def child(number: int, sleep: float = 0.0) -> int:
        if sleep:
            current().sleep(timedelta(seconds=sleep))
        if number < 0:
            raise Fail(f"{number} is refused")
        return 10 * number

    return child


def child_of(worker: Worker, run: Run[Any], name: str) -> Run[Any]:
    """Return the handle of a child by its name."""
    flow = children_id(run.id, worker.engine.partitions)
    return worker.tasks["child"].run(member_id(flow, name, run.id.partition_number))


def test_gather_returns_results_in_the_order_that_they_were_asked_for(place: Place, times: Iterator[int]) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> tuple[list[int], int]:
        run = next(times)
        slow = current().spawn("slow", child, 1, sleep=0.05)
        quick = current().spawn("quick", child.options(priority=5), 2)
        return current().gather(slow, quick, slow), run

    place.start()
    result, runs = parent.submit().result(10)

    assert result == [10, 20, 10]
    assert runs == 2


def test_a_waiting_parent_holds_no_thread(worker: Worker, start: Start) -> None:
    @worker.task
    def nest(depth: int) -> int:
        if depth == 0:
            return 0
        (below,) = current().gather(current().spawn("below", nest, depth - 1))
        return int(below) + 1

    start(worker, threads=1)

    assert nest.submit(5).result(10) == 5


def test_gathers_of_one_handler_end_one_after_the_other(place: Place) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> list[int]:
        assert current().gather() == []
        first = current().gather(current().spawn("a", child, 1), current().spawn("b", child, 2))
        second = current().gather(*(current().spawn(f"c{number}", child, number) for number in first))
        again = current().gather(current().spawn("last", child, sum(second)))
        return [*first, *second, *again]

    place.start()

    assert parent.submit().result(10) == [10, 20, 100, 200, 3000]


def test_gather_raises_at_the_first_child_that_failed(place: Place) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> list[Any]:
        names = {"good": 1, "bad": -1, "late": 3}
        children = [current().spawn(name, child, number, 60 * (name == "late")) for name, number in names.items()]
        current().gather(children[0])
        try:
            current().gather(*children)
        except ChildFailed as failed:
            again = {"name": failed.name, "reason": failed.failure.reason, "results": failed.results}
            # The end of the gather is the same in each later run.
            current().sleep(timedelta(milliseconds=20))
            return [again, list(failed.running)]
        return []

    place.start()
    run = parent.submit()

    failure, running = run.result(10)
    assert failure == {"name": "bad", "reason": "-1 is refused", "results": {"good": 10}}
    assert running in (["late"], [])


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_child_that_ends_without_a_failure_ends_a_gather_too(either: Worker, how: str) -> None:
    child = family(either)

    @either.task
    def parent() -> str:
        late = child.options(delay=HOUR, deadline=timedelta(milliseconds=20) if how == "expired" else None)
        try:
            current().gather(current().spawn("late", late, 1), current().spawn("other", child.options(delay=HOUR), 2))
        except ChildFailed as failed:
            return f"{failed.name}: {type(failed.failure).__name__}"
        return ""

    run = parent.submit()
    either.run_until_idle()
    if how == "cancelled":
        child_of(either, run, "late").cancel()
    wait_until(lambda: either.run_until_idle() or run.state() is PublicState.COMPLETED, "the parent runs again")

    assert run.result(5) == f"late: Execution{how.title()}"


def test_a_failed_child_fails_a_parent_that_does_not_catch_it(place: Place) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> list[int]:
        return current().gather(current().spawn("bad", child, -7))

    place.start()

    with pytest.raises(ExecutionFailed, match=r"The child 'bad' did not succeed: .*-7 is refused"):
        parent.submit().result(10)


def test_gather_that_settles_waits_for_all_and_returns_failures(place: Place) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> list[str]:
        children = [current().spawn(str(number), child, number) for number in (-1, 2)]
        ends = current().gather(*children, settle=True)
        return [each.reason if isinstance(each, ResultError) else str(each) for each in ends]

    place.start()

    assert parent.submit().result(10) == ["-1 is refused", "20"]


def test_a_child_is_spawned_once_over_retries_of_its_parent(place: Place, times: Iterator[int]) -> None:
    ran: list[int] = []

    @place.worker.task
    def child(number: int) -> int:
        ran.append(number)
        return number

    @place.worker.task(max_reclaims=5)
    def parent() -> int:
        spawned = current().spawn("one", child, next(times))
        if current().attempt == 0:
            current().sleep(timedelta(milliseconds=20))
        return current().gather(spawned)[0]

    place.start()

    assert parent.submit().result(10) == 1
    assert ran == [1]


def test_cancelling_a_parent_cancels_its_children_but_the_detached(either: Worker) -> None:
    child = family(either)

    @either.task
    def parent() -> list[int]:
        current().spawn("detached", child.options(detached=True, delay=HOUR), 1)
        inner = current().spawn("inner", middle)
        return current().gather(inner, current().spawn("delayed", child.options(delay=HOUR), 2))

    @either.task
    def middle() -> list[int]:
        return current().gather(current().spawn("deep", child.options(delay=HOUR), 3))

    run = parent.submit()
    either.run_until_idle()
    in_state(either, run, PublicState.WAITING_CHILDREN)
    inner = child_of(either, run, "inner")
    deep = child_of(either, inner, "deep")
    assert deep.state() is PublicState.DELAYED

    run.cancel("not needed")
    for each in (child_of(either, run, "delayed"), inner, deep):
        wait_until(lambda each=each: each.state() is PublicState.CANCELLED, "the child is cancelled")
    with pytest.raises(ExecutionCancelled):
        run.result(5)
    assert child_of(either, run, "detached").state() is PublicState.DELAYED


def test_children_use_the_budgets_of_their_parents_and_their_own(place: Place) -> None:
    @place.worker.task
    def child() -> int:
        current().use(tokens=10)
        return 1

    @place.worker.task(budgets=["team"])
    def parent() -> int:
        spawn = current().spawn
        return sum(current().gather(spawn("plain", child), spawn("own", child.options(budgets=["own", "team"]))))

    engine = place.worker.engine
    for name in ("team", "own"):
        definition = BudgetDefinition(dimensions=[BudgetDimension(name="tokens", hard_limit=100)])
        engine.create_budget(CreateBudgetArgs(budget_id=BudgetId(name), definition=definition))
    place.start()

    assert parent.submit().result(10) == 2
    assert [engine.get_budget_status(BudgetId(name)).usage["tokens"] for name in ("team", "own")] == [20, 10]


def test_children_go_on_when_their_parent_ends_by_itself(either: Worker) -> None:
    child = family(either)

    @either.task
    def parent() -> str:
        current().spawn("later", child.options(delay=timedelta(milliseconds=30)), 4)
        return "done"

    run = parent.submit()
    either.run_until_idle()
    assert run.result(5) == "done"
    later = child_of(either, run, "later")
    wait_until(lambda: either.run_until_idle() or later.state() is PublicState.COMPLETED, "the child runs")

    assert later.result(5) == 40


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (lambda child: [current().spawn("a", child, 1) for _ in "ab"], DurableCallError, "was used at"),
        (lambda child: current().spawn("ff:a", child, 1), DurableCallError, "cannot be named"),
        (lambda child: current().spawn("a", child), TypeError, "missing"),
        (lambda child: current().spawn("a", child.options(need=1), 1), TypeError, r"spawn\(\) takes no need="),
        (lambda child: current().spawn("a", child.options(key="k"), 1), TypeError, "name of a child is its key"),
        (lambda child: current().step("s", current().spawn, "a", child, 1), DurableCallError, "inside the step"),
        (
            lambda child: current().step("s", current().gather, current().spawn("a", child, 1)),
            DurableCallError,
            "inside the step",
        ),
        (lambda child: current().gather(child), TypeError, r"gather\(\) takes what spawn\(\) returned, not a Task"),
    ],
)
def test_what_spawn_and_gather_refuse_fails_the_parent(worker: Worker, body: Any, error: type, text: str) -> None:
    child = family(worker)

    @worker.task
    def parent() -> None:
        try:
            body(child)
        except Exception as raised:
            current().step("note", raised_here.append, raised)
            raise

    raised_here: list[Exception] = []
    run = parent.submit()
    worker.run_until_idle()

    with pytest.raises(ExecutionFailed, match=text):
        run.result(1)


@pytest.mark.parametrize("wrong", [{"names": ["\0"]}, {"names": map(str, range(1001))}, {"need": 0}, {"need": True}])
def test_a_wait_for_children_that_is_not_valid_fails_the_parent(worker: Worker, wrong: dict[str, Any]) -> None:
    @worker.task(permanent=[ValidationError])
    def parent() -> None:
        raise WaitChildren(**wrong)

    run = parent.submit()
    worker.run_until_idle()

    with pytest.raises(ExecutionFailed, match=r"at most 1000|need= is|control character"):
        run.result(1)


def test_a_gather_waits_for_more_children_than_one_wait_names(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_context, "MAX_FLOW_ROWS", 2)
    child = family(worker)

    @worker.task(priority=9)
    def parent() -> int:
        return sum(current().gather(*(current().spawn(str(number), child, number) for number in range(7))))

    run = parent.submit()
    worker.run_until_idle()

    assert run.result(1) == 210


def test_a_plain_call_cannot_have_children(worker: Worker) -> None:
    child = family(worker)

    @worker.task
    def parent() -> None:
        current().spawn("a", child, 1)

    with pytest.raises(RuntimeError, match="works only in a durable execution"):
        parent()


def test_a_raised_wait_for_children_continues_after_enough_of_them(place: Place, times: Iterator[int]) -> None:
    child = family(place.worker)

    @place.worker.task
    def parent() -> int:
        for number in (1, 2, 3):
            current().spawn(str(number), child.options(delay=HOUR if number == 3 else None), number)
        run = next(times)
        if run == 1:
            raise WaitChildren(["1", "2", "3"], need=2)
        return run

    place.start()

    assert parent.submit().result(10) == 2
