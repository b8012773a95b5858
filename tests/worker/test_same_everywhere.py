"""One behaviour of tasks, wherever they run: in place, in a worker on memory, in a worker on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

import attrs
import pytest

from flowfabric_worker import (
    Call,
    Cancel,
    Delay,
    EncodingError,
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    Fail,
    FailureClass,
    Retry,
    RetryPolicy,
    RunSettings,
    Runtime,
    TaskContext,
    Worker,
    current,
)
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.worker.looking import ended, info_of

SOON = timedelta(milliseconds=20)
AT_ONCE = RetryPolicy(max_retries=2, backoff="fixed", initial=timedelta(), jitter=False)
SLOWLY = RetryPolicy(max_retries=2, backoff="fixed", initial=SOON, jitter=False)


@attrs.frozen
class Place:
    """A worker, and what makes its tasks run."""

    worker: Worker
    start: Callable[[], None]


@pytest.fixture(params=["eager", "memory", "server"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    worker: Worker = request.getfixturevalue("served" if request.param == "server" else "worker")
    with ExitStack() as stack:
        if request.param == "eager":
            stack.enter_context(worker.eager())

        def start() -> None:
            """One thread, so that the order of runs can be told; to be called when the tasks are there."""
            if request.param != "eager":
                runtime = Runtime(worker, RunSettings(threads=1))
                stack.callback(runtime.stop, timedelta())
                runtime.start()

        yield Place(worker, start)


# Results


def test_a_result_comes_back(place: Place) -> None:
    @place.worker.task
    def add(first: int, second: int = 1) -> int:
        return first + second

    place.start()

    assert add.submit(2).result(10) == 3
    assert add.submit(2, second=5).result(10) == 7


def test_many_submissions_come_back_in_order(place: Place) -> None:
    @place.worker.task
    def add(first: int, second: int = 1) -> int:
        return first + second

    place.start()
    runs = add.submit_many([*(Call(number, second=number) for number in range(600)), (1,)])

    assert [run.result(20) for run in runs] == [*range(0, 1200, 2), 2]


class Size(Enum):
    SMALL = "S"
    LARGE = "L"


@attrs.frozen
class Parcel:
    number: UUID
    size: Size
    contents: dict[str, list[bytes]]
    inner: Parcel | None = None


PARCEL = Parcel(UUID(int=7), Size.LARGE, {"a": [b"\0\xff"]}, Parcel(UUID(int=8), Size.SMALL, {}))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_values_travel_by_their_annotations(place: Place, codec: str) -> None:
    @place.worker.task(codec=codec)
    def unpack(parcel: Parcel, wait: timedelta) -> tuple[Parcel | None, timedelta]:
        assert isinstance(parcel.size, Size)
        return parcel.inner, 2 * wait

    place.start()
    run = unpack.submit(PARCEL, timedelta(seconds=1))

    assert run.result(10) == (PARCEL.inner, timedelta(seconds=2))
    assert info_of(place.worker, run).codec == codec


def test_what_a_handler_changes_in_its_arguments_stays_there(place: Place) -> None:
    @place.worker.task
    def fill(names: list[str]) -> list[str]:
        names.append("b")
        return names

    place.start()
    names = ["a"]

    assert fill.submit(names).result(10) == ["a", "b"]
    assert names == ["a"]


def test_a_wrong_call_is_refused_where_it_is_made(place: Place) -> None:
    @place.worker.task
    def add(first: int) -> int:
        return first

    place.start()

    with pytest.raises(TypeError, match="unexpected keyword argument"):
        add.submit(1, other=2)  # type: ignore[call-arg]  # what is tested
    with pytest.raises(EncodingError):
        add.submit(object())  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError, match="unknown option 'prio'"):
        add.options(prio=3)


# Failures


def test_a_failure_tells_its_reason_and_traceback(place: Place) -> None:
    @place.worker.task
    def broken() -> NoReturn:
        raise LookupError("no such order")

    place.start()
    run = broken.submit()

    with pytest.raises(ExecutionFailed, match="LookupError: no such order") as raised:
        run.result(10)
    assert 'raise LookupError("no such order")' in raised.value.detail
    assert info_of(place.worker, run).error_class == FailureClass.TRANSIENT


@pytest.mark.parametrize("policy", [AT_ONCE, SLOWLY])
def test_a_retry_may_succeed(place: Place, policy: RetryPolicy, times: Iterator[int]) -> None:
    @place.worker.task(retry=policy)
    def flaky() -> tuple[int, int]:
        if next(times) < 3:
            raise OSError("not yet")
        return current().attempt, current().retry_count

    place.start()

    assert flaky.submit().result(10) == (2, 2)


def test_retries_come_to_an_end(place: Place, times: Iterator[int]) -> None:
    @place.worker.task(retry=SLOWLY)
    def broken() -> NoReturn:
        raise OSError(f"time {next(times)}")

    place.start()

    with pytest.raises(ExecutionFailed, match="time 3"):
        broken.submit().result(10)


def test_a_permanent_failure_is_not_tried_again(place: Place, times: Iterator[int]) -> None:
    @place.worker.task(retry=AT_ONCE, permanent=[LookupError])
    def broken() -> NoReturn:
        raise KeyError(next(times))

    place.start()
    run = broken.submit()

    with pytest.raises(ExecutionFailed, match="KeyError: 1"):
        run.result(10)
    assert info_of(place.worker, run).error_class == FailureClass.PERMANENT


def test_arguments_that_do_not_fit_the_annotations_fail_for_good(place: Place) -> None:
    @place.worker.task(retry=AT_ONCE)
    def double(number: int) -> int:
        return 2 * number

    place.start()
    policy = double.options_given.policy()
    wrong = CreateExecutionArgs(lane="default", task="double", payload=b'[["no number"]]', codec="json", policy=policy)
    run = double.run(place.worker.engine.create_execution(wrong).execution_id)

    with pytest.raises(ExecutionFailed, match="payload_decode"):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0


def test_a_result_that_is_too_large_fails_for_good(place: Place) -> None:
    limit = place.worker.engine.limits.payload_bytes

    @place.worker.task(retry=AT_ONCE)
    def large() -> str:
        return "x" * limit

    place.start()
    run = large.submit()

    with pytest.raises(ExecutionFailed, match="payload_too_large"):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0


def test_a_handler_that_runs_past_its_timeout_is_told_and_fails(place: Place) -> None:
    told: list[bool] = []

    @place.worker.task(timeout=timedelta(milliseconds=200))
    def slow() -> str:
        told.append(current().cancelled.wait(20))
        return "too late"

    place.start()
    run = slow.submit()

    with pytest.raises(ExecutionFailed, match="attempt_timeout"):
        run.result(10)
    assert info_of(place.worker, run).error_class == FailureClass.TIMEOUT
    assert told in ([], [True])


def test_what_does_not_begin_before_its_deadline_expires(place: Place) -> None:
    task = place.worker.task(len)
    place.start()
    run = task.options(delay=timedelta(hours=1), deadline=timedelta(milliseconds=100)).submit("abc")

    with pytest.raises(ExecutionExpired):
        run.result(10)


# What a handler may raise


def test_fail_ends_an_execution_for_good(place: Place) -> None:
    @place.worker.task(retry=AT_ONCE)
    def declined() -> NoReturn:
        raise Fail("no money", detail="4711")

    place.start()

    with pytest.raises(ExecutionFailed, match="no money") as raised:
        declined.submit().result(10)
    assert raised.value.detail == "4711"


def test_retry_counts_and_waits_as_long_as_it_says(place: Place) -> None:
    @place.worker.task(retry=RetryPolicy(max_retries=1, initial=timedelta(days=1)))
    def again() -> int:
        if current().retry_count == 0:
            raise Retry("later", after=SOON)
        return current().retry_count

    place.start()

    assert again.submit().result(10) == 1


def test_delay_uses_no_retry(place: Place, times: Iterator[int]) -> None:
    @place.worker.task
    def later() -> tuple[int, str]:
        if next(times) < 3:
            raise Delay(SOON)
        return current().retry_count, current().kind

    place.start()

    assert later.submit().result(10) == (0, "resumed")


def test_cancel_ends_an_execution_as_cancelled(place: Place) -> None:
    @place.worker.task
    def unwanted() -> NoReturn:
        raise Cancel("sold out")

    place.start()

    with pytest.raises(ExecutionCancelled, match="sold out"):
        unwanted.submit().result(10)


# While it runs


def test_a_step_is_remembered_over_retries(place: Place, times: Iterator[int]) -> None:
    @place.worker.task(retry=SLOWLY)
    def charge() -> list[int]:
        number = current().step("number", next, times)
        if current().retry_count < 2:
            raise OSError
        return [number, next(times)]

    place.start()

    assert charge.submit().result(10) == [1, 2]


def test_a_sleep_frees_the_thread_and_goes_on_behind_it(place: Place, times: Iterator[int]) -> None:
    @place.worker.task
    def patient() -> int:
        runs = next(times)
        current().sleep(SOON)
        current().sleep(SOON)
        return runs

    place.start()

    assert patient.submit().result(10) == 3


def test_a_parameter_annotated_with_the_context_gets_it(place: Place) -> None:
    @place.worker.task(lane="far", tags={"shop": "north"})
    def described(number: int, context: TaskContext) -> dict[str, Any]:
        return {"same": context is current(), "id": context.id, "lane": context.lane, "tags": dict(context.tags)}

    place.start()
    run = described.submit(1)  # type: ignore[call-arg]  # the context is not the caller's to give

    assert run.result(10) == {"same": True, "id": str(run.id), "lane": "far", "tags": {"shop": "north"}}


def test_waiting_for_a_result_inside_a_handler_is_refused(place: Place) -> None:
    inner = place.worker.task(name="inner")(len)

    @place.worker.task
    def outer() -> int:
        return inner.submit("abc").result()

    place.start()

    with pytest.raises(ExecutionFailed, match=r"result\(\) inside a handler"):
        outer.submit().result(10)


# Submitting


def test_a_key_stands_for_one_execution(place: Place, times: Iterator[int]) -> None:
    @place.worker.task
    def count() -> int:
        return next(times)

    place.start()
    first = count.options(key="order-7").submit()
    second = count.options(key="order-7").submit()

    assert (first.created, second.created, first.id == second.id) == (True, False, True)
    assert [first.result(10), second.result(10), count.submit().result(10)] == [1, 1, 2]


def test_what_a_handler_submits_runs_after_it_by_priority(place: Place) -> None:
    order: list[str] = []

    @place.worker.task
    def note(text: str) -> None:
        order.append(text)

    @place.worker.task
    def parent() -> list[str]:
        runs = [
            note.options(priority=priority).submit(text)
            for text, priority in [("low", 0), ("low again", 0), ("high", 9), ("higher", 90)]
        ]
        order.append("parent")
        return [str(run.id) for run in runs]

    place.start()
    for execution_id in parent.submit().result(10):
        note.run(execution_id).result(10)

    assert order == ["parent", "higher", "high", "low", "low again"]


def test_tags_are_kept(place: Place) -> None:
    task = place.worker.task(tags={"shop": "north"})(len)
    place.start()

    assert ended(place.worker, task.submit("a")).tags == {"shop": "north"}
    assert ended(place.worker, task.options(tags={"day": "mon"}).submit("a")).tags == {"day": "mon"}


def test_a_delayed_execution_runs_when_it_is_time(place: Place) -> None:
    task = place.worker.task(len)
    place.start()
    run = task.options(delay=timedelta(milliseconds=200)).submit("abc")

    assert run.result(10) == 3
    info = info_of(place.worker, run)
    assert info.started_at_ms is not None
    assert info.started_at_ms - info.created_at_ms >= 200
