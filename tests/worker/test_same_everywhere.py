"""One behaviour of tasks, wherever they run: in place, in a worker on memory, in a worker on a server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import pytest

from flowfabric_worker import Call, EncodingError, ExecutionFailed, TaskContext, current
from tests.support.observation import ended, info_of
from tests.support.places import SLOWLY, SOON, Place

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
