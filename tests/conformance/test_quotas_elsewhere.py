"""Quotas of other partitions: where executions are placed makes no difference to what a quota hands out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId, FlowId
from flowfabric_worker.engine.types.flows import FlowGraph, FlowNode
from flowfabric_worker.engine.types.quotas import QuotaPolicy, SlotHold
from flowfabric_worker.engine.types.schedules import TickScheduleArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.conftest import Clock
from tests.support.executions import (
    claim_one,
    claimed_ids,
    created,
    creation,
    ids_in,
    raw_client,
    raw_key,
    refused,
    request,
    running,
    tenant,
)
from tests.support.quotas import QUOTA, UNDER_QUOTA, away, limited, placed, queued, running_now, states, status
from tests.support.servers import wait_until
from tests.support.stepped_store import stepped
from tests.support.waiters import registered

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


# Placing


def _keyed(engine: Engine, count: int) -> list[ExecutionId]:
    return [created(engine, policy=UNDER_QUOTA, idempotency_key=str(number)) for number in range(count)]


def _with_ids(engine: Engine, count: int) -> list[ExecutionId]:
    return [
        created(engine, policy=UNDER_QUOTA, execution_id=each)
        for number in range(count)
        for each in ids_in(engine, number % engine.partitions, 1)
    ]


def _members(engine: Engine, count: int) -> list[ExecutionId]:
    made = []
    for _ in range(count):
        nodes = (FlowNode(key="only", execution=creation(policy=UNDER_QUOTA)),)
        made += engine.submit_flow(
            FlowGraph(flow_id=FlowId(str(uuid4())), kind="dag", nodes=nodes)
        ).execution_ids.values()
    return made


def _ticks(engine: Engine, count: int) -> list[ExecutionId]:
    before = {row.execution_id for row in engine.list_executions().executions}
    for number in range(count):
        args = TickScheduleArgs(name=f"s{number}", spec="every", creation=creation(policy=UNDER_QUOTA))
        engine.tick_schedule(args)
        engine.tick_schedule(
            TickScheduleArgs(
                name=f"s{number}",
                spec="every",
                creation=creation(policy=UNDER_QUOTA),
                expected=EPOCH,
                ticks=(EPOCH + SECOND,),
            )
        )
    return [row.execution_id for row in engine.list_executions().executions if row.execution_id not in before]


def _children(engine: Engine, count: int) -> list[ExecutionId]:
    return [
        engine.spawn(
            running(engine, lane=f"parents{number}").handle, "child", creation(policy=UNDER_QUOTA)
        ).execution_id
        for number in range(count)
    ]


@pytest.mark.parametrize("place", [_keyed, _with_ids, _members, _children])
def test_a_quota_limits_executions_wherever_they_are_placed(
    engine: Engine, clock: Clock, place: Callable[[Engine, int], list[ExecutionId]]
) -> None:
    del clock
    limited(engine, max_concurrent=3)
    executions = place(engine, 8)

    done: list[ExecutionId] = []
    while held := engine.claim_many(request(limit=10)):
        assert len(held) <= 3
        assert running_now(engine) == len(held)
        assert engine.claim_many(request(limit=10)) == []
        for each in held:
            engine.complete(each.handle, None)
            done.append(each.execution_id)

    assert sorted(map(str, done)) == sorted(map(str, executions))
    assert running_now(engine) == 0


def test_a_quota_limits_the_ticks_of_schedules_in_any_partition(engine: Engine, clock: Clock) -> None:
    limited(engine, max_concurrent=1)
    names = [f"schedule {number}" for number in range(2 * engine.partitions)]
    for name in names:
        args = TickScheduleArgs(name=name, spec="every second", creation=creation(policy=UNDER_QUOTA))
        assert not isinstance(engine.tick_schedule(args), Exception)
    start = clock.now
    clock.move(SECOND)
    for name in names:
        ticked = TickScheduleArgs(
            name=name,
            spec="every second",
            creation=creation(policy=UNDER_QUOTA),
            expected=start,
            ticks=(start + SECOND,),
        )
        engine.tick_schedule(ticked)

    assert len(engine.list_executions().executions) == len(names)
    assert len(claimed_ids(engine)) == 1
    assert running_now(engine) == 1


# Limits


class Running:
    """How many handlers run at once, and the most that did."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def change(self, by: int) -> None:
        with self._lock:
            self.now += by
            self.most = max(self.most, self.now)


def _work(engine: Engine, number: int, left: Counter[str], running: Running, begun: list[int]) -> None:
    wait = request(worker=f"w{number}", limit=2, max_wait=timedelta(milliseconds=200))
    while left["work"] > 0:
        for claimed in engine.claim_many(wait):
            running.change(1)
            begun.append(engine.read_execution_info(claimed.execution_id).started_at_ms)  # type: ignore[union-attr, arg-type]
            running.change(-1)
            engine.complete(claimed.handle, None)
            left["work"] -= 1


def _worked_off(engine: Engine, count: int) -> tuple[Running, list[int]]:
    """Work executions of all partitions off by eight threads; return how many ran at once, and when each began."""
    left, running_now_, begun = Counter(work=count), Running(), []  # type: ignore[var-annotated]
    threads = [threading.Thread(target=_work, args=(engine, number, left, running_now_, begun)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert left["work"] == 0
    return running_now_, sorted(begun)


def test_eight_threads_never_run_more_than_the_limit_over_all_partitions(engine: Engine) -> None:
    limited(engine, max_concurrent=3)
    _keyed(engine, 40)

    ran, _ = _worked_off(engine, 40)

    assert 1 <= ran.most <= 3
    assert running_now(engine) == 0


def test_eight_threads_never_begin_more_than_the_rate_over_all_partitions(engine: Engine) -> None:
    most, window = 8, 400
    limited(engine, max_requests_per_window=most, window=timedelta(milliseconds=window))
    _keyed(engine, 32)

    _, begun = _worked_off(engine, 32)

    assert len(begun) == 32
    for first, beyond in zip(begun, begun[most:], strict=False):
        assert beyond - first >= window


def test_what_a_claim_did_not_take_goes_back_at_once(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=2, max_requests_per_window=2, window=MINUTE)
    with placed("elsewhere"):
        first, second = queued(engine, 2)
        damaged = raw_key(engine, second.partition_number, f"x:{second.uuid}")
        raw_client(engine, second.partition_number).hset(damaged, "priority", "damaged")

        assert claimed_ids(engine) == [first]
        assert (running_now(engine), status(engine).admitted_in_window) == (1, 1)
        third = queued(engine, 1)
        assert claimed_ids(engine) == third


# Cost


def test_a_closed_quota_elsewhere_costs_a_claim_nothing(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        queued(engine, 30)
    claim_one(engine)
    assert claimed_ids(engine) == []
    tried, store = stepped(engine)
    assert claimed_ids(tried) == []

    store.sent.clear()
    for _ in range(5):
        assert claimed_ids(tried) == []
    assert Counter(store.sent) == {"claim_many": 5 * engine.partitions}


def test_a_claim_of_many_asks_a_quota_elsewhere_once(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=50)
    with placed("elsewhere"):
        queued(engine, 30)
    tried, store = stepped(engine)

    assert len(claimed_ids(tried, limit=30)) == 30
    sent = Counter(store.sent)
    is_asked = engine.partitions > 1 and not engine.store.spans_partitions
    assert sent["admit_claim"] == sent["pay"] == (1 if is_asked else 0)


# Waking


def _woken_by(engine: Engine, act: Callable[[], object]) -> float:
    """Return how many seconds after `act` a worker that waits gets work."""
    got: list[float] = []

    def wait() -> None:
        assert engine.claim_many(request(worker="waits", max_wait=timedelta(seconds=9)))
        got.append(time.monotonic())

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: registered(engine), "a worker waits")
    acted = time.monotonic()
    act()
    thread.join(9)
    assert got
    return got[0] - acted


def test_a_raised_limit_wakes_a_worker_that_waits_elsewhere(engine: Engine) -> None:
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        queued(engine, 2)
    claim_one(engine)
    assert claimed_ids(engine) == []

    assert _woken_by(engine, lambda: engine.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=2))) < 2


def test_a_slot_freed_beside_the_quota_wakes_a_worker_that_waits_elsewhere(engine: Engine) -> None:
    limited(engine, max_concurrent=1)
    (beside,) = queued(engine, 1)
    held = claim_one(engine)
    assert held.execution_id == beside
    with placed("elsewhere"):
        queued(engine, 1)
    assert claimed_ids(engine) == []

    assert _woken_by(engine, lambda: engine.complete(held.handle, None)) < 2


def test_a_slot_freed_elsewhere_wakes_a_worker_of_a_third_partition(engine: Engine) -> None:
    limited(engine, max_concurrent=1)
    (first,) = ids_in(engine, away(engine), 1)
    (second,) = ids_in(engine, away(engine, 2), 1)
    created(engine, policy=UNDER_QUOTA, execution_id=first)
    held = claim_one(engine)
    created(engine, policy=UNDER_QUOTA, execution_id=second)
    assert claimed_ids(engine) == []

    assert _woken_by(engine, lambda: engine.complete(held.handle, None)) < 2


def test_a_reset_wakes_a_worker_that_waits_elsewhere(engine: Engine) -> None:
    limited(engine, max_requests_per_window=1, window=timedelta(hours=1))
    with placed("elsewhere"):
        queued(engine, 2)
    claim_one(engine)
    assert claimed_ids(engine) == []

    assert _woken_by(engine, lambda: engine.reset_quota_policy(QUOTA)) < 2


# Changes


def test_a_quota_that_executions_elsewhere_name_is_not_removed(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        queued(engine, 1)
    with refused("quota_policy_in_use"):
        engine.delete_quota_policy(QUOTA)
    engine.complete(claim_one(engine).handle, None)

    engine.delete_quota_policy(QUOTA)

    with placed("elsewhere"), refused("quota_policy_not_found"):
        queued(engine, 1)
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        executions = queued(engine, 2)
    assert claimed_ids(engine) == executions[:1]


def test_another_way_to_hold_slots_is_heard_elsewhere(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    with placed("elsewhere"):
        first, second = queued(engine, 2)
    engine.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=1, hold=SlotHold.RUN))

    engine.delay(claim_one(engine).handle, MINUTE)
    assert running_now(engine) == 1
    assert claimed_ids(engine) == []
    assert states(engine, [first, second]) == [PublicState.DELAYED, PublicState.RATE_LIMITED]


def test_a_quota_that_another_process_created_again_is_found(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    other = tenant(engine, "default")
    for create in (engine.create_execution, lambda args: engine.create_executions([args])[0]):
        (first,) = ids_in(engine, away(engine), 1)
        created(engine, policy=UNDER_QUOTA, execution_id=first)
        other.complete(claim_one(other).handle, None)
        other.delete_quota_policy(QUOTA)
        limited(other, max_concurrent=1)

        (second,) = ids_in(engine, away(engine), 1)
        result = create(creation(policy=UNDER_QUOTA, execution_id=second))
        assert getattr(result, "execution_id", result) == second
        other.complete(claim_one(other).handle, None)
    assert running_now(engine) == 0
