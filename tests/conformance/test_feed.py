"""feed: every end of an execution is told once, in order, to whoever follows."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter
from flowfabric_worker.engine.types.operating import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.conformance.work import (
    BOOM,
    created,
    damage,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    same_partition_ids,
    upkeep_all,
)
from tests.conftest import Clock
from tests.dumping import Dump
from tests.servers import wait_until

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
NOW = timedelta()


def told(engine: Engine, cursor: str | None = None, **arguments: Any) -> list[CompletionEvent]:
    """Every end that is in the feed now."""
    return list(engine.subscribe_completions(cursor, timeout=NOW, **arguments))


def ended(engine: Engine, **changes: Any) -> Any:
    """The id of an execution that was completed."""
    claimed = running(engine, **changes)
    engine.complete(claimed.handle)
    return claimed.execution_id


@contextmanager
def following(engine: Engine, **arguments: Any) -> Iterator[queue.Queue[CompletionEvent]]:
    """What a thread hears that follows the feed; it must have begun to wait before the block begins."""
    heard: queue.Queue[CompletionEvent] = queue.Queue()
    stopped = threading.Event()

    def follow() -> None:
        for event in engine.subscribe_completions(timeout=5 * SECOND, **arguments):
            heard.put(event)
            if stopped.is_set():
                return

    thread = threading.Thread(target=follow)
    thread.start()
    waits = raw_key(engine, engine.partitions - 1, "waiters")
    deadline = time.monotonic() + 5
    while not raw_client(engine, engine.partitions - 1).hlen(waits):
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.002)
    yield heard
    stopped.set()
    ended(engine)
    thread.join(10)
    assert not thread.is_alive()


# What is told

Ending = Callable[[Engine, Clock], Any]


def _expired(engine: Engine, clock: Clock) -> Any:
    execution = created(engine, policy=ExecutionPolicy(execution_deadline=SECOND))
    clock.move(SECOND)
    upkeep_all(engine)
    return execution


def _exhausted(engine: Engine, clock: Clock) -> Any:
    claimed = running(engine, lane="mail", policy=ExecutionPolicy(max_reclaim_count=0))
    clock.move(60 * SECOND)
    engine.claim_many(request("mail"))
    return claimed.execution_id


def _timed_out(engine: Engine, clock: Clock) -> Any:
    claimed = running(engine, policy=ExecutionPolicy(attempt_timeout=SECOND))
    clock.move(SECOND)
    upkeep_all(engine)
    return claimed.execution_id


def _failed(engine: Engine, classification: FailureClass) -> Any:
    claimed = running(engine)
    engine.fail(claimed.handle, BOOM, classification)
    return claimed.execution_id


def _given_up(engine: Engine, clock: Clock) -> Any:
    claimed = running(engine)
    engine.cancel(claimed.handle, "enough")
    return claimed.execution_id


def _cancelled(engine: Engine, clock: Clock) -> Any:
    return engine.cancel_execution(CancelExecutionArgs(execution_id=created(engine))).execution_id


ENDINGS: dict[str, tuple[Ending, TerminalOutcome]] = {
    "completed": (lambda engine, _: ended(engine), TerminalOutcome.SUCCESS),
    "failed": (lambda engine, _: _failed(engine, FailureClass.TRANSIENT), TerminalOutcome.FAILED),
    "failed as cancelled": (lambda engine, _: _failed(engine, FailureClass.CANCELLED), TerminalOutcome.CANCELLED),
    "cancelled by its holder": (_given_up, TerminalOutcome.CANCELLED),
    "cancelled by an operator": (_cancelled, TerminalOutcome.CANCELLED),
    "expired": (_expired, TerminalOutcome.EXPIRED),
    "timed out": (_timed_out, TerminalOutcome.FAILED),
    "reclaimed too often": (_exhausted, TerminalOutcome.FAILED),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_end_is_told_once(engine: Engine, clock: Clock, name: str) -> None:
    end, outcome = ENDINGS[name]

    execution = end(engine, clock)

    (event,) = told(engine)
    assert (event.execution_id, event.outcome, event.produced_at_ms) == (execution, outcome, clock.ms)


def test_an_end_is_told_with_lane_task_and_tags(engine: Engine) -> None:
    ended(engine, lane="etl", task="load", tags={"a": "1", "b": "ü"})

    (event,) = told(engine)

    assert (event.lane, event.task, event.tags) == ("etl", "load", {"a": "1", "b": "ü"})


def test_a_repeated_end_is_told_once(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle)
    engine.complete(claimed.handle)

    assert len(told(engine)) == 1


def test_what_does_not_end_is_not_told(engine: Engine, clock: Clock) -> None:
    created(engine)
    engine.release(running(engine).handle)
    running(engine)
    clock.move(timedelta(minutes=1))
    upkeep_all(engine)

    assert told(engine) == []


def test_an_end_after_a_replay_is_told_again(engine: Engine) -> None:
    execution = ended(engine, lane="mail")
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution))
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution))

    assert [(event.execution_id, event.outcome) for event in told(engine)] == [
        (execution, TerminalOutcome.SUCCESS),
        (execution, TerminalOutcome.CANCELLED),
    ]


def test_ends_are_told_in_their_order(engine: Engine) -> None:
    ids = same_partition_ids(engine, 30)
    handles = [running(engine, execution_id=execution).handle for execution in ids]
    for handle in reversed(handles):
        engine.complete(handle)

    assert [event.execution_id for event in told(engine)] == ids[::-1]


def test_the_order_survives_a_clock_that_goes_back(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 3)
    handles = [running(engine, execution_id=execution).handle for execution in ids]
    for handle in handles:
        engine.complete(handle)
        clock.move(-5 * SECOND)

    events = told(engine)

    assert [event.execution_id for event in events] == ids
    assert told(engine, events[1].cursor) == events[2:]


def test_two_namespaces_share_a_store_and_no_ends(engine: Engine, store_url: str) -> None:
    other = open_engine(store_url, namespace="tenant")
    mine, theirs = ended(engine), ended(other)

    assert [event.execution_id for event in told(engine)] == [mine]
    assert [event.execution_id for event in told(other)] == [theirs]
    other.close()


def test_more_ends_than_a_page_holds_are_all_told(engine: Engine) -> None:
    ids = {ended(engine) for _ in range(520)}

    assert {event.execution_id for event in told(engine)} == ids


# Where one goes on


def test_a_cursor_goes_on_behind_its_event_on_any_engine(engine: Engine, store_url: str) -> None:
    ids = [ended(engine) for _ in range(6)]
    events = told(engine)
    elsewhere = open_engine(store_url)

    for at, event in enumerate(events):
        rest = told(elsewhere, event.cursor)
        assert [each.execution_id for each in rest] == [each.execution_id for each in events[at + 1 :]]

    assert sorted(event.execution_id for event in events) == sorted(ids)
    assert told(elsewhere, "") == events
    elsewhere.close()


def test_a_subscription_that_is_taken_up_event_by_event_misses_nothing(engine: Engine) -> None:
    ids = {ended(engine) for _ in range(8)}

    seen = []
    cursor = None
    while True:
        event = next(iter(engine.subscribe_completions(cursor, timeout=NOW)), None)
        if event is None:
            break
        seen.append(event.execution_id)
        cursor = event.cursor

    assert set(seen) == ids
    assert len(seen) == len(ids)


def test_the_feeds_cursor_is_behind_everything_so_far(engine: Engine) -> None:
    for _ in range(5):
        ended(engine)
    cursor = engine.feed_cursor()
    assert told(engine, cursor) == []

    new = {ended(engine) for _ in range(5)}

    assert {event.execution_id for event in told(engine, cursor)} == new


def test_the_cursor_of_an_empty_feed_sees_everything_that_comes(engine: Engine) -> None:
    cursor = engine.feed_cursor()

    execution = ended(engine)

    assert [event.execution_id for event in told(engine, cursor)] == [execution]


@pytest.mark.parametrize(
    "cursor",
    ["x", "0", "0=", "0=1", "0=1-", "0=-1-0", "00=1-0", "0=1-0,", "0=1-0,0=1-0", "9999=1-0", "٣=1-0", "0=1-0\n",
     "0=" + "9" * 17 + "-0", "9" * 5000 + "=1-0", "0=+", 5, b"0=1-0", ["0=1-0"]],
)  # fmt: skip
def test_what_is_no_cursor_is_refused_at_once(engine: Engine, cursor: Any) -> None:
    with refused("invalid_cursor"):
        engine.subscribe_completions(cursor)


@pytest.mark.parametrize("timeout", [5, -SECOND, timedelta(days=40_000), "1s"])
def test_an_impossible_timeout_is_refused_at_once(engine: Engine, timeout: Any) -> None:
    with refused("invalid_input"):
        engine.subscribe_completions(timeout=timeout)
    with refused("invalid_input"):
        engine.wait_for_result(created(engine), timeout)


def test_a_cursor_below_what_is_kept_is_refused_at_once(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 3)
    for execution in ids[:2]:
        engine.complete(running(engine, execution_id=execution).handle)
    first, second = (event.cursor for event in told(engine))
    clock.move(DAY - SECOND)
    engine.complete(running(engine, execution_id=ids[2]).handle)
    upkeep_all(engine)
    assert [event.execution_id for event in told(engine, first)] == ids[1:]

    clock.move(timedelta(hours=2))
    upkeep_all(engine)

    with refused("cursor_expired") as caught:
        engine.subscribe_completions(first)
    assert caught.value.details["cursor"] == first.partition("=")[2]
    assert [event.execution_id for event in told(engine, second)] == [ids[2]]
    assert [event.execution_id for event in told(engine)] == [ids[2]]


def test_a_cursor_that_missed_nothing_holds_however_old_it_is(engine: Engine, clock: Clock) -> None:
    ids = [ended(engine) for _ in range(20)]
    cursor = told(engine)[-1].cursor
    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(30 * DAY)
    upkeep_all(engine)
    new = ended(engine)

    assert len(ids) == 20
    assert [event.execution_id for event in told(engine, cursor)] == [new]


def test_ends_leave_the_feed_after_a_day_and_leave_nothing_behind(engine: Engine, clock: Clock) -> None:
    for _ in range(5):
        ended(engine)

    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(timedelta(hours=1))
    upkeep_all(engine)

    assert told(engine) == []
    for partition in range(engine.partitions):
        assert not raw_client(engine, partition).exists(raw_key(engine, partition, "feed"))


def test_ids_go_on_behind_every_cursor_although_the_feed_was_trimmed_empty(engine: Engine, clock: Clock) -> None:
    ids = same_partition_ids(engine, 3)
    for execution in ids[:2]:
        engine.complete(running(engine, execution_id=execution).handle)
    cursor = told(engine)[-1].cursor
    clock.move(DAY + SECOND)
    upkeep_all(engine)
    clock.move(-2 * DAY)
    engine.complete(running(engine, execution_id=ids[2]).handle)

    assert [event.execution_id for event in told(engine, cursor)] == [ids[2]]


def test_a_damaged_entry_is_refused_and_can_be_passed(engine: Engine) -> None:
    ids = same_partition_ids(engine, 1)
    feed = raw_key(engine, ids[0].partition, "feed")
    raw_client(engine, ids[0].partition).xadd(feed, {"execution": "?", "outcome": "success", "class": "?"}, "5-0")
    engine.complete(running(engine, execution_id=ids[0]).handle)

    with refused("corruption") as caught:
        told(engine)

    assert [event.execution_id for event in told(engine, caught.value.details["cursor"])] == ids


# What one wants to hear


def test_a_filter_passes_what_fits_in_every_respect(engine: Engine) -> None:
    a = ended(engine, lane="a", task="t", tags={"x": "1", "y": "2"})
    b = ended(engine, lane="b", task="t", tags={"x": "1"})
    c = ended(engine, lane="b", task="u")
    cases: list[tuple[dict[str, Any], set[Any]]] = [
        ({}, {a, b, c}),
        ({"lanes": {"b"}}, {b, c}),
        ({"lanes": {"a", "b"}, "tasks": {"t"}}, {a, b}),
        ({"tasks": ["u"]}, {c}),
        ({"tags": {"x": "1"}}, {a, b}),
        ({"tags": {"x": "1", "y": "2"}}, {a}),
        ({"lanes": {"b"}, "tasks": {"t"}, "tags": {"x": "1"}}, {b}),
        ({"lanes": {"nowhere"}}, set()),
    ]

    for wanted, expected in cases:
        assert {event.execution_id for event in told(engine, filter=CompletionFilter(**wanted))} == expected


@pytest.mark.parametrize("wanted", [{"lanes": "mail"}, {"tasks": [5]}, {"tags": "a=b"}])
def test_a_filter_of_a_wrong_kind_is_refused_when_it_is_made(wanted: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CompletionFilter(**wanted)


# Waiting


def test_a_subscription_ends_when_nothing_came_for_its_timeout(engine: Engine) -> None:
    ended(engine)
    began = time.monotonic()

    events = list(engine.subscribe_completions(timeout=timedelta(milliseconds=150)))

    assert len(events) == 1
    assert 0.15 <= time.monotonic() - began < 2


def test_a_subscription_is_woken_by_an_end(engine: Engine) -> None:
    with following(engine) as heard:
        began = time.monotonic()
        execution = ended(engine)

        assert heard.get(timeout=5).execution_id == execution
        assert time.monotonic() - began < 1


def test_two_subscribers_hear_the_same_and_one_that_comes_back_misses_nothing(engine: Engine) -> None:
    with following(engine) as first, following(engine) as second:
        ids = [ended(engine) for _ in range(3)]
        heard = [first.get(timeout=5) for _ in ids]
        assert [event.execution_id for event in heard] == [second.get(timeout=5).execution_id for _ in ids]
    ended(engine)

    again = {event.execution_id for event in told(engine, heard[0].cursor)}

    assert heard[0].execution_id not in again
    assert again >= {event.execution_id for event in heard[1:]}


def test_a_subscriber_that_waits_hears_ends_of_every_partition(engine: Engine) -> None:
    with following(engine) as heard:
        ids = {ended(engine) for _ in range(20)}

        assert {heard.get(timeout=5).execution_id for _ in ids} == ids


def test_a_subscriber_that_goes_leaves_nothing_behind(engine: Engine, clock: Clock, dump: Dump) -> None:
    assert told(engine) == []
    clock.move(timedelta(minutes=1))
    upkeep_all(engine)

    assert not [key for key in dump() if key.endswith((":waiting", ":waiters", ":due"))]


def test_what_is_read_of_an_end_is_what_was_told(engine: Engine) -> None:
    execution = ended(engine)
    damage(engine, execution, "tags", b"changed later")

    (event,) = told(engine)

    assert event.tags == {}


def test_closing_the_engine_ends_a_subscription_that_waits(engine: Engine, store_url: str, dump: Dump) -> None:
    other = open_engine(store_url)
    events: list[CompletionEvent] = []
    reader = threading.Thread(target=lambda: events.extend(other.subscribe_completions()))
    reader.start()
    wait_until(
        lambda: len([key for key in dump() if key.endswith(":waiters")]) == other.partitions, "it waits everywhere"
    )
    other.close()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert events == []
