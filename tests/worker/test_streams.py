"""`run.stream()`: readers of runs that are under way, over, retried, gone, and of streams that others write."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import (
    AttemptBegan,
    Client,
    DecodingError,
    EngineTimeoutError,
    ExecutionCancelled,
    NotFoundError,
    Run,
    StreamValue,
    ValidationError,
    ValuesDropped,
    Worker,
    current,
)
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.attempts import FailureClass
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.streams import BestEffortLiveConfig
from tests.support.executions import BOOM, RETRYING, claim_one, running
from tests.support.mailbox import Mailbox
from tests.support.servers import wait_until
from tests.support.streams import append_all, frame, live, patch
from tests.worker.conftest import Start

FEW = BestEffortLiveConfig(maxlen_floor=3, maxlen_ceiling=3)
AT_ONCE = timedelta()


def value(text: str, **changes: Any) -> Any:
    """Return a frame with a value that JSON encodes."""
    return frame(f'"{text}"', frame_type="value:json", **changes)


def few(text: str) -> Any:
    """Return a live frame of which three are kept."""
    return live(f'"{text}"', frame_type="value:json", live=FEW)


def shown(item: Any) -> str:
    """Return a value, or what a mark says."""
    match item:
        case StreamValue(shown):
            return str(shown)
        case AttemptBegan(attempt):
            return f"attempt {attempt}"
        case ValuesDropped(attempt):
            return f"dropped in {attempt}"
    raise AssertionError(item)


@pytest.fixture
def engine(worker: Worker) -> Engine:
    return worker.engine


def run_of(worker: Worker, claimed: Claimed) -> Run[Any]:
    """Return the run of an execution that a test holds."""
    return worker.task(lambda: None, name="any").run(claimed.execution_id)


# Cursors


def test_a_cursor_goes_on_in_its_attempt_and_through_the_next(worker: Worker, engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    append_all(engine, claimed.handle, [value(str(number)) for number in range(4)])
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=AT_ONCE)
    again = claim_one(engine, claimed.handle.lane)
    append_all(engine, again.handle, [value(letter) for letter in "abcde"])
    engine.complete(again.handle)
    run = run_of(worker, claimed)
    items = list(run.stream())

    texts = ["0", "1", "2", "3", "attempt 1", "a", "b", "c", "d", "e"]
    assert [shown(item) for item in items] == texts
    for place, item in enumerate(items):
        assert [shown(each) for each in run.stream(item.cursor)] == texts[place + 1 :]
    assert list(run.stream(items[1].cursor)) == items[2:]


@pytest.mark.parametrize("cursor", ["", "0", "start", ":::", "x" * 1000, 7, b"0:0:0-0"])
def test_a_damaged_cursor_is_refused(worker: Worker, engine: Engine, cursor: Any) -> None:
    run = run_of(worker, running(engine))

    with pytest.raises(ValidationError, match="is not the cursor of an item of a stream"):
        run.stream(cursor)


def test_a_cursor_of_another_run_is_refused(worker: Worker, engine: Engine) -> None:
    first, second = running(engine), running(engine)
    append_all(engine, first.handle, [value("a")])
    run = run_of(worker, first)
    cursor = next(run.stream()).cursor

    with pytest.raises(ValidationError, match="is a cursor of another run than"):
        worker.tasks["any"].run(second.execution_id).stream(cursor)


def test_reconnecting_without_news_keeps_the_cursor(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [value("a"), value("b")])
    run = run_of(worker, claimed)
    reader = run.stream()
    next(reader)
    place = next(reader).cursor
    for _ in range(2):
        reader = run.stream(place, timeout=0)
        with pytest.raises(EngineTimeoutError):
            next(reader)
        assert reader.cursor == place
    append_all(engine, claimed.handle, [value("c")])

    assert shown(next(reader)) == "c"


def test_the_end_of_a_long_stream_is_read_after_the_run(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [value(str(number)) for number in range(100)])
    engine.complete(claimed.handle)
    run = run_of(worker, claimed)
    items = list(run.stream())

    assert [shown(item) for item in run.stream(items[59].cursor)] == [str(number) for number in range(60, 100)]


# Marks


def test_a_reader_that_is_late_is_told_once_that_live_values_are_gone(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [value("kept"), *(few(str(number)) for number in range(10)), value("last")])
    run = run_of(worker, claimed)
    reader = run.stream(timeout=1)
    items = [next(reader) for _ in range(6)]

    assert [shown(item) for item in items] == ["dropped in 0", "kept", "7", "8", "9", "last"]
    assert [item.live for item in items if isinstance(item, StreamValue)] == [False, True, True, True, False]
    append_all(engine, claimed.handle, [few(str(number)) for number in range(10, 12)])
    assert [shown(next(reader)) for _ in range(2)] == ["10", "11"]
    append_all(engine, claimed.handle, [few(str(number)) for number in range(12, 20)])
    assert [shown(next(reader)) for _ in range(4)] == ["dropped in 0", "17", "18", "19"]
    inside = run.stream(items[2].cursor)
    assert shown(next(inside)) == "dropped in 0"


def test_patches_of_a_summary_are_not_shown_and_their_loss_neither(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    patches = [patch(f'{{"at":{number}}}', frame_type="patch") for number in range(300)]
    append_all(engine, claimed.handle, [value("a"), *patches, value("b")])
    engine.complete(claimed.handle)

    assert [shown(item) for item in run_of(worker, claimed).stream()] == ["a", "b"]


def test_an_attempt_that_never_begins_has_no_mark(worker: Worker, engine: Engine) -> None:
    claimed = running(engine, policy=RETRYING)
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT, retry_after=timedelta(hours=1))
    run = run_of(worker, claimed)
    reader = run.stream(timeout=0.05)
    with pytest.raises(EngineTimeoutError):
        next(reader)
    run.cancel()

    assert list(reader) == []
    assert list(run.stream()) == []


# What others wrote


def test_frames_of_others_come_as_bytes(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame(b"\xff\x00"), value("a")])
    engine.complete(claimed.handle)

    assert [item.value for item in run_of(worker, claimed).stream() if isinstance(item, StreamValue)] == [
        b"\xff\x00",
        "a",
    ]


def test_a_value_that_cannot_be_decoded_raises_and_the_next_ones_come(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    unknown = frame("x", frame_type="value:strange")
    append_all(engine, claimed.handle, [frame("{", frame_type="value:json"), unknown, value("a")])
    reader = run_of(worker, claimed).stream()

    for _ in range(2):
        with pytest.raises(DecodingError):
            next(reader)
    assert shown(next(reader)) == "a"


def test_a_client_without_code_reads_values_and_summary(served: Worker, served_url: str, start: Start) -> None:
    @served.task(codec="msgpack")
    def talk() -> None:
        current().emit({"a": [1]})
        current().summary.merge({"b": 2})

    start(served)
    run = talk.submit()
    with Client(served_url) as client:
        assert [item.value for item in client.stream(run.id, timeout=10) if isinstance(item, StreamValue)] == [
            {"a": [1]}
        ]
        run.result(10)
        summary = client.summary(str(run.id))
    assert summary is not None
    assert summary.document == {"b": 2}


# Ends


def test_a_run_that_does_not_exist_has_no_stream(worker: Worker, engine: Engine) -> None:
    claimed = running(engine)
    append_all(engine, claimed.handle, [value("a")])
    engine.complete(claimed.handle)
    run = run_of(worker, claimed)
    engine.purge(claimed.execution_id)

    for read in (lambda: list(run.stream()), run.summary):
        with pytest.raises(NotFoundError) as caught:
            read()
        assert caught.value.code == "execution_not_found"


def test_a_stream_ends_when_its_run_expires(worker: Worker, start: Start) -> None:
    @worker.task(deadline=timedelta(seconds=0.3))
    def endless() -> None:
        current().emit("begun")
        current().cancelled.wait(10)

    start(worker)
    run = endless.submit()

    assert [shown(item) for item in run.stream(timeout=10)] == ["begun"]
    assert run.state() is PublicState.EXPIRED


def test_a_stream_can_be_opened_before_the_run_begins(served: Worker, start: Start) -> None:
    @served.task
    def talk() -> float:
        at = time.monotonic()
        current().emit("now")
        current().cancelled.wait(0.5)
        return at

    run = talk.submit()
    times: list[float] = []

    def read() -> None:
        times.extend(time.monotonic() for _ in run.stream(timeout=10))

    reader = threading.Thread(target=read)
    reader.start()
    start(served)
    emitted_at = run.result(10)
    reader.join(10)

    assert not reader.is_alive()
    assert len(times) == 1
    assert times[0] - emitted_at < 0.4


def test_a_stream_goes_on_over_a_suspension_without_a_mark(served: Worker, start: Start) -> None:
    mailbox = Mailbox(served)

    @served.task
    def talk() -> None:
        current().emit("asked")
        mailbox.post(current().waitpoint("answer"))
        current().emit(current().wait_for("answer"))

    start(served)
    run = talk.submit()
    reader = run.stream(timeout=10)
    assert shown(next(reader)) == "asked"
    wait_until(lambda: run.state() is PublicState.SUSPENDED, "the run waits")
    mailbox.signal(mailbox.take(), "answer", "yes")

    assert [shown(item) for item in reader] == ["yes"]


def fails(run: Run[Any]) -> None:
    raise ValueError("boom")


def is_cancelled(run: Run[Any]) -> None:
    run.cancel()
    current().cancelled.wait(10)


@pytest.mark.parametrize("ending", [fails, is_cancelled])
def test_a_stream_without_values_ends_with_its_run(
    served: Worker, start: Start, ending: Callable[[Run[Any]], None]
) -> None:
    @served.task
    def quiet() -> None:
        ending(quiet.run(current().id))

    run = quiet.submit()
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.extend(run.stream(timeout=10)))
    reader.start()
    start(served)
    reader.join(10)

    assert not reader.is_alive()
    assert found == []


def test_a_stream_of_a_run_that_is_cancelled_before_it_begins_ends(served: Worker) -> None:
    @served.task
    def never() -> None:
        """Wait in the lane, because no worker runs it."""

    served.engine.prepare()
    run = never.submit()
    found: list[Any] = ["not read"]
    reader = threading.Thread(target=lambda: found.__setitem__(slice(None), list(run.stream(timeout=10))))
    reader.start()
    tails = served.engine.listener._tails
    wait_until(lambda: tails.get(str(run.id)), "the reader waits")
    run.cancel()
    reader.join(5)

    assert not reader.is_alive()
    assert found == []
    with pytest.raises(ExecutionCancelled):
        run.result(1)


def test_a_timeout_leaves_the_iteration_usable(served: Worker, start: Start) -> None:
    goes_on = threading.Event()

    @served.task
    def slow() -> None:
        goes_on.wait(10)
        current().emit("late")

    start(served)
    reader = slow.submit().stream(timeout=timedelta(seconds=0.1))
    with pytest.raises(EngineTimeoutError, match=r"emitted nothing within 0\.1 s; it continues"):
        next(reader)
    goes_on.set()
    found = []
    while not found:
        try:
            found = [shown(item) for item in reader]
        except EngineTimeoutError:
            continue
    assert found == ["late"]


def test_reading_a_stream_inside_a_handler_is_refused(worker: Worker, start: Start) -> None:
    @worker.task
    def reads() -> str:
        try:
            reads.run(current().id).stream()
        except RuntimeError as error:
            return str(error)
        return ""

    start(worker)

    assert "inside a handler would block its thread" in reads.submit().result(10)
