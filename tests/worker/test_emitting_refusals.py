"""Values that a stream refuses, and threads and processes that may not emit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from flowfabric_worker import (
    DurableCallError,
    EncodingError,
    ExecutionFailed,
    Limits,
    Worker,
    current,
)
from tests.support.observation import info_of
from tests.support.places import SLOWLY, Place
from tests.support.streams import values_of
from tests.worker.conftest import RunAll, Start, each_way


def emits_a_large_value() -> None:
    current().emit("x" * 70_000)


def emits_an_object() -> None:
    current().emit(object())


def merges_a_large_patch() -> None:
    current().summary.merge({"text": "x" * 70_000})


def merges_an_object() -> None:
    current().summary.merge({"text": object()})


def merges_a_deep_patch() -> None:
    patch: Any = 1
    for _ in range(17):
        patch = {"a": patch}
    current().summary.merge(patch)


REFUSED: dict[Callable[[], None], str] = {
    emits_a_large_value: "an emitted value of 'shop.emits_a_large_value' has 70002 bytes; at most 65536 are allowed",
    emits_an_object: "An emitted value of emits_an_object.* cannot be encoded",
    merges_a_large_patch: "a summary patch of 'shop.merges_a_large_patch' has 70011 bytes; at most 65536",
    merges_an_object: "A summary patch of 'shop.merges_an_object' cannot be encoded at",
    merges_a_deep_patch: "'shop.merges_a_deep_patch' cannot merge a summary patch: .* nests more than 16 deep",
}


@pytest.mark.parametrize(("function", "message"), REFUSED.items(), ids=lambda each: getattr(each, "__name__", ""))
def test_what_no_frame_can_hold_fails_for_good_before_it_is_sent(
    place: Place, function: Callable[[], None], message: str
) -> None:
    task = place.worker.task(retry=SLOWLY)(function)
    with pytest.raises(EncodingError, match=message):
        task()
    place.start()
    run = task.submit()

    with pytest.raises(ExecutionFailed, match=message):
        run.result(10)
    assert info_of(place.worker, run).retry_count == 0
    assert values_of(run) == []
    assert run.summary() is None


@each_way
@pytest.mark.parametrize("caught", [(), (Exception,)])
def test_a_full_stream_fails_the_run_for_good(
    worker: Worker, start: Start, run_all: RunAll, caught: tuple[type[Exception], ...]
) -> None:
    worker._limits = Limits(durable_frames=5)
    worker.close()

    @worker.task(retry=SLOWLY)
    def talk() -> str:
        for number in range(7):
            with suppress(*caught):
                current().emit(number)
        return "ended"

    run_all(worker, start)
    run = talk.submit()
    if run_all.__name__ == "run_here":
        worker.run_until_idle()

    with pytest.raises(ExecutionFailed, match=r"stream_full: 'shop.talk' cannot .* At most 5 frames are allowed"):
        run.result(10)
    assert info_of(worker, run).retry_count == 0
    assert values_of(run) == list(range(5))


def test_a_thread_that_outlives_its_handler_cannot_emit(place: Place) -> None:
    over = threading.Event()
    refused: list[BaseException] = []

    @place.worker.task
    def leave() -> None:
        context = current()

        def late() -> None:
            over.wait(10)
            try:
                context.emit("late")
            except DurableCallError as error:
                refused.append(error)

        threads.append(threading.Thread(target=late))
        threads[0].start()

    threads: list[threading.Thread] = []
    place.start()
    run = leave.submit()
    run.result(10)
    over.set()
    threads[0].join(10)

    assert [str(error) for error in refused] == [
        f"The attempt of {run.id} has ended: a thread that it started cannot continue it."
    ]
    assert values_of(run) == []


@pytest.mark.parametrize("before", [0, 1])
def test_a_process_that_a_handler_forks_cannot_emit(served: Worker, start: Start, before: int) -> None:
    @served.task
    def talk() -> int:
        for number in range(before):
            current().emit(number)
        child = os.fork()
        if child == 0:
            with pytest.raises(DurableCallError, match="emitted in a forked process"):
                current().emit("in the child")
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        current().emit("in the handler")
        return code

    start(served, threads=1)
    run = talk.submit()

    assert run.result(20) == 7
    assert values_of(run) == [*range(before), "in the handler"]


def test_a_summary_that_grows_too_large_fails_the_run_for_good(place: Place) -> None:
    @place.worker.task(retry=SLOWLY)
    def grow() -> None:
        for number in range(20):
            current().summary.merge({str(number): "x" * 60_000})

    place.start()
    run = grow.submit()

    with pytest.raises(ExecutionFailed, match=r"invalid_patch: 'shop\.grow' .* bytes; at most 1048576 are allowed"):
        run.result(20)
    assert info_of(place.worker, run).retry_count == 0
    summary = run.summary()
    assert summary is not None
    assert len(summary.document) == 17
