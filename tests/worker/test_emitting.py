"""`current().emit` and `current().summary`: what a handler says while it runs, wherever it runs."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from flowfabric_worker import (
    ExecutionFailed,
    Run,
    StreamValue,
    Worker,
    current,
)
from flowfabric_worker._tasks.local_context import LocalContext
from flowfabric_worker.engine.types.streams import FrameAppend
from tests.support.observation import info_of
from tests.support.places import SLOWLY, SOON, Place
from tests.support.streams import values_of
from tests.worker.conftest import Start


def test_values_come_in_the_order_in_which_they_were_emitted(place: Place) -> None:
    @place.worker.task
    def count(most: int) -> str:
        for number in range(most):
            current().emit({"number": number})
        return "counted"

    place.start()
    run = count.submit(1200)

    assert values_of(run) == [{"number": number} for number in range(1200)]
    assert run.result(10) == "counted"


def test_a_run_that_emits_nothing_has_an_empty_stream(place: Place) -> None:
    @place.worker.task
    def quiet() -> None:
        pass

    place.start()

    assert values_of(quiet.submit()) == []


def test_a_retry_after_half_an_answer_is_marked(place: Place, times: Any) -> None:
    @place.worker.task(retry=SLOWLY)
    def write() -> None:
        again = next(times) > 1
        for letter in "abc":
            if letter == "c" and not again:
                raise ValueError(letter)
            current().emit(letter)

    place.start()

    assert values_of(write.submit()) == ["a", "b", [1], "a", "b", "c"]


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

    assert values_of(run) == ["a", "live", "b"]
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

    assert values_of(steps.submit()) == ["first", "in the step", "in the step that fails", "between", "last"]


def test_a_value_that_differs_after_a_sleep_does_not_replace_the_first(place: Place, times: Any) -> None:
    @place.worker.task
    def moody() -> None:
        current().emit(next(times))
        current().sleep(SOON)
        current().emit("last")

    place.start()

    assert values_of(moody.submit()) == [1, "last"]


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
    assert values_of(run) == []


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
    values = values_of(crowd.submit())

    for name in range(4):
        assert [number for who, number in values if who == name] == list(range(100))


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
    assert values_of(run, first.cursor) == ["live"]
    assert values_of(run, second.cursor) == []


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

    assert [values_of(run) for run in runs] == [list(range(500))] * 4
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
    assert values_of(run) == ["kept"]


def test_a_replayed_run_is_read_again_in_place(worker: Worker) -> None:
    @worker.task
    def talk() -> None:
        current().emit(current().attempt)

    with worker.eager():
        run = talk.submit()
        assert values_of(run) == [0]
        run.replay()

        assert values_of(run) == [0, [1], 1]


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
    assert values_of(run) == list(range(200))
    assert summary is not None
    assert (summary.document, summary.version) == ({"at": 199}, 200)
