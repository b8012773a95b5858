"""Creating the same execution again: by its id or its key, and for how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import DEFAULT_DEDUP_WINDOW_MS
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, Duplicate
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, claim_one, created, creation, info_of, refused, upkeep_all

SECOND = timedelta(seconds=1)
MILLISECOND = timedelta(milliseconds=1)
DEDUP_WINDOW = timedelta(milliseconds=DEFAULT_DEDUP_WINDOW_MS)


def end(engine: Engine, execution_id: ExecutionId, how: str) -> None:
    """End a waiting execution."""
    if how == "cancelled":
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))
    elif how == "failed":
        engine.fail(claim_one(engine).handle, BOOM, FailureClass.PERMANENT)
    else:
        engine.complete(claim_one(engine).handle)


def test_a_second_creation_under_the_same_id_is_a_duplicate(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine, execution_id=ExecutionId.mint(engine.partitions))
    before = dump()

    result = engine.create_execution(creation(execution_id=execution_id))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert dump() == before


def test_a_second_creation_under_the_same_key_is_a_duplicate(engine: Engine, dump: Dump) -> None:
    execution_id = created(engine, idempotency_key="order-7")
    before = dump()

    result = engine.create_execution(creation(idempotency_key="order-7"))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert dump() == before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"priority": 9, "tags": {"a": "b"}, "lane": "other"}, True),
        ({"payload": b"other"}, False),
        ({"payload": None}, False),
        ({"payload": b""}, False),
        ({"codec": "msgpack"}, False),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("named_by", ["id", "key", "id of another"])
def test_a_duplicate_tells_whether_the_same_was_asked_for(
    engine: Engine, named_by: str, change: dict[str, Any], same: bool
) -> None:
    naming: dict[str, Any] = {"idempotency_key": "k"}
    if named_by == "id":
        naming = {"execution_id": ExecutionId.mint(engine.partitions)}
    if named_by == "id of another":
        # The first request had neither id nor key.
        execution_id = created(engine)
        naming = {"execution_id": execution_id}
    else:
        execution_id = created(engine, **naming)

    result = engine.create_execution(creation(**naming, **change))

    assert result == Duplicate(execution_id=execution_id, same_request=same)


def test_an_id_answers_whether_another_task_has_it(engine: Engine) -> None:
    execution_id = created(engine)

    result = engine.create_execution(creation(execution_id=execution_id, task="other"))

    assert result == Duplicate(execution_id=execution_id, same_request=False)


def test_a_key_stands_for_one_execution_of_each_task(engine: Engine) -> None:
    first = created(engine, task="charge", idempotency_key="order-7")
    second = created(engine, task="send", idempotency_key="order-7")

    assert first != second
    for task, execution_id in (("charge", first), ("send", second)):
        answer = engine.create_execution(creation(task=task, idempotency_key="order-7"))
        assert answer == Duplicate(execution_id=execution_id, same_request=True)


def test_one_call_may_use_a_key_once_for_each_task(engine: Engine) -> None:
    answers = engine.create_executions([creation(task=task, idempotency_key="k") for task in ("charge", "send")])

    assert [type(answer) for answer in answers] == [Created, Created]
    with refused("duplicate_in_call"):
        engine.create_executions([creation(idempotency_key="k"), creation(idempotency_key="k")])


def test_a_key_whose_execution_was_replayed_stands_for_it_until_it_ends(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(dedup_window=SECOND)
    execution_id = created(engine, idempotency_key="k", policy=policy)
    end(engine, execution_id, "failed")
    engine.replay_execution(ReplayExecutionArgs(execution_id=execution_id))
    clock.move(2 * SECOND)

    answer = engine.create_execution(creation(idempotency_key="k", policy=policy))

    assert answer == Duplicate(execution_id=execution_id, same_request=True)


def test_a_key_is_unique_across_the_lanes_of_a_namespace(engine: Engine) -> None:
    execution_id = created(engine, lane="one", idempotency_key="k")

    assert engine.create_execution(creation(lane="two", idempotency_key="k")) == Duplicate(
        execution_id=execution_id, same_request=True
    )


def test_a_key_with_another_id_answers_with_the_first_id(engine: Engine) -> None:
    execution_id = created(engine, idempotency_key="k")
    other = ExecutionId(execution_id.partition_number, ExecutionId.mint().uuid)

    result = engine.create_execution(creation(idempotency_key="k", execution_id=other))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
    assert engine.describe_execution(other) is None


def test_a_key_stands_for_its_execution_also_after_that_ended(engine: Engine) -> None:
    execution_id = created(engine, idempotency_key="k")
    engine.complete(claim_one(engine).handle)

    assert isinstance(engine.create_execution(creation(idempotency_key="k")), Duplicate)
    assert info_of(engine, execution_id).public_state is PublicState.COMPLETED


@pytest.mark.parametrize("window", [None, timedelta(minutes=1)], ids=str)
@pytest.mark.parametrize("ended", ["completed", "failed", "cancelled"])
@pytest.mark.parametrize("kept", [False, True], ids=["alone", "with upkeep"])
def test_a_key_is_free_when_its_window_is_over(
    engine: Engine, clock: Clock, window: timedelta | None, ended: str, kept: bool
) -> None:
    first = creation(idempotency_key="k", policy=ExecutionPolicy(dedup_window=window, retention=timedelta(days=30)))
    execution_id = created(engine, idempotency_key="k", policy=first.policy)
    end(engine, execution_id, ended)

    clock.move((window or DEDUP_WINDOW) - MILLISECOND)
    assert isinstance(engine.create_execution(first), Duplicate)
    clock.move(MILLISECOND)
    if kept:
        upkeep_all(engine)
    result = engine.create_execution(first)

    assert isinstance(result, Created)
    assert result.execution_id != execution_id
    assert engine.describe_execution(execution_id) is not None


def test_the_end_of_an_old_window_leaves_the_keys_next_execution_alone(engine: Engine, clock: Clock) -> None:
    policy = ExecutionPolicy(dedup_window=SECOND)
    engine.cancel_execution(CancelExecutionArgs(execution_id=created(engine, idempotency_key="k", policy=policy)))
    clock.move(SECOND)
    second = created(engine, idempotency_key="k", policy=policy)

    upkeep_all(engine)

    assert engine.create_execution(creation(idempotency_key="k", policy=policy)) == Duplicate(
        execution_id=second, same_request=True
    )


def test_an_id_stays_taken_when_the_window_of_its_key_is_over(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine, idempotency_key="k", policy=ExecutionPolicy(dedup_window=SECOND))
    end(engine, execution_id, "cancelled")
    clock.move(SECOND)
    upkeep_all(engine)

    result = engine.create_execution(creation(idempotency_key="k", execution_id=execution_id))

    assert result == Duplicate(execution_id=execution_id, same_request=True)
