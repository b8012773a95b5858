"""A connection that a test leaves to the next one brings nothing of what that test did along."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.stores.postgres import PostgresStore
from tests.support.postgres import PostgresServer
from tests.support.reused_connections import close_idle_connections, reusing_connections
from tests.support.servers import wait_until

Act = Callable[[PostgresStore], object]


@pytest.fixture(autouse=True)
def reusing() -> Iterator[None]:
    close_idle_connections()
    with reusing_connections():
        yield


def opened(postgres: PostgresServer) -> Engine:
    return open_engine(f"{postgres.url}&schema=reused", retry_for=0)


def asked(engine: Engine, query: str) -> Any:
    """Return the one value of a query on the engine's connection."""
    assert isinstance(engine.store, PostgresStore)
    with engine.store.connection() as connection:
        return connection.execute(query, timeout=5)[0][0]


def session_of(engine: Engine) -> str:
    return str(asked(engine, "SELECT pg_backend_pid()"))


def after(postgres: PostgresServer, act: Act) -> Engine:
    """Return a new engine that has the session in which an earlier one did something."""
    with closing(opened(postgres)) as engine:
        before = session_of(engine)
        assert isinstance(engine.store, PostgresStore)
        act(engine.store)
        assert session_of(engine) == before
    following = opened(postgres)
    assert session_of(following) == before
    return following


def running(*statements: str) -> Act:
    def run(store: PostgresStore) -> None:
        with store.connection() as connection:
            for statement in statements:
                connection.execute(statement, timeout=5)

    return run


@pytest.mark.parametrize(
    ("act", "query", "expected"),
    [
        (running("SET jit_above_cost = 7"), "SELECT current_setting('jit_above_cost')", "100000"),
        (running("SET statement_timeout = 0"), "SELECT current_setting('statement_timeout')", "10s"),
        (running("SET ROLE pg_monitor"), "SELECT current_user", "postgres"),
        (running("CREATE TEMP TABLE t ()"), "SELECT count(*) FROM pg_class WHERE relname = 't'", "0"),
        (running("PREPARE p AS SELECT 1"), "SELECT count(*) FROM pg_prepared_statements", "0"),
        (running("DECLARE c CURSOR WITH HOLD FOR SELECT 1"), "SELECT count(*) FROM pg_cursors", "0"),
        (running("LISTEN heard"), "SELECT count(*) FROM pg_listening_channels()", "0"),
        (running("SELECT pg_advisory_lock(7)"), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    ],
    ids=["setting", "limit", "role", "table", "statement", "cursor", "channel", "lock"],
)
def test_a_session_is_reset_for_its_next_user(postgres: PostgresServer, act: Act, query: str, expected: str) -> None:
    with closing(after(postgres, act)) as engine:
        assert asked(engine, query) == expected


def test_a_message_for_the_last_user_does_not_reach_the_next(postgres: PostgresServer) -> None:
    with closing(after(postgres, running("LISTEN heard", "NOTIFY heard"))) as engine:
        assert isinstance(engine.store, PostgresStore)
        with engine.store.connection() as connection:
            assert connection.pgconn.notifies() is None


def test_a_session_in_a_transaction_is_not_used_again(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as engine:
        left = session_of(engine)
        assert isinstance(engine.store, PostgresStore)
        running("BEGIN")(engine.store)
    with closing(opened(postgres)) as engine:
        assert session_of(engine) != left
    wait_until(lambda: not is_there(postgres, left), "the session ends")


def test_a_session_with_an_unread_result_is_not_used_again(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as engine:
        left = session_of(engine)
        assert isinstance(engine.store, PostgresStore)
        with engine.store.connection() as connection:
            connection.pgconn.send_query(b"SELECT 1")
            connection.disconnect()
    with closing(opened(postgres)) as engine:
        assert session_of(engine) != left


def test_a_terminated_session_is_not_used_again(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as engine:
        left = session_of(engine)
    with postgres.session() as session:
        session.execute("SELECT pg_terminate_backend(%s, 5000)", (int(left),))
    with closing(opened(postgres)) as engine:
        assert session_of(engine) != left


def test_a_listener_leaves_its_session_without_its_channels(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as engine:
        engine.prepare()
        engine.store.subscribe("heard")
        left = asked(engine, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
    wait_until(lambda: not held(postgres), "the lock is released")
    assert is_there(postgres, left)


def test_two_users_at_once_have_a_session_each(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as one, closing(opened(postgres)) as two:
        assert session_of(one) != session_of(two)
    with closing(opened(postgres)) as one, closing(opened(postgres)) as two:
        assert session_of(one) != session_of(two)


def test_a_forked_process_leaves_the_idle_sessions_to_its_parent(postgres: PostgresServer) -> None:
    with closing(opened(postgres)) as engine:
        left = session_of(engine)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, session_of(opened(postgres)).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(reading, 20).decode() != left
    os.close(reading)
    os.close(writing)
    with closing(opened(postgres)) as engine:
        assert session_of(engine) == left


def test_many_threads_never_share_a_session(postgres: PostgresServer) -> None:
    together = threading.Barrier(4)
    sessions: list[tuple[int, str]] = []

    def use() -> None:
        for turn in range(20):
            with closing(opened(postgres)) as engine:
                session = session_of(engine)
                together.wait(20)
                sessions.append((turn, session))
                together.wait(20)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(sessions)) == len(sessions) == 80


def is_there(postgres: PostgresServer, session: str) -> bool:
    with postgres.session() as other:
        return bool(other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (int(session),)).fetchall())


def held(postgres: PostgresServer) -> bool:
    with postgres.session() as other:
        return bool(other.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchall())
