"""Calls that carry many items: what a full call leaves over goes out again, and a shutdown waits for all of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest

from flowfabric_worker.engine.batches import size_of
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, EngineTimeoutError
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.schedules import Ticked
from flowfabric_worker.engine.types.submission import Created
from tests.conftest import Clock
from tests.support.executions import BOOM, creation, request
from tests.support.lossy_store import LosingStore
from tests.support.operations import SECOND, beat

BATCH_FULL = [b"error", b"batch_full"]
WIDTHS = {"create_executions": 8, "complete_many": 3, "fail_many": 7, "release_many": 3, "renew_many": 3}


class Busy(LosingStore):
    """A store in front of a real one that handles few items in a call, as a server does that has much to do."""

    most = 7

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        width = WIDTHS.get(function)
        if width is None:
            return super().call(function, partition, arguments, timeout)
        replies = super().call(function, partition, arguments[: self.most * width], timeout)
        return [*replies, *[BATCH_FULL] * (len(arguments) // width - len(replies))]

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
        return [self.call(each.function, each.partition, each.arguments, timeout) for each in calls]


@pytest.fixture
def busy(engine: Engine) -> Engine:
    store = Busy(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()
    return tried


def test_everything_is_created_though_each_call_makes_a_few(busy: Engine) -> None:
    wanted = [creation(tags={"number": str(number)}) for number in range(100)]

    answers = busy.create_executions(wanted)

    assert all(isinstance(answer, Created) for answer in answers)
    made = {row.execution_id: row.tags["number"] for row in busy.list_executions(limit=1000).executions}
    assert [made[answer.execution_id] for answer in answers if isinstance(answer, Created)] == [
        each.tags["number"] for each in wanted
    ]


def test_every_end_and_renewal_is_made_though_each_call_makes_a_few(busy: Engine) -> None:
    busy.create_executions([creation() for _ in range(90)])
    handles = [each.handle for each in busy.claim_many(request(limit=90))]
    while len(handles) < 90:
        handles += [each.handle for each in busy.claim_many(request(limit=90))]
    ended, failed, released = handles[:30], handles[30:60], handles[60:]

    assert not [answer for answer in busy.renew_many(handles) if isinstance(answer, EngineError)]
    assert busy.complete_many([Completion(handle=each) for each in ended]) == [None] * 30
    failures = [Failure(handle=each, reason=BOOM, classification=FailureClass.PERMANENT) for each in failed]
    assert not [answer for answer in busy.fail_many(failures) if isinstance(answer, EngineError)]
    assert busy.release_many(released) == [True] * 30


def test_a_store_that_handles_nothing_is_not_asked_for_ever(engine: Engine) -> None:
    store = Busy(engine.store)
    store.most = 0
    tried = Engine(lambda: (store, None))
    tried.prepare()

    answers = tried.create_executions([creation() for _ in range(20)])

    assert {answer.code for answer in answers if isinstance(answer, EngineError)} == {"batch_full"}
    assert len(answers) == 20


def test_ticks_of_many_bytes_are_all_submitted(engine: Engine, clock: Clock) -> None:
    payload = b"x" * (900 * 1024)
    names = [f"beat {number}" for number in range(12)]
    for name in names:
        engine.tick_schedule(beat(name=name))
    clock.move(3 * SECOND)

    answers = engine.tick_schedules([beat(1, name=name, creation=creation(payload=payload)) for name in names])

    assert all(isinstance(answer, Ticked) for answer in answers)
    assert len(engine.list_executions().executions) == 12


def test_sizes_are_counted_in_bytes() -> None:
    assert size_of(["ü" * 1000, b"x" * 10, 5]) >= 2010


def test_a_shutdown_waits_for_a_batch_that_is_under_way(engine: Engine) -> None:
    entered, may_go_on = threading.Event(), threading.Event()

    class Slow(LosingStore):
        def call(
            self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
        ) -> Reply:
            if function == "create_executions":
                entered.set()
                assert may_go_on.wait(30)
            return super().call(function, partition, arguments, timeout)

        def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Reply | EngineError]:
            entered.set()
            assert may_go_on.wait(30)
            return super().call_many(calls, timeout)

    store = Slow(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()
    thread = threading.Thread(target=lambda: tried.create_executions([creation() for _ in range(600)]))
    thread.start()
    assert entered.wait(30)

    with pytest.raises(EngineTimeoutError, match="1 calls"):
        tried.shutdown_prepare(timedelta())
    may_go_on.set()
    thread.join(30)

    tried.shutdown_prepare(timedelta())
    assert len(engine.list_executions(limit=1000).executions) == 600
