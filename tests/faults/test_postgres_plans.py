"""What a call costs a Postgres server does not depend on rows that it has nothing to do with, nor on old statistics."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.edges import AnyOf, OnSatisfied
from tests.support.executions import all_created, claim_one, created, creation, queue, request
from tests.support.flows import Run, graph_of
from tests.support.postgres import PostgresServer
from tests.support.quotas import limited, queued
from tests.support.servers import wait_until
from tests.support.suspensions import suspended

# A run by hand takes 1,000,000 and 100,000: FLOWFABRIC_TEST_ROWS=1000000.
FINISHED = int(os.environ.get("FLOWFABRIC_TEST_ROWS", "20000"))
DELAYED = FINISHED // 10
READY = 300
DRAINED = 2000

Session = psycopg.Connection[Any]


@pytest.fixture
def engine(postgres: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    # Copying 1,000,000 rows takes longer than a common lease.
    monkeypatch.setattr("tests.support.executions.LEASE", timedelta(hours=1))
    engine = open_engine(f"{postgres.url}&schema={schema}")
    engine.prepare(testing=True)
    yield engine
    engine.close()


@pytest.fixture
def session(session: Session, engine: Engine) -> Session:
    """Provide a session whose tables are never analyzed: statistics say that they are empty."""
    del engine
    session.execute("ALTER TABLE executions SET (autovacuum_enabled = off)")
    return session


def copy(session: Session, template: str, count: int) -> None:
    """Copy an execution many times, under other ids."""
    of_table = "SELECT attname FROM pg_attribute WHERE attrelid = 'executions'::regclass AND attnum > 0"
    columns = [f'"{name}"' for (name,) in session.execute(of_table).fetchall()]
    values = ["gen_random_uuid()" if column == '"uuid"' else column for column in columns]
    session.execute(
        f"INSERT INTO executions ({', '.join(columns)}) "  # type: ignore[arg-type]
        f"SELECT {', '.join(values)} FROM executions, generate_series(1, %s) WHERE uuid = %s",
        (count, template),
    )


@contextmanager
def recorded(engine: Engine) -> Iterator[dict[str, list[bytes]]]:
    """Provide the arguments of the last call of each function."""
    calls: dict[str, list[bytes]] = {}
    assert isinstance(engine.store, PostgresStore)
    send = engine.store._send

    def record(function: str, partition: int, arguments: Sequence[Any], deadline: float) -> Any:
        calls[function] = [value if isinstance(value, bytes) else str(value).encode() for value in arguments]
        return send(function, partition, arguments, deadline)

    engine.store._send = record  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del engine.store._send  # type: ignore[method-assign]


def functions_of(engine: Engine) -> str:
    """Return the schema of the functions."""
    assert isinstance(engine.store, PostgresStore)
    return f'"{engine.store.library.schema_of(engine.store.schema)}"'


def scanned(session: Session) -> Any:
    """Return how often this session has read the whole table."""
    return session.execute(
        "SELECT seq_scan FROM pg_stat_xact_user_tables WHERE relid = 'executions'::regclass"
    ).fetchone()


def pages(engine: Engine, session: Session, function: str, arguments: list[bytes]) -> int:
    """Return how many pages a call of a function reads, which is then undone; it never reads the whole table."""
    call = f"{functions_of(engine)}.{function}(0, %s)"
    with session.transaction(force_rollback=True):
        # The first call reads the catalog too.
        session.execute(f"SELECT {call}", (arguments,))  # type: ignore[arg-type]
    with session.transaction(force_rollback=True):
        before = scanned(session)
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT {call}"
        row = session.execute(explain, (arguments,)).fetchone()  # type: ignore[arg-type]
        assert scanned(session) == before
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


def entries_read(engine: Engine, session: Session) -> int:
    """Return how many index entries of ready executions a second claim reads."""
    with recorded(engine) as calls:
        engine.claim_many(request(limit=50))
    claim = [uuid4().hex.encode(), *calls["claim_many"][1:]]
    read = "SELECT pg_stat_get_xact_tuples_returned('executions_ready'::regclass)"
    with session.transaction(force_rollback=True):
        (before,) = session.execute(read).fetchone() or (0,)
        session.execute(f"SELECT {functions_of(engine)}.claim_many(0, %s)", (claim,))  # type: ignore[arg-type]
        (after,) = session.execute(read).fetchone() or (0,)
    return int(after - before)


def costs(engine: Engine, session: Session) -> dict[str, int]:
    """Return how many pages a claim, a completion and a creation of 50 executions read."""
    with recorded(engine) as calls:
        claimed = engine.claim_many(request(limit=50))
        queue(engine, 50)
    claim = [uuid4().hex.encode(), *calls["claim_many"][1:]]
    creations = [
        uuid4().hex.encode() if index % 8 == 0 else value for index, value in enumerate(calls["create_executions"])
    ]
    completions = [
        part for each in claimed for part in (each.execution_id.uuid.encode(), each.handle.fence.encode(), b"")
    ]
    return {
        "claim_many": pages(engine, session, "claim_many", claim),
        "complete_many": pages(engine, session, "complete_many", completions),
        "create_executions": pages(engine, session, "create_executions", creations),
    }


def test_no_call_costs_more_for_what_is_finished_delayed_or_suspended(engine: Engine, session: Session) -> None:
    queue(engine, READY)
    few = costs(engine, session)
    done = created(engine, lane="other")
    engine.complete(claim_one(engine, "other").handle)
    delayed = created(engine, delay=timedelta(days=1))
    copy(session, done.uuid, FINISHED)
    copy(session, delayed.uuid, DELAYED)

    many = costs(engine, session)

    # Indexes grew by a level.
    assert {name: count for name, count in many.items() if count > 2 * few[name]} == {}


def test_no_read_costs_more_for_executions_that_it_does_not_ask_for(engine: Engine, session: Session) -> None:
    limited(engine, max_concurrent=1)
    first, second = queued(engine, 2)
    claim_one(engine)
    run = Run(engine, graph_of(("a", "c"), ("b", "c"), policies={"c": AnyOf(OnSatisfied.CANCEL_REMAINING)}))
    run.claim()
    suspended(engine, "a")
    created(engine, idempotency_key="known")
    claim_one(engine)

    def read() -> dict[str, int]:
        with recorded(engine) as calls:
            engine.read_outcome(first)
            engine.read_execution_state(first)
            engine.explain_execution(second)
            engine.list_executions(limit=1)
            engine.list_suspended(0, limit=1)
            engine.describe_flow(run.flow_id)
            engine.create_execution(creation(idempotency_key="known"))
            assert engine.claim_many(request(limit=1)) == []
        calls["claim_many"][0] = uuid4().hex.encode()
        calls["complete_many"] = [run.ids["a"].uuid.encode(), run.held["a"].handle.fence.encode(), b""]
        return {name: pages(engine, session, name, arguments) for name, arguments in calls.items()}

    few = read()
    other = Run(engine, graph_of(("x", "y"), lane="other"))
    other.held |= {"x": claim_one(engine, "other")}
    other.complete("x")
    for each in (other.ids["x"], suspended(engine, "a")[0]):
        copy(session, each.uuid, FINISHED)
    many = read()

    # Indexes grew by a level.
    assert {name: (few[name], count) for name, count in many.items() if count > 2 * few[name] + 5} == {}


def lanes_with_a_delay(engine: Engine, count: int) -> None:
    all_created(engine, [creation(lane=f"lane-{number}", delay=timedelta(days=1)) for number in range(count)])


def test_no_upkeep_costs_more_for_lanes_with_nothing_to_do(engine: Engine, session: Session) -> None:
    created(engine)
    few = upkeep_pages(engine, session)
    lanes_with_a_delay(engine, 5000)

    # The counters of eight classes are folded.
    assert upkeep_pages(engine, session) < few + 200


def upkeep_pages(engine: Engine, session: Session) -> int:
    return pages(engine, session, "run_upkeep", [b"200", uuid4().hex.encode()])


def test_a_delay_that_is_over_is_found_behind_many_lanes_with_longer_ones(engine: Engine) -> None:
    lanes_with_a_delay(engine, 1200)
    created(engine, lane="last", delay=timedelta(milliseconds=1))

    wait_until(lambda: engine.claim_many(request("last")), "the execution of the last lane is claimed")


def test_the_counters_of_a_busy_lane_are_folded_beside_many_idle_ones(engine: Engine, session: Session) -> None:
    lanes_with_a_delay(engine, 2000)
    for _ in range(500):
        created(engine, lane="busy")

    for _ in range(30):
        engine.run_upkeep()

    counted = "SELECT count(*) FROM depths JOIN lanes ON lanes.id = lane_id WHERE listed LIKE '%busy'"
    (count,) = session.execute(counted).fetchone() or (500,)
    assert count < 5


@pytest.fixture
def bounded(engine: Engine, session: Session) -> None:
    """Let every search for work count as a long one."""
    session.execute(
        f"CREATE OR REPLACE FUNCTION {functions_of(engine)}.a_long_search() RETURNS interval LANGUAGE sql IMMUTABLE "  # type: ignore[arg-type]
        "AS $$ SELECT interval '0 ms' $$"
    )


@pytest.mark.usefixtures("bounded")
def test_a_claim_beside_an_open_snapshot_skips_what_was_claimed_since(
    postgres: PostgresServer, engine: Engine, session: Session, schema: str
) -> None:
    queue(engine, DRAINED + READY)
    with postgres.session() as other, other.transaction():
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute(f"SELECT count(*) FROM {schema}.executions")  # type: ignore[arg-type]
        drained = 0
        while drained < DRAINED:
            claimed = engine.claim_many(request(limit=100))
            engine.complete_many([Completion(handle=each.handle) for each in claimed])
            drained += len(claimed)

        # A bound is dropped after a second, which may pass before one of the claims.
        assert min(entries_read(engine, session) for _ in range(3)) < DRAINED


@pytest.mark.usefixtures("bounded")
def test_work_that_becomes_ready_before_a_bound_is_claimed_at_once(engine: Engine) -> None:
    queue(engine, 5)
    first, second = engine.claim_many(request(limit=2))
    urgent = created(engine, priority=5)
    assert claim_one(engine).execution_id == urgent

    engine.release(first.handle)

    assert claim_one(engine).execution_id == first.execution_id
    assert len(engine.claim_many(request(limit=10))) == 3
    engine.release(second.handle)
    assert claim_one(engine).execution_id == second.execution_id


def test_a_claim_takes_as_many_as_it_was_asked_for(engine: Engine) -> None:
    queue(engine, READY)
    for limit in (1, 7, 50):
        assert len(engine.claim_many(request(limit=limit))) == limit
