"""workers: the registry says who is alive and what it offers; leases do not depend on it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import NotFoundError, StateError, ValidationError
from flowfabric_worker.engine.limits import MAX_MESSAGE_BYTES, MAX_REGISTRATION_BYTES
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.workers import ListWorkersPage, RegisterWorkerArgs, WorkerInfo
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import claim_one, created, raw_client, raw_key, refused, running, tenant, upkeep_all

MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)


def registration(instance: str = "pool-1", **changes: Any) -> RegisterWorkerArgs:
    return RegisterWorkerArgs(**{"worker_id": "pool", "worker_instance_id": instance, **changes})


def whole(page: ListWorkersPage) -> dict[str, WorkerInfo]:
    """Return the workers of a page whose entries can be read."""
    return {row.worker_instance_id: row for row in page.workers if isinstance(row, WorkerInfo)}


def listed(engine: Engine) -> dict[str, WorkerInfo]:
    return whole(engine.list_workers(limit=1000))


# Registering


def test_a_registered_worker_is_listed_with_everything_that_it_said(engine: Engine, clock: Clock) -> None:
    result = engine.register_worker(
        registration(
            lanes=("mail", "etl"), capabilities=("gpu", "eu"), tasks=("send", "load"), threads=8, host="höst", pid=42
        )
    )

    assert not result.refreshed
    assert listed(engine)["pool-1"] == WorkerInfo(
        worker_id="pool",
        worker_instance_id="pool-1",
        lanes=("mail", "etl"),
        capabilities=("eu", "gpu"),
        tasks=("send", "load"),
        threads=8,
        host="höst",
        pid=42,
        registered_at_ms=clock.ms,
        expires_at_ms=clock.ms + 60_000,
        alive=True,
        death_reason="",
    )


def test_registering_again_refreshes_what_is_said_and_keeps_since_when(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration(threads=1))
    since = clock.ms
    clock.move(MINUTE)

    result = engine.register_worker(registration(threads=2, alive_for=timedelta(seconds=5)))

    worker = listed(engine)["pool-1"]
    assert result.refreshed
    assert (worker.threads, worker.registered_at_ms, worker.expires_at_ms) == (2, since, clock.ms + 5000)


def test_a_worker_that_was_marked_dead_lives_again_when_it_registers(engine: Engine) -> None:
    engine.register_worker(registration())
    engine.mark_worker_dead("pool-1", "drained")

    engine.register_worker(registration())

    assert listed(engine)["pool-1"].alive
    assert listed(engine)["pool-1"].death_reason == ""


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"worker_id": ""}, "invalid_input"),
        ({"worker_instance_id": "a\0b"}, "invalid_input"),
        ({"worker_instance_id": "x" * 257}, "invalid_input"),
        ({"lanes": ("lane\n",)}, "invalid_input"),
        ({"lanes": ("x" * 65,)}, "invalid_input"),
        ({"lanes": "mail"}, "invalid_input"),
        ({"capabilities": ("with space",)}, "invalid_capabilities"),
        ({"capabilities": "gpu"}, "invalid_input"),
        ({"tasks": ("",)}, "invalid_input"),
        ({"tasks": "send"}, "invalid_input"),
        ({"threads": 0}, "invalid_input"),
        ({"threads": "many"}, "invalid_input"),
        ({"pid": -1}, "invalid_input"),
        ({"pid": True}, "invalid_input"),
        ({"host": "\ud800"}, "invalid_input"),
        ({"host": None}, "invalid_input"),
        ({"alive_for": timedelta(0)}, "invalid_input"),
        ({"alive_for": 60}, "invalid_input"),
    ],
)
def test_a_registration_with_a_wrong_value_is_refused_and_leaves_no_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any], code: str
) -> None:
    before = dump()

    with pytest.raises(ValidationError) as refused:
        engine.register_worker(registration(**changes))

    assert refused.value.code == code
    assert dump() == before


def test_a_registration_may_fill_its_limit_and_not_pass_it(engine: Engine) -> None:
    tasks = [f"{number:0250}" for number in range(MAX_REGISTRATION_BYTES // 256)]

    engine.register_worker(registration(tasks=tasks))
    with pytest.raises(ValidationError, match="registration"):
        engine.register_worker(registration(tasks=[*tasks, "x" * 256, "y" * 256]))

    assert listed(engine)["pool-1"].tasks == tuple(tasks)


# Heartbeats


def test_a_heartbeat_counts_from_now_and_for_as_long_as_it_says(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())
    clock.move(timedelta(seconds=50))

    until = engine.heartbeat_worker("pool-1", timedelta(seconds=90))

    assert until == clock.ms + 90_000
    assert listed(engine)["pool-1"].expires_at_ms == until


def test_a_worker_is_alive_until_the_very_moment_that_its_heartbeat_ends(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())

    clock.move(MINUTE - timedelta(milliseconds=1))
    assert listed(engine)["pool-1"].alive
    clock.move(timedelta(milliseconds=1))
    assert not listed(engine)["pool-1"].alive


def test_a_late_heartbeat_makes_a_worker_alive_again(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())
    clock.move(10 * MINUTE)

    engine.heartbeat_worker("pool-1")

    assert listed(engine)["pool-1"].alive


def test_a_heartbeat_of_an_unknown_worker_says_that_it_must_register(engine: Engine, dump: Dump) -> None:
    before = dump()

    with pytest.raises(NotFoundError, match="register it first") as refused:
        engine.heartbeat_worker("unknown")

    assert refused.value.code == "worker_not_found"
    assert refused.value.entity == "worker"
    assert refused.value.details["worker_instance_id"] == "unknown"
    assert dump() == before


def test_a_heartbeat_of_a_dead_worker_says_that_it_must_register_again(engine: Engine, dump: Dump) -> None:
    engine.register_worker(registration())
    engine.mark_worker_dead("pool-1")
    before = dump()

    with pytest.raises(StateError, match="register it again") as refused:
        engine.heartbeat_worker("pool-1")

    assert refused.value.code == "worker_dead"
    assert dump() == before


@pytest.mark.parametrize("alive_for", [timedelta(0), timedelta(milliseconds=-1), timedelta(days=40_000), 5])
def test_a_heartbeat_for_an_impossible_time_is_refused(engine: Engine, dump: Dump, alive_for: Any) -> None:
    engine.register_worker(registration())
    before = dump()

    with pytest.raises(ValidationError, match="alive_for"):
        engine.heartbeat_worker("pool-1", alive_for)

    assert dump() == before


# Dying


def test_a_worker_that_is_marked_dead_is_listed_with_the_reason(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())
    clock.move(timedelta(seconds=10))

    assert engine.mark_worker_dead("pool-1", "node drained")

    worker = listed(engine)["pool-1"]
    assert (worker.alive, worker.death_reason, worker.expires_at_ms) == (False, "node drained", clock.ms)


def test_a_worker_dies_once_and_the_first_reason_stands(engine: Engine) -> None:
    engine.register_worker(registration())
    engine.mark_worker_dead("pool-1", "first")

    assert not engine.mark_worker_dead("pool-1", "second")
    assert listed(engine)["pool-1"].death_reason == "first"


def test_a_death_without_a_reason_still_reads_as_a_death(engine: Engine) -> None:
    engine.register_worker(registration())

    engine.mark_worker_dead("pool-1")

    assert listed(engine)["pool-1"].death_reason == "marked dead"


def test_a_long_reason_is_cut_between_characters(engine: Engine) -> None:
    engine.register_worker(registration())

    engine.mark_worker_dead("pool-1", "é" * MAX_MESSAGE_BYTES)

    assert listed(engine)["pool-1"].death_reason == "é" * (MAX_MESSAGE_BYTES // 2)


def test_an_unknown_worker_cannot_be_marked_dead(engine: Engine, dump: Dump) -> None:
    before = dump()

    with pytest.raises(NotFoundError) as refused:
        engine.mark_worker_dead("unknown")

    assert refused.value.code == "worker_not_found"
    assert dump() == before


def test_the_leases_of_a_dead_worker_run_out_by_themselves(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration("w1"))
    claimed = running(engine, lane="mail", worker="w1")

    engine.mark_worker_dead("w1")

    assert engine.renew(claimed.handle).expires_at_ms == clock.ms + 30_000


def test_an_unregistered_worker_may_claim(engine: Engine) -> None:
    execution = created(engine)

    assert claim_one(engine, worker="stranger").execution_id == execution


# Being listed


def test_a_silent_worker_stays_listed_for_a_day_and_is_then_forgotten(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())

    clock.move(MINUTE + DAY - timedelta(milliseconds=1))
    upkeep_all(engine)
    assert "pool-1" in listed(engine)
    clock.move(timedelta(milliseconds=1))
    upkeep_all(engine)

    assert listed(engine) == {}
    with pytest.raises(NotFoundError):
        engine.heartbeat_worker("pool-1")


def test_a_worker_that_goes_on_beating_is_never_forgotten(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration())

    for _ in range(3):
        clock.move(DAY)
        engine.heartbeat_worker("pool-1")
        upkeep_all(engine)

    assert listed(engine)["pool-1"].alive


def test_a_forgotten_worker_leaves_nothing_behind(engine: Engine, clock: Clock, dump: Dump) -> None:
    before = dump()
    engine.register_worker(registration())

    clock.move(2 * DAY)
    upkeep_all(engine)

    after = dump()
    assert set(after) == set(before)


def test_workers_are_paged_by_their_instance_ids(engine: Engine) -> None:
    for instance in ("echo", "alpha", "delta", "charlie", "bravo"):
        engine.register_worker(registration(instance))

    pages = []
    cursor = None
    while True:
        page = engine.list_workers(cursor, 2)
        pages.append(list(whole(page)))
        cursor = page.next_cursor
        if cursor is None:
            break

    assert pages == [["alpha", "bravo"], ["charlie", "delta"], ["echo"]]


def test_ids_of_different_lengths_are_paged_in_the_order_of_their_letters(engine: Engine) -> None:
    instances = ["a", "aa", "b", "ba", "ä", "z" * 200]
    for instance in reversed(instances):
        engine.register_worker(registration(instance))

    seen: list[str] = []
    cursor = None
    for _ in instances:
        page = engine.list_workers(cursor, 1)
        seen += whole(page)
        cursor = page.next_cursor

    assert seen == sorted(instances, key=str.encode)
    assert cursor is None


def test_a_page_that_takes_exactly_all_has_no_next_one(engine: Engine) -> None:
    for instance in ("a", "b"):
        engine.register_worker(registration(instance))

    page = engine.list_workers(limit=2)

    assert len(page.workers) == 2
    assert page.next_cursor is None


def test_a_page_of_nothing_has_no_next_one(engine: Engine) -> None:
    engine.register_worker(registration())

    page = engine.list_workers(limit=0)

    assert (page.workers, page.next_cursor) == ((), None)


@pytest.mark.parametrize("limit", [-1, 1001, True, 1.5, None, "10"])
def test_a_page_of_an_impossible_size_is_refused(engine: Engine, limit: Any) -> None:
    with pytest.raises(ValidationError, match="0 to 1000"):
        engine.list_workers(limit=limit)


@pytest.mark.parametrize("cursor", ["\0", "x" * 257, 5, "\ud800"])
def test_a_cursor_that_names_no_worker_is_refused(engine: Engine, cursor: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        engine.list_workers(cursor)

    assert refused.value.code == "invalid_cursor"


def test_a_cursor_goes_on_although_its_worker_is_gone(engine: Engine, clock: Clock) -> None:
    engine.register_worker(registration("a"))
    clock.move(2 * DAY)
    upkeep_all(engine)
    engine.register_worker(registration("b"))

    assert set(whole(engine.list_workers("a"))) == {"b"}


def test_workers_of_two_namespaces_never_meet(engine: Engine) -> None:
    other = tenant(engine, "tenant")
    engine.register_worker(registration("shared", host="here"))
    other.register_worker(registration("shared", host="there"))
    other.register_worker(registration("only there"))

    engine.mark_worker_dead("shared")

    assert {name: worker.host for name, worker in listed(engine).items()} == {"shared": "here"}
    assert set(listed(other)) == {"shared", "only there"}
    assert listed(other)["shared"].alive


def test_a_namespace_that_begins_like_another_one_sees_nothing_of_it(engine: Engine) -> None:
    tenant(engine, "defaults").register_worker(registration("theirs"))
    tenant(engine, "defaul").register_worker(registration("theirs"))

    assert listed(engine) == {}


def test_a_damaged_worker_is_marked_and_the_page_goes_on(engine: Engine) -> None:
    for instance in ("a", "b", "c", "d"):
        engine.register_worker(registration(instance))
    client: Any = raw_client(engine)
    registry = raw_key(engine, 0, "worker")
    _, damaged, unreadable, _ = sorted(client.hkeys(registry))
    client.hset(registry, damaged, client.hget(registry, damaged).replace(b"4:pool", b"9:pool"))
    client.hset(registry, unreadable, b"what is this?")

    page = engine.list_workers()

    first, *marked, last = page.workers
    assert list(whole(page).values()) == [first, last]
    assert [row.row_id for row in marked if isinstance(row, DamagedRow)] == ["b", "c"]


def test_a_damaged_worker_registers_again(engine: Engine) -> None:
    engine.register_worker(registration())
    registry = raw_key(engine, 0, "worker")
    (key,) = raw_client(engine).hkeys(registry)
    raw_client(engine).hset(registry, key, b"what is this?")

    with refused("corruption"):
        engine.heartbeat_worker("pool-1")
    with refused("corruption"):
        engine.mark_worker_dead("pool-1")
    engine.register_worker(registration())

    assert listed(engine)["pool-1"].alive
