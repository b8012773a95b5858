"""feed: every end of an execution reaches each subscriber once, in order."""

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
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.feed import CompletionEvent, CompletionFilter
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    created,
    damage,
    info_of,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    same_partition_ids,
    upkeep_all,
)
from tests.support.feed_reads import ended, told
from tests.support.servers import wait_until

SECOND = timedelta(seconds=1)


@contextmanager
def following(engine: Engine, **arguments: Any) -> Iterator[queue.Queue[CompletionEvent]]:
    """Provide what a thread hears that follows the feed; it must have begun to wait before the block begins."""
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
        assert time.monotonic() < deadline, "no caller waits"
        time.sleep(0.002)
    yield heard
    stopped.set()
    ended(engine)
    thread.join(10)
    assert not thread.is_alive()


# Reports

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
def test_every_end_is_announced_once(engine: Engine, clock: Clock, name: str) -> None:
    end, outcome = ENDINGS[name]

    execution = end(engine, clock)

    (event,) = told(engine)
    assert (event.execution_id, event.outcome, event.produced_at_ms) == (execution, outcome, clock.ms)


def test_an_end_is_told_with_lane_task_and_tags(engine: Engine) -> None:
    ended(engine, lane="etl", task="load", tags={"a": "1", "b": "ü"})

    (event,) = told(engine)

    assert (event.lane, event.task, event.tags) == ("etl", "load", {"a": "1", "b": "ü"})


def test_a_repeated_end_is_announced_once(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle)
    engine.complete(claimed.handle)

    assert len(told(engine)) == 1


def test_a_retry_or_a_delay_is_not_announced(engine: Engine, clock: Clock) -> None:
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


def test_ends_are_announced_in_their_order(engine: Engine) -> None:
    ids = same_partition_ids(engine, 30)
    handles = [running(engine, execution_id=execution).handle for execution in ids]
    for handle in reversed(handles):
        engine.complete(handle)

    assert [event.execution_id for event in told(engine)] == ids[::-1]


def test_an_end_tells_when_it_was_also_after_the_clock_went_back(engine: Engine, clock: Clock) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=first)
    created(engine, execution_id=second)
    engine.cancel_execution(CancelExecutionArgs(execution_id=first))
    clock.move(timedelta(seconds=-30))
    engine.cancel_execution(CancelExecutionArgs(execution_id=second))

    events = list(engine.subscribe_completions(timeout=timedelta()))

    assert [event.execution_id for event in events] == [first, second]
    assert [event.produced_at_ms for event in events] == [clock.ms + 30_000, clock.ms]
    assert info_of(engine, second).ended_at_ms == clock.ms


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


# Subscriptions


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


@pytest.mark.parametrize("timeout", [5, -SECOND, timedelta(days=40_000), "1s"])
def test_an_impossible_timeout_is_refused_at_once(engine: Engine, timeout: Any) -> None:
    with refused("invalid_input"):
        engine.subscribe_completions(timeout=timeout)
    with refused("invalid_input"):
        engine.wait_for_result(created(engine), timeout)


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


def test_two_subscribers_read_the_same_and_a_returning_one_misses_nothing(engine: Engine) -> None:
    with following(engine) as first, following(engine) as second:
        ids = [ended(engine, execution_id=each) for each in same_partition_ids(engine, 3)]
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
