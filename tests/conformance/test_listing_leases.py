"""Listings of the executions whose leases expired."""

from __future__ import annotations

from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.partitions import partition_key
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from tests.conftest import Clock
from tests.support.executions import (
    claim_one,
    damage,
    running,
    upkeep_all,
)

SECOND = timedelta(seconds=1)


def test_expired_and_revoked_leases_are_listed_until_the_next_claim(engine: Engine, clock: Clock) -> None:
    lapsing = running(engine, lane="a", lease=5 * SECOND)
    revoked = running(engine, lane="b", worker="w2")
    held = running(engine, lane="c")
    engine.revoke_lease(RevokeLeaseArgs(execution_id=revoked.execution_id))
    clock.move(5 * SECOND)

    before = engine.list_expired_leases().leases
    upkeep_all(engine)
    after = engine.list_expired_leases().leases

    by_id = {lease.execution_id: lease for lease in after}
    assert before == after
    assert set(by_id) == {lapsing.execution_id, revoked.execution_id}
    assert by_id[lapsing.execution_id].expired_at_ms == clock.ms
    assert by_id[lapsing.execution_id].lease_epoch == 1
    assert by_id[revoked.execution_id].worker_instance_id == "w2"
    claim_one(engine, "a")
    claim_one(engine, "b")
    assert engine.list_expired_leases().leases == ()
    engine.complete(held.handle)


def test_expired_leases_are_paged_and_listed_per_partition(engine: Engine, clock: Clock) -> None:
    ids = sorted(running(engine).execution_id for _ in range(5))
    clock.move(timedelta(minutes=1))

    seen = []
    cursor = None
    while True:
        page = engine.list_expired_leases(cursor=cursor, limit=2)
        seen += [lease.execution_id for lease in page.leases]
        cursor = page.next_cursor
        if cursor is None:
            break
    first = engine.list_expired_leases(partition=partition_key(ids[0].partition_number)).leases

    assert seen == ids
    assert [lease.execution_id for lease in first] == [
        each for each in ids if each.partition_number == ids[0].partition_number
    ]


def test_a_damaged_execution_hides_no_expired_lease(engine: Engine, clock: Clock) -> None:
    held = [running(engine).execution_id for _ in range(3)]
    damage(engine, sorted(held)[0], "state", b"what is this?")
    damage(engine, sorted(held)[1], "holder", b"what is this?")
    clock.move(timedelta(minutes=1))

    assert [lease.execution_id for lease in engine.list_expired_leases().leases] == [sorted(held)[2]]
