"""What can go wrong with a Postgres server: rights, names, conflicts, lost connections, restarts, and migrations."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ChangePriorityArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import (
    BOOM,
    LANE,
    RETRYING,
    claim_one,
    created,
    creation,
    depths,
    queue,
    refused,
    request,
)
from tests.support.postgres import PostgresServer
from tests.support.servers import running, wait_until
from tests.support.threads import together

SECONDS = 4


@pytest.fixture
def engine(postgres: PostgresServer, schema: str) -> Iterator[Engine]:
    engine = open_engine(f"{postgres.url}&schema={schema}")
    engine.prepare(testing=True)
    yield engine
    engine.close()


def functions_of(engine: Engine) -> str:
    """Return the schema of an engine's functions."""
    from flowfabric_worker.engine.stores.postgres import PostgresStore

    assert isinstance(engine.store, PostgresStore)
    return engine.store.library.schema_of(engine.store.schema)


# Rights and names ----------------------------------------------------------------------------------------------------


@pytest.fixture
def caller(postgres: PostgresServer, engine: Engine) -> str:
    """Provide a role that may use the schema of the functions, and nothing else."""
    role = f"r{uuid4().hex[:12]}"
    with postgres.session() as session:
        session.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[arg-type]
        session.execute(f'GRANT USAGE ON SCHEMA "{functions_of(engine)}" TO {role}')  # type: ignore[arg-type]
    return role


def works(engine: Engine) -> None:
    """Check that work is created, claimed, completed and announced."""
    execution_id = created(engine, tags={"a": "b"}, idempotency_key=uuid4().hex)
    claimed = claim_one(engine)
    engine.record_step(claimed.handle, "s", b"1")
    engine.complete(claimed.handle, b"=1")
    assert [event.execution_id for event in engine.subscribe_completions(timeout=timedelta())] == [execution_id]
    engine.run_upkeep()


def test_a_role_that_may_only_call_functions_can_do_everything(
    postgres: PostgresServer, schema: str, caller: str
) -> None:
    url = postgres.url.replace("postgres@", f"{caller}@")
    engine = open_engine(f"{url}&schema={schema}")
    assert not engine.prepare().loaded
    works(engine)
    engine.close()


def test_names_that_lie_in_front_of_the_servers_own_change_nothing(
    postgres: PostgresServer, schema: str, caller: str
) -> None:
    hostile = f"h{uuid4().hex[:12]}"
    with postgres.session() as session:
        for statement in (
            f"CREATE SCHEMA {hostile}",
            f"GRANT USAGE ON SCHEMA {hostile} TO {caller}",
            f"CREATE TABLE {hostile}.executions (x int)",
            f"CREATE FUNCTION {hostile}.clock_timestamp() RETURNS timestamptz LANGUAGE sql "
            "AS 'SELECT now() - interval ''1 day'''",
            f"CREATE FUNCTION {hostile}.octet_length(bytea) RETURNS int LANGUAGE sql AS 'SELECT 7'",
            f"ALTER ROLE {caller} SET search_path = {hostile}, pg_catalog",
        ):
            session.execute(statement)  # type: ignore[arg-type]
    engine = open_engine(f"{postgres.url.replace('postgres@', f'{caller}@')}&schema={schema}")
    before = int(time.time() * 1000)
    works(engine)
    assert abs(engine.server_time() - before) < 60_000
    engine.close()


def test_a_role_without_the_right_is_told_what_to_grant(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    role = f"r{uuid4().hex[:12]}"
    with postgres.session() as session:
        session.execute(f"CREATE ROLE {role} LOGIN")  # type: ignore[arg-type]
    other = open_engine(f"{postgres.url.replace('postgres@', f'{role}@')}&schema={schema}", retry_for=0)
    with refused("permission_denied") as caught:
        other.prepare()
    assert f'GRANT USAGE ON SCHEMA "{functions_of(engine)}" TO "{role}"' in str(caught.value)
    other.close()


# Migrations ----------------------------------------------------------------------------------------------------------


def test_many_that_prepare_an_empty_database_at_once_agree(postgres: PostgresServer, schema: str) -> None:
    engines = [open_engine(f"{postgres.url}&schema={schema}") for _ in range(4)]

    results = together(4, lambda number: engines[number].prepare())

    assert sum(result.loaded for result in results) == 1
    assert sum(result.created for result in results) == 1
    works(engines[0])
    for engine in engines:
        engine.close()


def test_tables_of_a_newer_release_are_refused(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    with postgres.session() as session:
        session.execute(f"INSERT INTO {schema}.migrations (version, name) VALUES (9000, 'later')")  # type: ignore[arg-type]
        session.execute(f'DROP SCHEMA "{functions_of(engine)}" CASCADE')  # type: ignore[arg-type]
    other = open_engine(f"{postgres.url}&schema={schema}", retry_for=0)
    with refused("store_not_supported") as caught:
        other.prepare()
    assert "9000" in str(caught.value)
    other.close()


def test_functions_that_were_dropped_are_installed_again(postgres: PostgresServer, engine: Engine) -> None:
    with postgres.session() as session:
        session.execute(f'DROP SCHEMA "{functions_of(engine)}" CASCADE')  # type: ignore[arg-type]
    works(engine)


def test_two_schemas_of_a_database_never_meet(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    other = open_engine(f"{postgres.url}&schema={schema}_b")
    other.prepare()
    created(engine)
    assert other.claim_many(request()) == []
    other.close()
    claim_one(engine)


# Conflicts -----------------------------------------------------------------------------------------------------------


def test_all_operations_on_the_same_rows_end_without_an_error(engine: Engine) -> None:
    ids = [created(engine, policy=RETRYING, priority=number) for number in range(12)]
    until = time.monotonic() + SECONDS
    problems: list[EngineError] = []

    def act(number: int) -> None:
        draw, held = random.Random(number), list[Claimed]()
        worker = f"w{number}"

        def complete() -> None:
            engine.complete_many([Completion(handle=held.pop().handle) for _ in range(min(3, len(held)))])

        ways: list[Callable[[], object]] = [
            lambda: held.extend(engine.claim_many(request(limit=4, worker=worker, lease=timedelta(milliseconds=50)))),
            lambda: engine.create_executions([creation(policy=RETRYING) for _ in range(3)]),
            lambda: engine.renew_many([each.handle for each in held[:4]]),
            complete,
            lambda: held and engine.fail(held.pop().handle, BOOM, FailureClass.TRANSIENT),
            lambda: held and engine.create_waitpoint(held[-1].handle, "w", timedelta(minutes=1)),
            lambda: engine.cancel_execution(CancelExecutionArgs(execution_id=draw.choice(ids))),
            lambda: engine.replay_execution(ReplayExecutionArgs(execution_id=draw.choice(ids))),
            lambda: engine.change_priority(
                ChangePriorityArgs(execution_id=draw.choice(ids), priority=draw.randrange(9))
            ),
            lambda: engine.purge(draw.choice(ids)) if draw.random() < 0.02 else None,
            engine.run_upkeep,
        ]
        while time.monotonic() < until:
            try:
                draw.choice(ways)()
            except EngineError as error:
                if isinstance(error, TransportError) or error.code == "corruption":
                    problems.append(error)

    together(8, act)

    assert problems == []
    states = Counter[str]()
    page = engine.list_executions(limit=1000)
    while True:
        states.update(str(row.public_state) for row in page.executions)
        if page.next_cursor is None:
            break
        page = engine.list_executions(cursor=page.next_cursor, limit=1000)
    assert {str(state): count for state, count in depths(engine, LANE).items()} == states


def test_work_that_is_submitted_and_claimed_at_once_is_claimed_once(engine: Engine) -> None:
    submitted: list[str] = []
    taken: list[str] = []
    done = threading.Event()

    def act(number: int) -> None:
        if number < 4:
            for _ in range(25):
                execution_id = created(engine)
                submitted.append(str(execution_id))
            return
        while not done.is_set() and len(taken) < 100:
            for each in engine.claim_many(request(limit=3, worker=f"w{number}", max_wait=timedelta(seconds=1))):
                engine.complete(each.handle)
                taken.append(str(each.execution_id))

    together(8, act)
    done.set()
    assert sorted(taken) == sorted(submitted)
    assert {state.value: count for state, count in depths(engine, LANE).items()} == {"completed": 100}


# The heads of classes are picked by one statement and locked by the next.
PAUSE_BEFORE_LOCKS = """
ALTER FUNCTION fn.lock_ready RENAME TO lock_ready_at_once;
CREATE FUNCTION fn.lock_ready(c fn.context, page fn.page, heads uuid[], lease fn.lease) RETURNS fn.page
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_catalog.pg_sleep(0.3);
  RETURN fn.lock_ready_at_once(c, page, heads, lease);
END $$;
"""


def test_work_whose_place_changes_under_a_claim_is_claimed_once(postgres: PostgresServer, engine: Engine) -> None:
    _, moved = queue(engine, 1), queue(engine, 1, priority=9000)[0]
    with postgres.session() as session:
        session.execute(PAUSE_BEFORE_LOCKS.replace("fn.", f'"{functions_of(engine)}".'))  # type: ignore[arg-type]
    claims: list[list[Claimed]] = []
    claim = threading.Thread(target=lambda: claims.append(engine.claim_many(request(limit=9))))

    claim.start()
    time.sleep(0.1)
    engine.change_priority(ChangePriorityArgs(execution_id=moved, priority=0))
    claim.join(20)

    assert sorted(each.execution_id for each in claims[0]) == sorted({each.execution_id for each in claims[0]})
    assert depths(engine, LANE) == {PublicState.ACTIVE: 2}


def test_a_waiting_claim_gets_work_whatever_else_calls_do_with_it(engine: Engine) -> None:
    # A call for the result locks the execution for a moment, while the claim begins to wait for a lane that is new.
    for number in range(100):
        lane = f"l{number}"
        made: list[ExecutionId] = []
        begun = time.monotonic()

        def act(who: int, lane: str = lane, made: list[ExecutionId] = made) -> int:
            if who == 0:
                claimed = engine.claim_many(request(lane, limit=1, max_wait=timedelta(seconds=8)))
                engine.complete_many([Completion(handle=each.handle) for each in claimed])
                return len(claimed)
            made.append(created(engine, lane=lane))
            engine.wait_for_result(made[0], timedelta(seconds=8))
            return 1

        assert together(2, act) == [1, 1]
        assert time.monotonic() - begun < 4, f"round {number} waited for a wake-up that was not sent"


def test_a_waiting_claim_looks_again_soon_for_work_that_a_call_held(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    execution = created(engine)
    claimed: list[Claimed] = []
    waiting = request(LANE, max_wait=timedelta(seconds=30))
    thread = threading.Thread(target=lambda: claimed.extend(engine.claim_many(waiting)))
    with postgres.session() as session, session.transaction():
        session.execute(f"SELECT FROM {schema}.executions FOR UPDATE")
        thread.start()
        with postgres.session() as other:
            wait_until(lambda: other.execute(f"SELECT FROM {schema}.waiters").fetchone() is not None, "the claim waits")
    # Nothing wakes the waiter, which would look by itself only after 10 s.
    thread.join(timeout=5)

    assert [each.execution_id for each in claimed] == [execution]


# Lost connections ----------------------------------------------------------------------------------------------------


def test_calls_go_on_while_connections_are_terminated(postgres: PostgresServer, engine: Engine) -> None:
    until = time.monotonic() + SECONDS / 2

    def act(number: int) -> int:
        if number == 0:
            while time.monotonic() < until:
                with postgres.session() as session:
                    session.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'flowfabric_worker'"
                    )
                time.sleep(0.05)
            return 0
        count = 0
        while time.monotonic() < until:
            created(engine, lane=f"l{number}")
            count += 1
        return count

    made = together(3, act)

    assert all(count > 0 for count in made[1:])
    for number, count in enumerate(made[1:], 1):
        assert sum(depths(engine, f"l{number}").values()) == count


def test_a_waiting_worker_hears_again_after_a_restart() -> None:
    with running(PostgresServer()) as server:
        engine = open_engine(server.url)
        engine.prepare()
        created(engine)
        claim_one(engine)
        claimed: list[Claimed] = []
        waiting = request(max_wait=timedelta(seconds=30))
        thread = threading.Thread(target=lambda: claimed.extend(engine.claim_many(waiting)))
        thread.start()
        with server.session() as session:
            wait_until(lambda: session.execute("SELECT count(*) FROM ff.waiters").fetchone() == (1,), "it waits")
        server.stop()
        server.start()
        other = open_engine(server.url)
        execution_id = created(other)
        thread.join(15)
        assert [each.execution_id for each in claimed] == [execution_id]
        engine.close()
        other.close()


def test_a_listening_connection_stays_while_it_hears_nothing(postgres: PostgresServer, engine: Engine) -> None:
    subscription = engine.store.subscribe("topic")
    assert subscription.wait(3) == []
    engine.store.wake("topic", b"a")
    assert subscription.wait(5) == [b"a"]
    subscription.close()


# Removal -------------------------------------------------------------------------------------------------------------


def test_steps_and_keys_go_with_their_execution(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    policy = ExecutionPolicy(retention=timedelta(), dedup_window=timedelta(milliseconds=1))
    created(engine, idempotency_key="k", policy=policy)
    claimed = claim_one(engine)
    engine.record_step(claimed.handle, "s", b"1")
    engine.complete(claimed.handle)
    wait_until(lambda: engine.run_upkeep().handled, "it is removed")
    with postgres.session() as session:
        for table in ("executions", "steps", "keys"):
            assert session.execute(f"SELECT count(*) FROM {schema}.{table}").fetchone() == (0,)  # type: ignore[arg-type]
