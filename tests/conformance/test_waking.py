"""Waiting for work: which workers are woken, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest

from flowfabric_worker.engine.class_cache import lane_arguments
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.limits import MAX_CLASSES_PER_CLAIM
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import ClaimForWorkerArgs, ReclaimToken
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from tests.support.executions import (
    LANE,
    TASK,
    all_created,
    claimed_ids,
    created,
    creation,
    ids_in,
    info_of,
    raw_client,
    raw_key,
    request,
    running,
)
from tests.support.servers import wait_until
from tests.support.waiters import AT_ONCE, LONG, Opener, Waiting, known_class, register, registered, waiting

MILLISECOND = timedelta(milliseconds=1)


@pytest.fixture
def another(store_url: str) -> Iterator[Opener]:
    """Open one more engine on the store of the test, as another process has it."""
    with ExitStack() as opened:

        def open_one() -> Engine:
            engine = open_engine(store_url)
            opened.callback(engine.close)
            assert engine.partitions
            return engine

        yield open_one


def by_topic(another: Opener, count: int) -> list[Engine]:
    """Open engines, in the order in which waiters for the same work are woken."""
    return sorted((another() for _ in range(count)), key=lambda engine: engine.listener.topic)


# Being woken


def test_a_waiting_claim_gets_work_at_once_from_the_same_engine(engine: Engine) -> None:
    waiter = waiting(engine)
    execution_id = created(engine)

    assert [each.execution_id for each in waiter.result()] == [execution_id]


def test_a_waiting_claim_gets_work_at_once_from_another_engine(engine: Engine, another: Opener) -> None:
    known_class(engine)
    waiter = waiting(engine)
    execution_id = created(another())

    assert [each.execution_id for each in waiter.result()] == [execution_id]


def test_a_waiting_claim_takes_what_is_there_without_waiting(engine: Engine) -> None:
    execution_id = created(engine)

    claimed = engine.claim_many(request(max_wait=LONG))

    assert [each.execution_id for each in claimed] == [execution_id]
    assert registered(engine) == 0


def test_a_waiting_claim_may_be_the_first_call_of_an_engine(engine: Engine, store_url: str) -> None:
    execution_id = created(engine)
    new = open_engine(store_url)

    claimed = new.claim_many(request(max_wait=LONG))

    new.close()
    assert [each.execution_id for each in claimed] == [execution_id]


@pytest.mark.parametrize("wait", [timedelta(), 300 * MILLISECOND], ids=str)
def test_a_waiting_claim_ends_without_work_when_its_time_is_over(engine: Engine, wait: timedelta) -> None:
    waiter = Waiting(engine, request(max_wait=wait))

    assert waiter.result() == []
    assert waiter.took >= wait
    assert registered(engine) == 0


def test_a_new_kind_of_work_wakes_those_who_take_it(engine: Engine, another: Opener) -> None:
    known_class(engine)
    waiter = waiting(engine, tasks={TASK, "new"})
    created(another(), task="new")

    assert [each.task for each in waiter.result()] == ["new"]


def test_a_new_lane_wakes_those_who_wait_for_it(engine: Engine, another: Opener) -> None:
    waiter = waiting(engine, LANE, "later")
    created(another(), lane="later")

    assert [each.handle.lane for each in waiter.result()] == ["later"]


@pytest.mark.parametrize("first", ["delay", "wait"])
def test_work_that_becomes_due_is_handed_out_at_its_time(engine: Engine, another: Opener, first: str) -> None:
    known_class(engine)
    waiters = [waiting(engine)] if first == "wait" else []
    execution_id = created(another(), delay=400 * MILLISECOND)
    (waiter,) = waiters or [waiting(engine)]

    assert [each.execution_id for each in waiter.result()] == [execution_id]
    info = info_of(engine, execution_id)
    assert info.started_at_ms is not None
    assert 400 <= info.started_at_ms - info.created_at_ms < 1400


@pytest.mark.parametrize("first", ["lease", "wait"])
def test_work_whose_lease_lapses_is_handed_out_at_its_time(engine: Engine, another: Opener, first: str) -> None:
    known_class(engine)
    execution_id = created(engine)
    holder = another()
    grant = holder.claim_for_worker(ClaimForWorkerArgs(lane=LANE, worker_id="h", worker_instance_id="h", grant=LONG))
    assert grant is not None
    waiters = [waiting(engine)] if first == "wait" else []
    lease = 400 * MILLISECOND
    holder.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="h", worker_instance_id="h", lease=lease))
    (waiter,) = waiters or [waiting(engine)]

    assert [(each.execution_id, each.reclaim_count) for each in waiter.result()] == [(execution_id, 1)]


def test_revoked_work_wakes_a_waiting_worker(engine: Engine, another: Opener) -> None:
    claimed = running(engine, lane=LANE)
    waiter = waiting(engine)
    another().revoke_lease(RevokeLeaseArgs(execution_id=claimed.execution_id))

    assert [each.execution_id for each in waiter.result()] == [claimed.execution_id]


@pytest.mark.parametrize("ending", ["release", "wait_children"])
def test_work_that_is_handed_back_wakes_a_waiting_worker(engine: Engine, another: Opener, ending: str) -> None:
    claimed = running(engine, lane=LANE)
    waiter = waiting(engine)
    getattr(another(), ending)(claimed.handle)

    assert [each.execution_id for each in waiter.result()] == [claimed.execution_id]


def test_a_resumed_lane_wakes_those_who_wait_for_it(engine: Engine, another: Opener) -> None:
    engine.pause_lane(LANE)
    ids = set(all_created(engine, [creation() for _ in range(3)]))
    waiters = [waiting(another()) for _ in range(3)]
    another().resume_lane(LANE)

    assert {each.execution_id for waiter in waiters for each in waiter.result()} == ids


def test_one_of_very_many_kinds_of_work_wakes_a_worker(engine: Engine, another: Opener) -> None:
    tasks = [f"t{number}" for number in range(5 * MAX_CLASSES_PER_CLAIM)]
    for partition in range(engine.partitions):
        ids = ids_in(engine, partition, len(tasks))
        all_created(engine, [creation(task=task, execution_id=each) for task, each in zip(tasks, ids, strict=True)])
    while claimed_ids(engine):
        pass

    for task in (tasks[0], tasks[-1], tasks[100], tasks[200], tasks[300]):
        waiter = waiting(engine)
        created(another(), task=task)
        assert [each.task for each in waiter.result()] == [task]


# Waking


@pytest.mark.parametrize("at_once", [True, False], ids=["in one call", "one by one"])
def test_as_many_workers_are_woken_as_there_are_executions(engine: Engine, another: Opener, at_once: bool) -> None:
    known_class(engine)
    waiters = [waiting(another()) for _ in range(4)]
    args = [creation(execution_id=each) for each in ids_in(engine, 0, 3)]
    ids = all_created(engine, args) if at_once else [all_created(engine, [each])[0] for each in args]

    wait_until(lambda: sum(waiter.is_over for waiter in waiters) == 3, "three workers have work", AT_ONCE)
    assert {each.execution_id for waiter in waiters if waiter.is_over for each in waiter.result()} == set(ids)
    (left,) = [waiter for waiter in waiters if not waiter.is_over]
    created(engine)
    left.result()


def test_a_worker_that_does_not_fit_is_not_woken_in_place_of_one_that_fits(engine: Engine, another: Opener) -> None:
    requires = ExecutionPolicy(requires=frozenset({"gpu"}))
    known_class(engine)
    known_class(engine, policy=requires)
    unable = [waiting(each) for each in by_topic(another, 6)]
    able = waiting(another(), capabilities={"gpu"})
    execution_id = created(engine, policy=requires)

    assert [each.execution_id for each in able.result()] == [execution_id]
    assert not any(waiter.is_over for waiter in unable)


@pytest.mark.parametrize("dead", [1, 30])
def test_dead_waiters_do_not_swallow_a_wake_up(engine: Engine, another: Opener, dead: int) -> None:
    known_class(engine)
    gone, living = by_topic(another, 2)
    for partition in range(engine.partitions):
        register(gone, partition, dead, heard=False)
    waiter = waiting(living)
    created(engine)

    waiter.result()
    assert registered(engine) == 0


def test_a_claim_that_leaves_work_behind_wakes_the_next(engine: Engine, another: Opener) -> None:
    known_class(engine)
    busy, living = by_topic(another, 2)
    _heard = [register(busy, partition, 2) for partition in range(engine.partitions)]
    waiter = waiting(living)
    ids = all_created(engine, [creation(execution_id=each) for each in ids_in(engine, 0, 2)])

    # Both wake-ups may have gone to the busy worker; the next claim forwards the one that is left.
    first = claimed_ids(engine, limit=1)
    assert {*first, *(each.execution_id for each in waiter.result())} == set(ids)


def test_a_worker_without_capacity_forwards_its_wake_up(engine: Engine, another: Opener) -> None:
    known_class(engine)
    busy, living = by_topic(another, 2)
    _heard = [register(busy, partition) for partition in range(engine.partitions)]
    waiter = waiting(living)
    execution_id = created(engine)

    busy.forward_wakeup(request())

    assert [each.execution_id for each in waiter.result()] == [execution_id]


def test_a_worker_that_leaves_passes_the_wake_up_on_that_it_got(engine: Engine, another: Opener) -> None:
    known_class(engine)
    busy, living = by_topic(another, 2)
    _heard = [register(busy, partition) for partition in range(engine.partitions)]
    waiter = waiting(living)
    execution_id = created(engine)

    for partition in range(busy.partitions):
        lanes = busy.matching_lanes(partition, request()).lanes
        busy.store.call("stop_waiting", partition, ["unknown", *lane_arguments(lanes)])

    assert [each.execution_id for each in waiter.result()] == [execution_id]


def test_a_worker_that_got_work_waits_nowhere(engine: Engine) -> None:
    known_class(engine)
    waiter = waiting(engine)
    created(engine)
    waiter.result()

    assert [
        raw_client(engine, partition).hlen(raw_key(engine, partition, "waiters"))
        for partition in range(engine.partitions)
    ] == [0] * engine.partitions


# Leaving


def test_a_worker_that_stops_waiting_is_let_go_at_once_and_woken_no_more(engine: Engine, another: Opener) -> None:
    known_class(engine)
    first, second = by_topic(another, 2)
    leaving = waiting(first, worker="leaving")
    staying = waiting(second)

    first.stop_waiting("leaving")

    assert leaving.result() == []
    assert registered(engine) == 1
    execution_id = created(engine)
    assert [each.execution_id for each in staying.result()] == [execution_id]


def test_a_worker_that_stopped_waiting_may_wait_again(engine: Engine) -> None:
    waiter = waiting(engine, worker="w")
    engine.stop_waiting("w")
    waiter.result()

    again = waiting(engine, worker="w")
    created(engine)

    assert len(again.result()) == 1


def test_closing_an_engine_lets_its_waiting_workers_go(engine: Engine, another: Opener) -> None:
    closing = another()
    waiter = waiting(closing)

    closing.close()

    assert waiter.result() == []
    assert engine.claim_many(request()) == []


def test_a_worker_that_never_waited_may_stop_waiting(engine: Engine) -> None:
    engine.stop_waiting("unknown")


# The watch of what is due next


def test_a_watch_of_the_next_timer_is_handed_on_by_a_worker_that_leaves(engine: Engine, another: Opener) -> None:
    known_class(engine)
    watching = another()
    waiting(watching, worker="watching")
    (delayed,) = ids_in(engine, 0, 1)
    created(engine, execution_id=delayed, delay=1500 * MILLISECOND)
    other = waiting(another())
    # The first one was woken for the delay, and waits again until its moment.
    wait_until(lambda: registered(engine) == 2, "both wait")

    watching.stop_waiting("watching")

    assert [each.execution_id for each in other.result(5)] == [delayed]


def test_a_watch_of_the_next_timer_is_handed_on_by_a_worker_that_gets_work(engine: Engine, another: Opener) -> None:
    known_class(engine)
    first, second = waiting(another()), waiting(another())
    *plain, delayed = ids_in(engine, 0, 3)
    created(engine, execution_id=delayed, delay=2000 * MILLISECOND)
    # The first one was woken for the delay, and waits again behind the second one.
    wait_until(lambda: registered(engine) == 2, "both wait")
    created(engine, execution_id=plain[0])
    second.result()
    third = waiting(another())
    created(engine, execution_id=plain[1])
    first.result()

    assert [each.execution_id for each in third.result(5)] == [delayed]
