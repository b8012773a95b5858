"""Which of the waiting workers is woken, what takes the place of one that does not come, and what all that costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from tests.support.executions import (
    LANE,
    all_created,
    claimed_ids,
    created,
    creation,
    ids_in,
    raw_client,
    raw_key,
    request,
)
from tests.support.servers import ValkeyServer, wait_until
from tests.support.waiters import AT_ONCE, Opener, Waiting, known_class, look, register, registered, waiting

LONG = timedelta(seconds=30)


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


def test_idle_workers_are_woken_in_turns(engine: Engine) -> None:
    known_class(engine)
    waiters = {waiter.name: waiter for waiter in register(engine, 0, 4)}
    woken: list[str] = []

    for execution_id in ids_in(engine, 0, 12):
        created(engine, execution_id=execution_id)
        # No worker reads its messages here, so none that stands by takes the work, however slow the machine is.
        (name,) = waiters.keys() - {
            field.decode() for field in raw_client(engine, 0).hkeys(raw_key(engine, 0, "waiters"))
        }
        assert claimed_ids(engine) == [execution_id]
        look(engine, 0, waiters[name])
        woken.append(name)

    assert woken == 3 * list(waiters)


@pytest.mark.parametrize("delay", [timedelta(), timedelta(milliseconds=200)], ids=["ready", "due soon"])
def test_a_wake_up_that_is_not_taken_goes_to_the_next(engine: Engine, another: Opener, delay: timedelta) -> None:
    known_class(engine)
    _heard = register(another(), 0)
    waiter = waiting(another())
    (execution_id,) = ids_in(engine, 0, 1)
    created(engine, execution_id=execution_id, delay=delay)

    assert [each.execution_id for each in waiter.result()] == [execution_id]


def test_a_hundred_and_thirty_idle_workers_learn_of_a_new_class(engine: Engine) -> None:
    known_class(engine)
    _heard = register(engine, 0, 130)
    assert raw_client(engine, 0).hlen(raw_key(engine, 0, "waiters")) == 130

    created(engine, execution_id=ids_in(engine, 0, 1)[0], task="new")

    assert raw_client(engine, 0).hlen(raw_key(engine, 0, "waiters")) == 0


def test_the_sets_of_waiting_workers_go_with_their_last_waiter(engine: Engine, another: Opener) -> None:
    known_class(engine)
    waiters = [waiting(another()) for _ in range(2)]
    assert raw_client(engine, 0).hlen(raw_key(engine, 0, "sets")) == 1
    for waiter, execution_id in zip(waiters, ids_in(engine, 0, 2), strict=True):
        created(engine, execution_id=execution_id)
        waiter.result()

    left = raw_client(engine, 0).keys(raw_key(engine, 0, "idle*").replace("{", "[{]"))
    assert [*left, *raw_client(engine, 0).hkeys(raw_key(engine, 0, "sets"))] == []


def test_a_hundred_waiters_of_a_thousand_classes_cost_a_submission_little(valkey: ValkeyServer) -> None:
    engine = open_engine(f"{valkey.url}?prefix=w{uuid4().hex[:12]}")
    engine.prepare()
    tasks = [f"task-{number}" for number in range(1000)]
    for first in range(0, 1000, MAX_BATCH_ITEMS):
        all_created(engine, [creation(task=task) for task in tasks[first : first + MAX_BATCH_ITEMS]])
    while engine.claim_many(request(limit=MAX_BATCH_ITEMS)):
        pass
    _heard = register(engine, 0, 100)
    assert registered(engine) == 100
    client = valkey.client()
    client.config_resetstat()

    all_created(engine, [creation(task=task) for task in tasks[::10]])

    assert client.info("commandstats")["cmdstat_fcall"]["usec"] < 200_000
    assert registered(engine) == 0
    engine.close()


@pytest.fixture
def calls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return how many functions the server was asked for.

    Postgres counts the transactions of all sessions, also those that look behind the engine, and a session tells of its
    own up to a minute late. So there each call is counted where this process sends it.
    """
    if engine.backend_label() != "postgresql":
        return lambda: engine.store.info().calls
    from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection

    sent: list[bytes] = []
    send = PostgresConnection.send

    def counted(connection: PostgresConnection, query: bytes, *arguments: Any) -> None:
        sent.append(query)
        send(connection, query, *arguments)

    monkeypatch.setattr(PostgresConnection, "send", counted)
    return lambda: len(sent)


def test_one_submission_costs_a_fleet_few_calls_however_many_partitions(
    engine: Engine, another: Opener, calls: Callable[[], int]
) -> None:
    known_class(engine)
    engines = [another() for _ in range(8)]
    waiters = [Waiting(each, request(worker=uuid4().hex, max_wait=LONG, limit=8)) for each in engines]
    wait_until(lambda: registered(engine) == 8, "all wait")
    before = calls()

    created(engine)

    wait_until(lambda: any(waiter.is_over for waiter in waiters), "one of them has work", AT_ONCE)
    (index,) = [index for index, waiter in enumerate(waiters) if waiter.is_over]
    again = Waiting(engines[index], request(worker=uuid4().hex, max_wait=LONG, limit=8))
    wait_until(lambda: registered(engine) >= 7, "the others wait")
    assert calls() - before < 20 + engine.partitions
    assert not again.is_over


def test_a_worker_with_free_threads_goes_on_waiting_where_it_was(engine: Engine) -> None:
    known_class(engine)
    waiter = Waiting(engine, request(worker="w", max_wait=LONG, limit=8))
    wait_until(lambda: registered(engine) == 1, "it waits everywhere")
    first, second = ids_in(engine, engine.partitions - 1, 2)
    created(engine, execution_id=first)
    waiter.result()
    waiter = Waiting(engine, request(worker="w", max_wait=LONG, limit=7))
    wait_until(lambda: registered(engine) == 1, "it waits everywhere again")
    created(engine, execution_id=second)

    assert [each.execution_id for each in waiter.result()] == [second]


def test_a_worker_that_waits_for_something_else_leaves_its_old_place(engine: Engine) -> None:
    waiter = Waiting(engine, request(worker="w", max_wait=timedelta(milliseconds=300), limit=8))
    waiter.result()
    waiter = Waiting(engine, request("elsewhere", worker="w", max_wait=LONG, limit=8))
    wait_until(lambda: registered(engine) == 1, "it waits for another lane")
    created(engine, lane="elsewhere")

    assert len(waiter.result()) == 1
    assert LANE not in {each.lane for each in engine.list_lanes().lanes}
