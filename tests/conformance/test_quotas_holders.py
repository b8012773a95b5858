"""Holders of slots that were written wrongly: their slots are given back, and the others stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.quotas import SlotHold
from tests.conftest import Clock
from tests.support.executions import claim_one, claimed_ids, damage, upkeep_all
from tests.support.quotas import PLACES, check, hold, limited, placed, queued, running_now

MINUTE = timedelta(minutes=1)
NEVER, LATE = 0.0, 9e15


@pytest.fixture(autouse=True, params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test beside the quota, and with the executions in another partition."""
    with placed(request.param):
        yield


def holder_of(engine: Engine, execution: ExecutionId) -> str:
    """Return an execution as the holder of a slot that no claim took."""
    is_elsewhere = execution.partition_number != engine.home_of_quota("api")
    return f"{execution.uuid}@{execution.partition_number}@{uuid4()}" if is_elsewhere else str(execution.uuid)


def nonsense(engine: Engine, _: ExecutionId) -> str:
    return "nonsense" if engine.backend_label() != "postgresql" else str(uuid4())


def gone(engine: Engine, execution: ExecutionId) -> str:
    return holder_of(engine, execution).replace(str(execution.uuid), str(uuid4()))


def of_no_partition(engine: Engine, execution: ExecutionId) -> str:
    return f"{execution.uuid}@99@{uuid4()}"


def set_aside(engine: Engine, execution: ExecutionId) -> str:
    damage(engine, execution, "class", b"damaged")
    return holder_of(engine, execution)


HOLDERS = [nonsense, gone, of_no_partition, set_aside, holder_of]


@pytest.mark.parametrize("until", [NEVER, LATE], ids=["due", "late"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_slot_that_no_execution_holds_is_given_back(
    engine: Engine, clock: Clock, holder: Callable[[Engine, ExecutionId], str], until: float
) -> None:
    limited(engine, max_concurrent=1)
    waiting, other = queued(engine, 1)[0], queued(engine, 1, lane="other")[0]
    hold(engine, holder(engine, other), until)

    claimed = claimed_ids(engine)
    if not claimed:
        clock.move(2 * MINUTE)
        upkeep_all(engine)
        claimed = claimed_ids(engine)

    assert claimed == [waiting]
    assert running_now(engine) == 1


def test_a_hundred_wrong_holders_are_removed_within_minutes(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    for number in range(100):
        hold(engine, str(uuid4()), LATE if number < 8 else NEVER)
    (waiting,) = queued(engine, 1)

    claimed = claimed_ids(engine)
    for _ in range(3):
        clock.move(2 * MINUTE)
        upkeep_all(engine)
        claimed += claimed_ids(engine)

    # Its lease lapses in the meantime, and it is claimed again.
    assert set(claimed) == {waiting}
    assert running_now(engine) == 1


@pytest.mark.parametrize("kind", list(SlotHold))
def test_the_slots_of_running_work_stay_while_wrong_ones_are_given_back(
    engine: Engine, clock: Clock, kind: SlotHold
) -> None:
    limited(engine, max_concurrent=2, hold=kind)
    running, waiting = queued(engine, 2)
    held = claim_one(engine, lease=60 * MINUTE)
    assert held.execution_id == running
    hold(engine, str(uuid4()), LATE)
    assert claimed_ids(engine) in ([], [waiting])

    clock.move(2 * MINUTE)
    upkeep_all(engine)

    assert running_now(engine) <= 2
    claimed_ids(engine)
    assert running_now(engine) == 2
    engine.complete(held.handle, None)
    assert running_now(engine) == 1


def test_admission_by_hand_takes_a_slot_that_no_execution_holds(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    (waiting,) = queued(engine, 1, delay=60 * MINUTE)
    hold(engine, str(uuid4()), LATE)
    check(engine, waiting)

    clock.move(2 * MINUTE)
    upkeep_all(engine)

    assert check(engine, waiting).outcome.value in ("admitted", "already_admitted")
