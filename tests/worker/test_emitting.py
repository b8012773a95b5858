"""`current().emit` and `current().summary`: what a handler says while it runs, wherever it runs."""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptBegan,
    DurableCallError,
    EncodingError,
    ExecutionFailed,
    Limits,
    Run,
    StreamValue,
    Worker,
    current,
)
from flowfabric_worker._tasks.local_context import LocalContext
from flowfabric_worker.engine.types.streams import FrameAppend
from tests.support.observation import info_of
from tests.support.places import SLOWLY, SOON, Place
from tests.worker.conftest import RunAll, Start, each_way


def told(run: Run[Any], after: str | None = None) -> list[Any]:
    """Return the values of a stream, and for each further attempt its number in brackets."""
    return [
        [item.attempt] if isinstance(item, AttemptBegan) else getattr(item, "value", item)
        for item in run.stream(after, timeout=10)
    ]


def test_values_come_in_the_order_in_which_they_were_emitted(place: Place) -> None:
    @place.worker.task
    def count(most: int) -> str:
        for number in range(most):
            current().emit({"number": number})
        return "counted"

    place.start()
    run = count.submit(1200)

    assert told(run) == [{"number": number} for number in range(1200)]
    assert run.result(10) == "counted"


def test_a_run_that_emits_nothing_has_an_empty_stream(place: Place) -> None:
    @place.worker.task
    def quiet() -> None:
        pass

    place.start()

    assert told(quiet.submit()) == []


def test_a_retry_after_half_an_answer_is_marked(place: Place, times: Any) -> None:
    @place.worker.task(retry=SLOWLY)
    def write() -> None:
        again = next(times) > 1
        for letter in "abc":
            if letter == "c" and not again:
                raise ValueError(letter)
            current().emit(letter)

    place.start()

    assert told(write.submit()) == ["a", "b", [1], "a", "b", "c"]


def test_a_run_that_sleeps_repeats_nothing_that_it_emitted(place: Place) -> None:
    @place.worker.task
    def nap() -> None:
        current().emit("a")
        current().emit("live", live=True)
        current().summary.merge({"naps": 1})
        current().sleep(SOON)
        current().emit("b")

    place.start()
    run = nap.submit()

    assert told(run) == ["a", "live", "b"]
    summary = run.summary()
    assert summary is not None
    assert (summary.document, summary.version, summary.attempt) == ({"naps": 1}, 1, 0)


def test_what_a_step_emitted_keeps_its_place_when_the_step_is_skipped(place: Place) -> None:
    def work() -> None:
        current().emit("in the step")

    def trouble() -> None:
        current().emit("in the step that fails")
        raise KeyError

    @place.worker.task
    def steps() -> None:
        current().emit("first")
        current().step("work", work)
        with pytest.raises(KeyError):
            current().step("trouble", trouble)
        current().emit("between")
        current().sleep(SOON)
        current().emit("last")

    place.start()

    assert told(steps.submit()) == ["first", "in the step", "in the step that fails", "between", "last"]


def test_a_value_that_differs_after_a_sleep_does_not_replace_the_first(place: Place, times: Any) -> None:
    @place.worker.task
    def moody() -> None:
        current().emit(next(times))
        current().sleep(SOON)
        current().emit("last")

    place.start()

    assert told(moody.submit()) == [1, "last"]


def test_patches_of_the_summary_are_merged_in_order(place: Place) -> None:
    @place.worker.task
    def sums() -> None:
        summary = current().summary
        summary.merge({"title": "a", "author": {"given": "b", "family": "c"}, "tags": ["d"]})
        summary.merge({"title": None, "author": {"family": None}, "tags": [], "large": 12345678901234567890})

    place.start()
    run = sums.submit()
    run.result(10)
    summary = run.summary()

    assert summary is not None
    assert summary.document == {"author": {"given": "b"}, "tags": [], "large": 12345678901234567890}
    assert summary.version == 2
    assert told(run) == []


def test_a_run_without_patches_has_no_summary(place: Place) -> None:
    @place.worker.task
    def quiet() -> None:
        pass

    place.start()
    run = quiet.submit()
    assert run.summary() is None
    run.result(10)
    assert run.summary() is None
    assert run.summary(attempt=3) is None


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
    assert told(run) == []
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
    assert told(run) == list(range(5))


def test_values_of_several_threads_of_a_handler_are_all_there(place: Place) -> None:
    @place.worker.task
    def crowd() -> None:
        def talk(name: int) -> None:
            for number in range(100):
                current().emit([name, number])

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(talk, name), daemon=True) for name in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    place.start()
    values = told(crowd.submit())

    for name in range(4):
        assert [number for who, number in values if who == name] == list(range(100))


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
    assert told(run) == []


def test_a_plain_call_collects_what_it_emits(worker: Worker) -> None:
    @worker.task
    def talk() -> tuple[list[Any], Any]:
        context = current()
        assert isinstance(context, LocalContext)
        context.emit([1])
        context.emit("two", live=True)
        context.summary.merge({"a": {"b": 1, "c": 2}})
        context.summary.merge({"a": {"c": None}})
        return context.emitted, context.document

    assert talk() == ([[1], "two"], {"a": {"b": 1}})


def test_items_carry_their_attempt_and_place_and_time(place: Place) -> None:
    @place.worker.task
    def talk() -> None:
        current().emit("kept")
        current().emit("live", live=True)

    place.start()
    run = talk.submit()
    first, second = run.stream(timeout=10)

    assert isinstance(first, StreamValue)
    assert isinstance(second, StreamValue)
    assert (first.value, first.attempt, first.live) == ("kept", 0, False)
    assert (second.value, second.attempt, second.live) == ("live", 0, True)
    assert first.emitted_at <= second.emitted_at
    assert told(run, first.cursor) == ["live"]
    assert told(run, second.cursor) == []


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
    assert told(run) == [*range(before), "in the handler"]


def test_values_of_several_handlers_go_out_together(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[set[str]] = []
    append = served.engine.append_frames

    def counted(appends: Sequence[FrameAppend]) -> Any:
        calls.append({str(each.handle.execution_id) for each in appends})
        return append(appends)

    @served.task
    def talk() -> None:
        for number in range(500):
            current().emit(number)

    monkeypatch.setattr(served.engine, "append_frames", counted)
    runs = talk.submit_many([()] * 4)
    start(served, threads=4)
    for run in runs:
        run.result(20)

    assert [told(run) for run in runs] == [list(range(500))] * 4
    assert len(calls) < 400
    assert max(map(len, calls)) > 1


def fails(run: Run[Any]) -> None:
    raise ValueError


def sleeps(run: Run[Any]) -> None:
    current().sleep(SOON)


def returns(run: Run[Any]) -> None:
    """Complete."""


@pytest.mark.parametrize("end", [fails, sleeps, returns])
def test_an_end_writes_back_no_old_progress_tags_or_output(place: Place, end: Callable[[Run[Any]], None]) -> None:
    @place.worker.task
    def work() -> None:
        run = work.run(current().id)
        if run.summary() is None:
            current().progress(90, "x")
            current().summary.merge({"a": 1})
            current().emit("kept")
            place.worker.engine.set_tags(run.id, {"by": "operator"})
        end(run)

    place.start()
    run = work.options(tags={"of": "submission"}).submit()
    with suppress(ExecutionFailed):
        run.result(10)
    info, summary = info_of(place.worker, run), run.summary()

    assert (info.progress_percent, info.progress_message) == (90, "x")
    assert info.tags == {"by": "operator", "of": "submission"}
    assert summary is not None
    assert summary.document == {"a": 1}
    assert told(run) == ["kept"]


def test_a_replayed_run_is_read_again_in_place(worker: Worker) -> None:
    @worker.task
    def talk() -> None:
        current().emit(current().attempt)

    with worker.eager():
        run = talk.submit()
        assert told(run) == [0]
        run.replay()

        assert told(run) == [0, [1], 1]


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


def test_patches_between_values_hold_up_other_handlers_only_shortly(
    served: Worker, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    append = served.engine.append_frames

    def counted(appends: Sequence[FrameAppend]) -> Any:
        sizes.append(len(appends))
        return append(appends)

    @served.task
    def talk() -> None:
        for number in range(200):
            current().emit(number)
            current().summary.merge({"at": number})

    monkeypatch.setattr(served.engine, "append_frames", counted)
    start(served, threads=1)
    run = talk.submit()
    run.result(20)
    summary = run.summary()

    assert max(sizes) <= 4
    assert told(run) == list(range(200))
    assert summary is not None
    assert (summary.document, summary.version) == ({"at": 199}, 200)
