"""Work whose worker was lost keeps why: with the attempt, and where it is given up."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.conftest import Clock
from tests.support.executions import LANE, LEASE, claim_one, claimed_ids, ids_in, info_of, running

KILLED = "killed by SIGKILL"


def held_by_w1(engine: Engine, partition: int, **changes: object) -> Claimed:
    """Provide work of a partition that a registered worker holds."""
    engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id="w1", lanes=(LANE,)))
    return running(engine, lane=LANE, execution_id=ids_in(engine, partition, 1)[0], **changes)


def why(engine: Engine, claimed: Claimed) -> str:
    return info_of(engine, claimed.execution_id).past_attempts[-1].error


@pytest.mark.parametrize("which", ["first", "last"])
def test_an_attempt_whose_worker_died_keeps_how_it_died(engine: Engine, clock: Clock, which: str) -> None:
    claimed = held_by_w1(engine, 0 if which == "first" else engine.partitions - 1)
    engine.mark_worker_dead("w1", KILLED)
    clock.move(LEASE)
    claim_one(engine)

    assert why(engine, claimed) == "worker w1: killed by SIGKILL"


def test_an_attempt_whose_worker_fell_silent_says_so(engine: Engine, clock: Clock) -> None:
    claimed = held_by_w1(engine, 0)
    clock.move(LEASE)
    claim_one(engine)

    assert why(engine, claimed) == "worker w1 stopped renewing its lease"


def test_an_attempt_whose_lease_was_revoked_says_so(engine: Engine) -> None:
    claimed = held_by_w1(engine, 0)
    engine.revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))
    claim_one(engine)

    assert why(engine, claimed) == "its lease was revoked"


def test_work_that_is_given_up_keeps_how_its_last_worker_died(engine: Engine, clock: Clock) -> None:
    claimed = held_by_w1(engine, engine.partitions - 1, policy=ExecutionPolicy(max_reclaim_count=0))
    engine.mark_worker_dead("w1", KILLED)
    clock.move(LEASE)
    assert claimed_ids(engine) == []

    outcome = engine.read_outcome(claimed.execution_id)
    assert outcome is not None
    assert (outcome.error, outcome.detail) == ("reclaims_exhausted", b"worker w1: killed by SIGKILL")


def test_what_is_known_of_a_death_is_forgotten_after_a_day(engine: Engine, clock: Clock) -> None:
    claimed = held_by_w1(engine, engine.partitions - 1)
    engine.mark_worker_dead("w1", KILLED)
    clock.move(timedelta(days=1, seconds=1))
    while engine.run_upkeep().handled:
        pass
    claim_one(engine)

    assert why(engine, claimed) == "worker w1 stopped renewing its lease"
