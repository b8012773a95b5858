"""The connections to a server: shared, bounded, and renewed when the server was away."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from flowfabric_worker.engine.call_retries import dedicate_thread
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.stores import pool
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT
from flowfabric_worker.engine.stores.urls import open_store
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool
from tests.support.engines import connections_to, opened
from tests.support.executions import created
from tests.support.servers import PATIENCE, ValkeyServer, free_ports, wait_until

LIVE = 6


def pool_of(url: str) -> ValkeyPool:
    store, _ = open_store(url)
    assert isinstance(store, ValkeyStore)
    return store.pool_of(0)


def pool_of_store(engine: Engine) -> ValkeyPool:
    assert isinstance(engine.store, ValkeyStore)
    return engine.store.pool_of(0)


@contextlib.contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual, so that they meet everywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def no_more_clients(server: ValkeyServer) -> redis.Redis:
    """Let a server take no further connection, and return a client that has one."""
    admin = server.client()
    admin.config_set("maxclients", len(admin.client_list()))
    return admin


def test_the_connection_that_was_used_last_is_used_next(server: ValkeyServer) -> None:
    pool = pool_of(server.url)
    first, second = pool.get_connection(), pool.get_connection()
    assert first is not second
    pool.release(first)
    pool.release(second)

    assert pool.get_connection() is second
    assert pool.get_connection() is first
    pool.disconnect()


def test_an_exhausted_pool_names_the_option_that_enlarges_it(server: ValkeyServer) -> None:
    store, _ = open_store(f"{server.url}?pool_size=1&timeout=1")
    assert isinstance(store, ValkeyStore)
    taken = store.pool_of(0).get_connection()
    with pytest.raises(TransportError, match="pool_size") as caught:
        store.ping()
    assert caught.value.code == "store_timeout"
    assert caught.value.retryable

    store.pool_of(0).release(taken)
    store.ping()
    store.close()


def test_a_waiting_caller_gets_the_connection_that_is_released(server: ValkeyServer) -> None:
    pool = pool_of(f"{server.url}?pool_size=1&timeout=60")
    taken = pool.get_connection()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(pool.get_connection)
        pool.release(taken)
        assert waiting.result(PATIENCE) is taken
    pool.disconnect()


def test_many_threads_share_few_connections(server: ValkeyServer) -> None:
    with opened(f"{server.url}?pool_size=2", retry_for=0) as engine, ThreadPoolExecutor(8) as threads:
        engine.prepare()
        made = list(threads.map(lambda _: created(engine), range(200)))

        assert len(set(made)) == 200
        assert connections_to(server) <= 2


def test_a_restart_is_noticed_before_a_call_uses_an_idle_connection(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "LOOK_AFTER", 0.0)
    with opened(server.url, retry_for=0) as engine:
        created(engine)
        server.kill()
        server.start()

        created(engine)


def test_a_server_that_was_away_leaves_every_connection_free_again(server: ValkeyServer) -> None:
    with opened(f"{server.url}?pool_size=1&timeout=1", retry_for=0) as engine:
        created(engine)
        server.kill()
        for _ in range(3):
            with pytest.raises(TransportError) as caught:
                created(engine)
            assert caught.value.code == "transport"
        server.start()

        created(engine)


def test_a_closed_pool_closes_its_connections_and_opens_new_ones_when_used(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine:
        created(engine)
        engine.store.close()
        wait_until(lambda: not connections_to(server), "the connection is closed")

        created(engine)


@pytest.mark.parametrize("kind", ["memory", "server"])
def test_closing_a_store_ends_the_calls_of_other_threads_by_typed_errors(
    kind: str, request: pytest.FixtureRequest
) -> None:
    url = "memory://" if kind == "memory" else request.getfixturevalue("server").url
    store, _ = open_store(url)
    store.install()
    closed = threading.Event()

    def call() -> list[BaseException]:
        raised: list[BaseException] = []
        while not closed.is_set():
            try:
                store.call("server_time", 0, [])
            except BaseException as error:  # noqa: BLE001  which errors come is what this is about
                raised.append(error)
        return raised

    with switching_often(), ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(call) for _ in range(4)]
        try:
            for _ in range(100):
                store.close()
                time.sleep(0.001)
        finally:
            closed.set()
        raised = [error for each in calls for error in each.result(CALL_TIMEOUT)]
    store.close()

    assert [error for error in raised if not isinstance(error, TransportError)] == []


def test_a_reset_pool_uses_none_of_its_old_connections(server: ValkeyServer) -> None:
    pool = pool_of(server.url)
    old = pool.get_connection()
    pool.release(old)
    taken = pool.get_connection()
    pool.reset_after_fork()
    pool.release(taken)

    assert pool.get_connection() not in (old, taken)
    pool.disconnect()


def test_a_burst_at_the_limit_of_clients_still_uses_live_connections(server: ValkeyServer) -> None:
    with opened(f"{server.url}?pool_size=32", retry_for=0) as engine, ThreadPoolExecutor(32) as threads:
        created(engine)
        pool = pool_of_store(engine)
        for connection in [pool.get_connection() for _ in range(LIVE)]:
            pool.release(connection)
        admin = no_more_clients(server)
        # Some of these find no idle connection, and may open no new one.
        taken = [pool.get_connection() for _ in range(LIVE)]
        refused = threads.submit(created, engine).exception(10)
        assert isinstance(refused, TransportError)
        assert refused.retryable
        for connection in taken:
            pool.release(connection)

        assert len({created(engine) for _ in range(20)}) == 20
        admin.close()


def test_an_idle_connection_that_died_fails_no_call_while_others_live(server: ValkeyServer) -> None:
    with opened(f"{server.url}?pool_size=32", retry_for=0) as engine:
        created(engine)
        pool = pool_of_store(engine)
        taken = [pool.get_connection() for _ in range(LIVE)]
        for connection in taken:
            pool.release(connection)
        # The server closes all but the one that would be used last, and lets no other in.
        for each in server.client().client_list()[1:LIVE]:
            server.client().client_kill_filter(_id=each["id"])
        admin = no_more_clients(server)
        with contextlib.suppress(TransportError):
            created(engine)

        created(engine)
        admin.close()


def test_a_thread_that_keeps_connections_calls_while_all_others_are_in_use(server: ValkeyServer) -> None:
    with opened(f"{server.url}?pool_size=1&timeout=1", retry_for=0) as engine, ThreadPoolExecutor(1) as threads:
        created(engine)
        threads.submit(dedicate_thread, engine).result(PATIENCE)
        pool = pool_of_store(engine)
        taken = pool.get_connection()
        admin = no_more_clients(server)

        assert threads.submit(created, engine).result(PATIENCE)
        with pytest.raises(TransportError, match="pool_size"):
            created(engine)
        pool.release(taken)
        admin.close()


def test_a_connection_that_a_thread_keeps_is_closed_when_the_thread_ends(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(dedicate_thread, engine).result(PATIENCE)
            before = connections_to(server)

        wait_until(lambda: connections_to(server) == before - 1, "the connection is closed")


def test_a_pool_tells_no_password() -> None:
    (port,) = free_ports(1)
    pool = pool_of(f"valkey://ann:hunter2@127.0.0.1:{port}")

    assert "hunter2" not in repr(pool)
