"""Transitions that are due: each happens once, at its moment, by any process that is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed, ClaimForWorkerArgs
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.states import OwnershipState, PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    LEASE,
    claim_one,
    created,
    creation,
    depths,
    ids_in,
    info_of,
    refused,
    request,
    running,
    same_partition_ids,
)
from tests.support.lossy_store import AwayStore
from tests.support.maintenance import MILLISECOND, SECOND, HandleDue, by_claim, by_keeper, handled
from tests.support.phases import HOUR, Phases

RETRY = RetryPolicy(initial=10 * SECOND, maximum=10 * SECOND, jitter=False)
TIMEOUT = 5 * SECOND


# Each thing at its moment.


def parked_work(engine: Engine) -> Claimed:
    claimed = running(engine)
    engine.delay(claimed.handle, 10 * SECOND)
    return claimed


def failed_work(engine: Engine) -> Claimed:
    claimed = running(engine, policy=ExecutionPolicy(retry=RETRY))
    engine.fail(claimed.handle, BOOM, FailureClass.TRANSIENT)
    return claimed


@handled
@pytest.mark.parametrize(
    "make",
    [
        lambda engine: created(engine, delay=10 * SECOND),
        lambda engine: parked_work(engine).execution_id,
        lambda engine: failed_work(engine).execution_id,
    ],
    ids=["delay of the creation", "delay of the holder", "backoff"],
)
def test_a_delayed_execution_is_ready_exactly_when_it_is_due(
    engine: Engine, clock: Clock, make: Callable[[Engine], ExecutionId], handle_due: HandleDue
) -> None:
    execution_id = make(engine)
    clock.move(10 * SECOND - MILLISECOND)
    handle_due(engine)
    assert engine.read_execution_state(execution_id) is PublicState.DELAYED
    clock.move(MILLISECOND)
    handle_due(engine)
    assert engine.read_execution_state(execution_id) is PublicState.WAITING


@handled
def test_a_lease_lapses_exactly_when_it_expires(engine: Engine, clock: Clock, handle_due: HandleDue) -> None:
    claimed = running(engine)
    clock.move(LEASE - MILLISECOND)
    handle_due(engine)
    assert info_of(engine, claimed.execution_id).state.ownership_state is OwnershipState.LEASED
    clock.move(MILLISECOND)
    handle_due(engine)
    state = info_of(engine, claimed.execution_id).state
    assert state.ownership_state is OwnershipState.LEASE_EXPIRED_RECLAIMABLE
    again = claim_one(engine, claimed.handle.lane, worker="w2")
    assert (again.handle.kind, again.attempt_type, again.reclaim_count) == (HandleKind.RECLAIMED, "reclaim", 1)


def test_the_claim_that_comes_at_the_moment_gets_the_work(engine: Engine, clock: Clock) -> None:
    delayed = created(engine, lane="delayed", delay=10 * SECOND)
    backing_off = failed_work(engine)
    lost = running(engine, lease=10 * SECOND)
    clock.move(10 * SECOND - MILLISECOND)
    lanes = ("delayed", backing_off.handle.lane, lost.handle.lane)
    assert engine.claim_many(request(*lanes, limit=9)) == []
    clock.move(MILLISECOND)
    claimed = engine.claim_many(request(*lanes, limit=9, worker="w2"))
    ids = {each.execution_id for each in claimed}
    assert ids == {delayed, backing_off.execution_id, lost.execution_id}


def test_a_renewal_moves_the_lapse(engine: Engine, clock: Clock) -> None:
    handle = running(engine).handle
    for _ in range(3):
        clock.move(LEASE - MILLISECOND)
        by_keeper(engine)
        engine.renew(handle)
    clock.move(LEASE)
    with refused("lease_expired"):
        engine.renew(handle)


def test_a_renewal_leaves_nothing_due_at_the_old_moment(engine: Engine, clock: Clock) -> None:
    handle = running(engine, lease=5 * SECOND).handle
    clock.move(4 * SECOND)
    engine.renew(handle)
    clock.move(SECOND)
    # The claim, which is remembered as long as its first lease, is all that is due.
    result = engine.run_upkeep()
    assert (result.handled, result.more, result.next_due_in_ms) == (1, False, 4000)


# Much at once, and several at once.


def test_twenty_thousand_entries_due_at_once_are_handled_in_bounded_passes(engine: Engine, clock: Clock) -> None:
    for _ in range(40):
        engine.create_executions([creation(payload=None, delay=SECOND) for _ in range(500)])
    clock.move(SECOND)
    handled = 0
    for _ in range(20_000):
        result = engine.run_upkeep(500)
        # One partition holds them all, or each has its share; every pass has its bound and gets further.
        assert 0 < result.handled <= 500 * engine.partitions
        handled += result.handled
        if not result.more:
            break
    assert handled == 20_000
    assert depths(engine, LANE) == {PublicState.WAITING: 20_000}
    assert len(engine.claim_many(request(limit=500))) == 500


def test_due_executions_are_handled_oldest_first(engine: Engine, clock: Clock) -> None:
    first, second = same_partition_ids(engine, 2)
    created(engine, execution_id=second, delay=2 * SECOND)
    created(engine, execution_id=first, delay=SECOND)
    clock.move(HOUR)
    result = engine.run_upkeep(limit=1)
    assert (result.handled, result.more, result.next_due_in_ms) == (1, True, 0)
    assert engine.read_execution_state(first) is PublicState.WAITING
    assert engine.read_execution_state(second) is PublicState.DELAYED


def test_upkeep_says_when_something_is_due_next(engine: Engine, clock: Clock) -> None:
    created(engine, delay=10 * SECOND)
    result = engine.run_upkeep()
    assert (result.handled, result.more, result.next_due_in_ms) == (0, False, 10_000)
    clock.move(10 * SECOND - MILLISECOND)
    assert engine.run_upkeep().next_due_in_ms == 1


def test_upkeep_with_nothing_to_do_changes_nothing(engine: Engine, clock: Clock, dump: Dump) -> None:
    Phases(engine, clock).delayed()
    before = dump()
    assert engine.run_upkeep().handled == 0
    assert dump() == before


@pytest.mark.parametrize("limit", [0, 501, -1])
def test_upkeep_has_a_bound(engine: Engine, limit: int) -> None:
    with refused("invalid_input"):
        engine.run_upkeep(limit)


@pytest.fixture
def neighbour(engine: Engine, store_url: str) -> Iterator[Engine]:
    """Open the engine of another process on the same store."""
    assert engine.partitions
    neighbour = open_engine(store_url)
    yield neighbour
    neighbour.close()


def test_upkeep_by_two_engines_at_once_handles_everything_once(engine: Engine, neighbour: Engine, clock: Clock) -> None:
    engine.create_executions([creation(lane="delayed", delay=SECOND) for _ in range(300)])
    engine.create_executions([creation(lane="lost") for _ in range(300)])
    engine.claim_many(request("lost", limit=300, lease=SECOND))
    clock.move(SECOND)
    counts: list[int] = []

    def keep(engine: Engine) -> None:
        while (result := engine.run_upkeep(20)).handled or result.more:
            counts.append(result.handled)

    keepers = [threading.Thread(target=keep, args=(each,)) for each in (engine, neighbour, engine, neighbour)]
    for keeper in keepers:
        keeper.start()
    for keeper in keepers:
        keeper.join(60)
    assert depths(engine, "delayed") == {PublicState.WAITING: 300}
    assert depths(engine, "lost") == {PublicState.ACTIVE: 300}
    claimed = engine.claim_many(request("delayed", "lost", limit=500, worker="w2"))
    claimed += engine.claim_many(request("delayed", "lost", limit=500, worker="w3"))
    assert len({each.execution_id for each in claimed}) == len(claimed) == 600
    assert {each.reclaim_count for each in claimed if each.handle.lane == "lost"} == {1}


def test_a_clock_that_goes_back_harms_nothing(engine: Engine, clock: Clock) -> None:
    engine.complete(running(engine).handle)
    handle = running(engine).handle
    delayed = created(engine, delay=10 * SECOND)
    clock.move(-HOUR)
    by_keeper(engine)
    # What was promised in absolute terms stays; what is done now counts from the clock as it is.
    assert engine.read_execution_state(delayed) is PublicState.DELAYED
    assert engine.renew(handle).expires_at_ms == clock.ms + 30_000
    engine.complete(handle)
    ends = [event.execution_id for event in engine.subscribe_completions(timeout=timedelta())]
    assert handle.execution_id in ends
    assert len(ends) == 2
    claimed = running(engine)
    clock.move(LEASE)
    by_keeper(engine)
    with refused("lease_expired"):
        engine.renew(claimed.handle)
    clock.move(HOUR)
    assert claim_one(engine).execution_id == delayed


# The holder of a lost lease is told.


class Heard:
    """The ids of the leases that a process was told it lost."""

    def __init__(self, engine: Engine) -> None:
        self._ids: list[str] = []
        self._changed = threading.Condition()
        engine.listener.on_lost(self._add)

    def _add(self, execution_id: str, _fence: str) -> None:
        with self._changed:
            self._ids.append(execution_id)
            self._changed.notify_all()

    def wait_for(self, *ids: ExecutionId) -> None:
        """Return when exactly these were heard, in any order."""
        wanted = sorted(map(str, ids))
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._ids) >= len(wanted), 10)
            assert sorted(self._ids) == wanted


def cancelled(engine: Engine, clock: Clock, execution_id: ExecutionId) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=execution_id))


def revoked(engine: Engine, clock: Clock, execution_id: ExecutionId) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=execution_id))


def timed_out(engine: Engine, clock: Clock, execution_id: ExecutionId) -> None:
    clock.move(TIMEOUT)
    by_keeper(engine)


def overdue(engine: Engine, clock: Clock, execution_id: ExecutionId) -> None:
    clock.move(2 * SECOND)
    by_claim(engine)


@pytest.mark.parametrize(
    ("take_away", "creation"),
    [
        (cancelled, {}),
        (revoked, {}),
        (timed_out, {"policy": ExecutionPolicy(attempt_timeout=TIMEOUT)}),
        (overdue, {"policy": ExecutionPolicy(execution_deadline=2 * SECOND)}),
    ],
)
def test_a_holder_learns_at_once_that_it_lost_a_lease(
    engine: Engine, neighbour: Engine, clock: Clock, take_away: Any, creation: dict[str, Any]
) -> None:
    heard = Heard(engine)
    execution_id = running(engine, **creation).execution_id
    other = running(engine).execution_id
    take_away(neighbour, clock, execution_id)
    heard.wait_for(execution_id)
    assert engine.read_execution_state(other) is PublicState.ACTIVE


def test_a_worker_without_the_lease_hears_nothing(engine: Engine, neighbour: Engine, clock: Clock) -> None:
    heard = Heard(engine)
    ended = running(engine)
    engine.complete(ended.handle)
    waiting = created(engine)
    of_another = running(neighbour).execution_id
    mine = running(engine).execution_id
    cancelled(neighbour, clock, waiting)
    cancelled(neighbour, clock, of_another)
    cancelled(neighbour, clock, mine)
    heard.wait_for(mine)


def test_a_reservation_ends_at_its_moment(engine: Engine, clock: Clock) -> None:
    execution_id = created(engine)
    args = ClaimForWorkerArgs(lane=LANE, worker_id="w1", worker_instance_id="w1", grant=10 * SECOND)
    assert engine.claim_for_worker(args) is not None
    clock.move(10 * SECOND - MILLISECOND)
    assert engine.claim_many(request(worker="w2")) == []
    clock.move(MILLISECOND)
    assert claim_one(engine, worker="w2").execution_id == execution_id


def test_upkeep_goes_on_in_the_partitions_that_can_be_reached(engine: Engine, clock: Clock) -> None:
    partitions = range(engine.partitions)
    store = AwayStore(engine.store, frozenset(partitions[:-1]))  # type: ignore[arg-type]
    (execution,) = ids_in(engine, partitions[-1], 1)
    created(engine, execution_id=execution, delay=SECOND)
    clock.move(SECOND)
    tried = Engine(lambda: (store, None), retry_for=0)
    tried._partitions = len(partitions)

    if store.away:
        with pytest.raises(TransportError):
            tried.run_upkeep()
    else:
        tried.run_upkeep()

    assert engine.read_execution_state(execution) is PublicState.WAITING
    assert store.waits <= 2
