"""Results: how they are waited for, and how arguments and results travel."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

import attrs
import pytest

from flowfabric_worker import (
    EngineTimeoutError,
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    Runtime,
    Worker,
    current,
)
from flowfabric_worker.engine.types.states import PublicState
from tests.support.observation import info_of
from tests.worker.conftest import Start


class Size(Enum):
    SMALL = "S"
    LARGE = "L"


@attrs.frozen
class Order:
    id: UUID
    placed: datetime
    sizes: list[Size]


def add(a: int, b: int = 1) -> int:
    return a + b


# Results


def test_result_raises_how_the_execution_ended(worker: Worker, start: Start) -> None:
    @worker.task
    def broken() -> None:
        raise LookupError("no such order")

    failed = broken.submit()
    cancelled = broken.options(lane="nowhere").submit()
    cancelled.cancel("changed our mind")
    expired = broken.options(lane="nowhere", deadline=timedelta(milliseconds=1)).submit()
    start(worker)

    with pytest.raises(ExecutionFailed) as failure:
        failed.result(10)
    assert failure.value.reason == "LookupError: no such order"
    assert 'raise LookupError("no such order")' in failure.value.detail
    assert failure.value.execution_id == failed.id
    with pytest.raises(ExecutionCancelled, match="changed our mind"):
        cancelled.result(10)
    with pytest.raises(ExecutionExpired):
        expired.result(10)


def test_result_waits_no_longer_than_its_timeout(worker: Worker) -> None:
    run = worker.task(add).submit(1)

    with pytest.raises(EngineTimeoutError, match="it continues"):
        run.result(timeout=0.05)
    with pytest.raises(EngineTimeoutError):
        run.result(timeout=timedelta(milliseconds=50))
    assert run.state() is PublicState.WAITING


def test_result_of_nothing_is_none(worker: Worker, start: Start) -> None:
    @worker.task
    def silent() -> None:
        pass

    start(worker)

    assert silent.submit().result(10) is None


def test_a_run_is_found_again_by_its_id(worker: Worker, start: Start) -> None:
    task = worker.task(add)
    run = task.submit(1)
    start(worker)

    assert task.run(str(run.id)).result(10) == 2
    assert task.run(run.id).state() is PublicState.COMPLETED


def test_result_inside_a_handler_is_refused_at_once(worker: Worker, start: Start) -> None:
    child = worker.task(add)

    @worker.task
    def inner() -> int:
        return child.submit(1).result(10)

    @worker.task
    def outer() -> int:
        return inner()

    runtime: Runtime = start(worker, threads=1)

    assert runtime.settings.threads == 1
    for task in (inner, outer):
        with pytest.raises(ExecutionFailed, match=r"RuntimeError: .*current\(\).gather"):
            task.submit().result(10)


# Values and codecs


def test_values_come_back_as_they_are_annotated(worker: Worker, start: Start) -> None:
    @worker.task
    def echo(order: Order, data: bytes, *extra: Size) -> tuple[Order, bytes, tuple[Size, ...]]:
        assert isinstance(order, Order)
        return order, data, extra

    start(worker)
    order = Order(UUID(int=7), datetime(2030, 1, 1, tzinfo=UTC), [Size.LARGE])

    assert echo.submit(order, b"\0\xff", Size.SMALL).result(10) == (order, b"\0\xff", (Size.SMALL,))


class Backwards:
    """A codec of one's own: the text of a value, written backwards."""

    name = "backwards"

    def encode(self, value: Any) -> bytes:
        return repr(value)[::-1].encode()

    def decode(self, data: bytes) -> Any:
        return eval(data.decode()[::-1], {})


@pytest.mark.parametrize("codec", ["json", "msgpack", Backwards()])
def test_arguments_steps_and_results_travel_in_the_chosen_codec(codec: Any, start: Start) -> None:
    worker = Worker("shop", "memory://", codec=codec)

    @worker.task
    def grow(order: Order, by: int) -> Order:
        sizes = current().step("sizes", more, order.sizes, by)
        return attrs.evolve(order, sizes=sizes)

    def more(sizes: list[Size], by: int) -> list[Size]:
        return sizes * by

    start(worker)
    order = Order(UUID(int=1), datetime(2030, 1, 1, tzinfo=UTC), [Size.SMALL])
    run = grow.submit(order, 2)

    assert run.result(10).sizes == [Size.SMALL, Size.SMALL]
    assert info_of(worker, run).codec == getattr(codec, "name", codec)
    worker.close()


def test_a_task_may_have_a_codec_of_its_own(worker: Worker, start: Start) -> None:
    task = worker.task(codec="msgpack")(add)
    start(worker)
    run = task.submit(1)

    assert run.result(10) == 2
    assert info_of(worker, run).codec == "msgpack"


def test_work_that_was_submitted_before_the_codec_changed_still_runs(start: Start) -> None:
    before = Worker("shop", "memory://codec-changes")
    run = before.task(add).submit(1)
    after = Worker("shop", "memory://codec-changes", codec="msgpack")
    task = after.task(add)
    start(after)

    assert run.result(10) == 2
    assert task.run(run.id).result(10) == 2
    before.close()
    after.close()


def test_pickle_is_used_only_by_name_and_with_a_warning(start: Start) -> None:
    with pytest.warns(RuntimeWarning, match="runs code in stored bytes"):
        worker = Worker("shop", "memory://", codec="pickle")

    @worker.task
    def kind(value: Any) -> Any:
        return type(value)

    start(worker)

    assert kind.submit({1, 2}).result(10) is set
    worker.close()


def test_no_other_codec_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Worker("shop", "memory://", codec="msgpack")
