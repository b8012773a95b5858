"""Tasks: how functions are decorated, called and submitted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import flowfabric_worker
from flowfabric_worker import (
    Call,
    ConflictError,
    EncodingError,
    NotFoundError,
    TaskContext,
    ValidationError,
    Worker,
    current,
)
from flowfabric_worker.engine.types.policies import RetryPolicy
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import info_of
from tests.worker.conftest import Start


def add(a: int, b: int = 1) -> int:
    return a + b


# Decorating


def test_a_function_is_decorated_with_and_without_options(worker: Worker) -> None:
    plain = worker.task(add)
    named = worker.task(name="other.add", lane="sums", priority=7)(add)

    assert worker.tasks == {"shop.add": plain, "other.add": named}
    assert named.options_given.lane == "sums"
    assert plain.options_given.lane == "default"


def test_a_decorated_function_keeps_its_name_and_documentation(worker: Worker) -> None:
    @worker.task(name="other")
    def send(order: int) -> None:
        """Send an order."""

    assert (send.__name__, send.__doc__) == ("send", "Send an order.")
    assert repr(send) == "<Task 'other' of 'shop'>"


def test_two_tasks_of_one_name_are_refused(worker: Worker) -> None:
    worker.task(add)

    with pytest.raises(ValueError, match=r"already has a task named 'shop\.add': give one of them another name="):
        worker.task(add)


def test_an_unknown_option_is_a_type_error_that_names_the_known_ones(worker: Worker) -> None:
    with pytest.raises(
        TypeError,
        match=r"'lanes'\. Did you mean 'lane'\? The options are lane, retry.*permanent",
    ):
        worker.task(lanes="mail")
    with pytest.raises(TypeError, match="unknown option 'prio'"):
        worker.task(add).options(prio=1)
    with pytest.raises(TypeError, match="unknown option 'queue'"):
        Worker("shop", defaults={"queue": "x"})


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"retry": 3}, ValidationError),
        ({"lane": "läne"}, ValidationError),
        ({"timeout": 5}, ValidationError),
        ({"lease": 5}, ValidationError),
        ({"lease": timedelta()}, ValidationError),
        ({"lease": timedelta(days=2)}, ValueError),
        ({"requires": "gpu"}, TypeError),
        ({"budgets": "b"}, TypeError),
        ({"permanent": ("ValueError",)}, TypeError),
        ({"codec": "yaml"}, ValueError),
        ({"name": "\0"}, ValidationError),
        ({"name": ""}, ValidationError),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_where_it_is_written(
    worker: Worker, option: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        worker.task(**option)(add)

    assert worker.tasks == {}


def test_a_workers_defaults_hold_for_tasks_that_do_not_say_otherwise() -> None:
    worker = Worker("shop", "memory://", defaults={"lane": "mail", "priority": 3})

    task = worker.task(priority=5)(add)

    assert (task.options_given.lane, task.options_given.priority) == ("mail", 5)


# Calling


def test_a_plain_call_runs_the_function_here_and_now_without_a_store() -> None:
    task = Worker("shop", "valkey://nowhere.invalid:1").task(add)

    assert task(2, b=3) == 5


def test_a_plain_call_has_a_local_context_whose_steps_run(worker: Worker) -> None:
    @worker.task
    def count(upto: int) -> list[Any]:
        context = current()
        context.progress(50, "half")
        context.check()
        return [context.kind, context.task, context.step("sum", sum, range(upto)), context.cancelled.is_set()]

    assert count(4) == ["local", "shop.count", 6, False]
    with pytest.raises(RuntimeError, match="outside of a task"):
        current()


def test_sleeping_in_a_plain_call_is_refused(worker: Worker) -> None:
    @worker.task
    def nap() -> None:
        current().sleep(timedelta(seconds=1))

    with pytest.raises(RuntimeError, match="submit the task instead"):
        nap()


def test_the_context_comes_to_the_parameter_that_is_annotated_with_it(worker: Worker, start: Start) -> None:
    @worker.task
    def first(order: int, context: TaskContext, note: str = "-") -> str:
        return f"{order} {context.task} {context.kind} {note}"

    @worker.task
    def second(*, run: flowfabric_worker.TaskContext) -> str:
        return run.task

    start(worker)

    assert first(7, note="x") == "7 shop.first local x"  # type: ignore[call-arg]  # the context is not the caller's to give
    assert first.submit(7, note="x").result(10) == "7 shop.first fresh x"  # type: ignore[call-arg]  # as above
    assert second.submit().result(10) == "shop.second"  # type: ignore[call-arg]  # as above


def test_an_annotation_that_is_no_text_is_understood_as_well(worker: Worker, start: Start) -> None:
    def handler(context: Any) -> str:
        return str(context.task)

    handler.__annotations__["context"] = TaskContext
    task = worker.task(handler)
    start(worker)

    assert task.submit().result(10) == "shop.handler"  # type: ignore[call-arg]  # the runtime gives it


# Submitting


def test_a_call_that_does_not_fit_the_signature_is_pythons_own_type_error(worker: Worker) -> None:
    task = worker.task(add)

    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'a'"):
        task.submit()  # type: ignore[call-arg]  # that is the point
    with pytest.raises(TypeError, match=r"add\(\) got an unexpected keyword argument 'c'"):
        task.submit(1, c=2)  # type: ignore[call-arg]  # that is the point
    with pytest.raises(TypeError, match=r"add\(\) takes from 1 to 2 positional arguments but 3 were given"):
        task.submit(1, 2, 3)  # type: ignore[call-arg]  # that is the point
    assert worker.engine.list_executions().executions == ()


def test_an_argument_that_would_not_come_back_is_refused_and_named(worker: Worker) -> None:
    task = worker.task(add)

    with pytest.raises(EncodingError, match=r"'a' of add\(\)"):
        task.submit("one")  # type: ignore[arg-type]  # that is the point


def test_options_of_a_submission_reach_the_store(worker: Worker) -> None:
    task = worker.task(lane="mail", tags={"team": "a"})(add)
    at = datetime(2031, 5, 6, tzinfo=UTC)

    run = task.options(
        lane="bulk",
        priority=9,
        at=at,
        key="order-7",
        tags={"team": "b"},
        headers={"origin": "web"},
        requires=("gpu",),
        deadline=timedelta(days=3650),
        timeout=timedelta(minutes=2),
        retry=RetryPolicy(max_retries=5),
        retention=timedelta(days=2),
        max_reclaims=2,
    ).submit(1)
    info = info_of(worker, run)

    assert (info.lane, info.task, info.priority, info.idempotency_key) == ("bulk", "shop.add", 9, "order-7")
    assert info.delay_until_ms == at.timestamp() * 1000
    assert info.public_state is PublicState.DELAYED
    assert info.tags == {"team": "b"}
    assert info.headers == {"origin": "web"}
    assert info.policy.requires == {"gpu"}
    assert info.policy.attempt_timeout == timedelta(minutes=2)
    assert info.policy.retry == RetryPolicy(max_retries=5)
    assert info.policy.retention == timedelta(days=2)
    assert info.policy.max_reclaim_count == 2
    assert info.deadline_at_ms == info.created_at_ms + timedelta(days=3650) // timedelta(milliseconds=1)
    assert info.codec == "json"


def test_a_delay_counts_from_the_submission(worker: Worker) -> None:
    run = worker.task(add).options(delay=timedelta(hours=1)).submit(1)
    info = info_of(worker, run)

    assert info.delay_until_ms == info.created_at_ms + 3_600_000


def test_a_task_without_options_leaves_the_defaults(worker: Worker) -> None:
    info = info_of(worker, worker.task(add).submit(1))

    assert (info.lane, info.priority, info.tags, info.deadline_at_ms) == ("default", 0, {}, None)
    assert info.policy.retry is None
    assert info.policy.max_reclaim_count == 5


def test_options_of_the_task_cannot_be_changed_for_a_submission(worker: Worker) -> None:
    with pytest.raises(TypeError, match=r"codec, lease can only be set on the task: pass it to @worker.task\(\)"):
        worker.task(add).options(lease=timedelta(seconds=1), codec="json")


def test_options_add_up(worker: Worker) -> None:
    task = worker.task(priority=1)(add)

    info = info_of(worker, task.options(priority=2, lane="x").options(priority=3).submit(1))

    assert (info.priority, info.lane) == (3, "x")
    assert info_of(worker, task.submit(1)).priority == 1


def test_unknown_budgets_and_quotas_are_refused(worker: Worker) -> None:
    task = worker.task(add)

    with pytest.raises(NotFoundError) as budget:
        task.options(budgets=("tokens",)).submit(1)
    with pytest.raises(NotFoundError) as quota:
        task.options(quota="per-minute").submit(1)
    assert (budget.value.code, budget.value.details["budget_id"]) == ("budget_not_found", "tokens")
    assert (quota.value.code, quota.value.details["quota_policy_id"]) == ("quota_policy_not_found", "per-minute")
    assert worker.engine.list_executions().executions == ()


def test_a_second_submission_under_a_key_answers_with_the_first_run(worker: Worker) -> None:
    task = worker.task(add).options(key="order-7")

    first, second = task.submit(1), task.submit(1)

    assert first.created
    assert not second.created
    assert first.id == second.id


def test_submit_many_takes_any_number_of_calls_and_keeps_their_order(worker: Worker, start: Start) -> None:
    task = worker.task(add)

    def calls() -> Iterator[Call[...] | tuple[int, ...]]:
        for number in range(1200):
            yield Call(number, b=0) if number % 2 else (number, 0)

    runs = task.submit_many(calls())
    start(worker)

    assert len({run.id for run in runs}) == 1200
    assert [run.result(30) for run in runs] == list(range(1200))


def test_submit_many_of_nothing_is_nothing(worker: Worker) -> None:
    assert worker.task(add).submit_many([]) == []


def test_submit_many_honours_options(worker: Worker) -> None:
    runs = worker.task(add).options(lane="bulk", priority=4).submit_many([(1,), (2,)])

    assert [(info_of(worker, run).lane, info_of(worker, run).priority) for run in runs] == [("bulk", 4), ("bulk", 4)]


def test_submit_many_refuses_what_is_no_call(worker: Worker) -> None:
    task = worker.task(add)

    with pytest.raises(TypeError, match=r"takes Call.* or tuples of arguments, not int"):
        task.submit_many([1])  # type: ignore[list-item]  # that is the point
    with pytest.raises(TypeError, match=r"add\(\) missing 1 required"):
        task.submit_many([(1,), ()])
    with pytest.raises(TypeError, match="One key cannot stand for many"):
        task.options(key="k").submit_many([(1,)])
    assert worker.engine.list_executions().executions == ()


def test_a_key_that_stands_for_other_arguments_is_a_conflict(worker: Worker) -> None:
    task = worker.task(add).options(key="order-7")
    first = task.submit(1)

    with pytest.raises(ConflictError) as caught:
        task.submit(2)

    assert caught.value.code == "key_conflict"
    assert caught.value.details["execution_id"] == str(first.id)
    assert task.submit(1).id == first.id


def test_a_submission_that_asks_for_it_gets_the_run_of_other_arguments(worker: Worker) -> None:
    task = worker.task(add).options(key="order-7", on_conflict="return")
    first = task.submit(1)

    second = task.submit(2)

    assert (second.id, second.created) == (first.id, False)


def test_a_word_that_is_no_way_to_treat_a_conflict_is_refused(worker: Worker) -> None:
    with pytest.raises(ValidationError, match="on_conflict"):
        worker.task(add).options(on_conflict="ignore")


def test_two_tasks_with_one_key_both_run(worker: Worker) -> None:
    charge, send = worker.task(add, name="charge"), worker.task(add, name="send")

    runs = [task.options(key="order-7").submit(1) for task in (charge, send)]

    assert [run.created for run in runs] == [True, True]
