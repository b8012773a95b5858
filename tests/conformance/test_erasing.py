"""A store for tests can be erased, whatever it holds; one for real work cannot."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from tests.conftest import Clock
from tests.support.dumps import Dump, dump_of
from tests.support.executions import created, creation, refused
from tests.support.lossy_store import empty_store_beside
from tests.support.operations import OPERATIONS, START

CLOSING = ("shutdown_prepare",)


@pytest.mark.parametrize("case", [case for case in OPERATIONS if case not in CLOSING])
def test_whatever_an_operation_left_is_erased(engine: Engine, dump: Dump, case: str) -> None:
    engine.set_clock(START)
    OPERATIONS[case](engine)()

    engine.erase()

    assert dump() == {}


def test_a_store_that_holds_much_is_erased_whole(engine: Engine, dump: Dump) -> None:
    lanes = [f"lane-{number}" for number in range(600)]
    engine.create_executions([creation(lane=lane, idempotency_key=lane) for lane in lanes])
    for lane in lanes[:5]:
        engine.pause_lane(f"paused-{lane}")

    engine.erase()

    assert dump() == {}


def test_an_erased_store_can_be_set_up_again(engine: Engine, clock: Clock) -> None:
    created(engine, idempotency_key="k")
    clock.move(timedelta(hours=1))

    engine.erase()

    assert engine.prepare(testing=True).created
    assert list(engine.list_executions().executions) == []


def test_erasing_one_store_leaves_its_neighbour_alone(engine: Engine, dump: Dump) -> None:
    created(engine)
    before = dump()
    store = empty_store_beside(engine)
    other = Engine(lambda: (store, engine.partitions))
    other.prepare(testing=True)
    created(other)

    other.erase()

    assert dump_of(other) == {}
    assert dump() == before


def test_a_store_for_real_work_is_not_erased(engine: Engine) -> None:
    store = empty_store_beside(engine)
    other = Engine(lambda: (store, engine.partitions))
    execution_id = created(other)

    with refused("configuration_mismatch"):
        other.erase()
    with refused("configuration_mismatch"):
        other.call("erase", 0, [1])

    assert other.read_execution_state(execution_id) == "waiting"
