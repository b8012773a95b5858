"""Schedules: many of them in one call."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ContentionError, ValidationError
from flowfabric_worker.engine.partitions import partition_of_names
from flowfabric_worker.engine.types.schedules import (
    MAX_TICKED,
    AlreadyTicked,
    Paused,
    Registered,
    Ticked,
)
from tests.conftest import Clock
from tests.support.executions import creation, raw_client, raw_key
from tests.support.lossy_store import LosingStore, empty_store_beside
from tests.support.operations import SECOND, START, beat
from tests.support.schedules import executions

pytestmark = pytest.mark.usefixtures("clock")


def test_many_schedules_are_answered_each_by_itself_in_their_order(engine: Engine, clock: Clock) -> None:
    names = [f"s{number:03}" for number in range(250)]
    engine.tick_schedules([beat(name=name) for name in names])
    clock.move(2 * SECOND)
    engine.pause_schedule("s002")

    answers = engine.tick_schedules(
        [beat(1, 2, name=name) for name in names[:3]]
        + [beat(5, name="s003"), beat(1, after=-1, name="s004"), beat(1, name="new")]
        + [beat(1, name=name) for name in names[5:]]
    )

    kinds = [type(answer) for answer in answers]
    assert kinds[:6] == [Ticked, Ticked, Paused, ContentionError, AlreadyTicked, Registered]
    assert kinds[6:] == [Ticked] * 245
    assert len(executions(engine)) == 2 + 2 + 245


def test_a_damaged_schedule_keeps_no_other_of_its_call_from_ticking(engine: Engine, clock: Clock) -> None:
    names = ("alpha", "beat", "gamma")
    engine.tick_schedules([beat(name=name) for name in names])
    clock.move(3 * SECOND)
    partition = partition_of_names((engine.namespace, "beat"), engine.partitions)
    raw_client(engine, partition).hset(raw_key(engine, partition, "schedule"), "7:defaultbeat", "rubbish")

    answers = engine.tick_schedules([beat(1, name=name) for name in names])

    assert [type(answer).__name__ for answer in answers] == ["Ticked", "ValidationError", "Ticked"]


def test_a_schedule_of_invalid_work_does_not_keep_others_from_ticking(engine: Engine, clock: Clock) -> None:
    engine.tick_schedules([beat(name="alpha"), beat(name="beat")])
    clock.move(SECOND)
    wrong = creation(lane="")

    answers = engine.tick_schedules([beat(1, name="alpha", creation=wrong), beat(1)])

    assert [type(answer) for answer in answers] == [ValidationError, Ticked]


def test_one_call_of_a_function_handles_a_bounded_number_of_ticks(engine: Engine, clock: Clock) -> None:
    class Counting(LosingStore):
        """Counts calls, and how many arguments each has at most."""

        calls = 0

        def call(self, function: str, *rest: Any) -> Any:
            self.calls += function == "tick_schedules"
            return super().call(function, *rest)

    store = Counting(empty_store_beside(engine))
    tried = Engine(lambda: (store, 1))
    tried.prepare(testing=True)
    tried.set_clock(START)

    tried.tick_schedules([beat(name=f"s{number}") for number in range(2 * MAX_TICKED + 1)])

    assert store.calls == 3
