"""The thread that listens for wake-ups: what it hears, what ends it, and those who wait for it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowfabric_worker.engine import feed
from flowfabric_worker.engine import listener as listening
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.stores import subscription
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from tests.support.embedded import guardian_pids, server_pids
from tests.support.engines import opened
from tests.support.executions import claim_one, created, refused, request
from tests.support.servers import PATIENCE, ValkeyServer, wait_until
from tests.support.waiters import known_class, waiting

SOON = PATIENCE


def publish(server: ValkeyServer, engine: Engine, message: bytes) -> int:
    """Send a message to what an engine listens to; to how many connections it went."""
    assert isinstance(engine.store, ValkeyStore)
    return int(server.client().publish(engine.store.channel(engine.listener.topic), message))


def has_ended(engine: Engine, execution: ExecutionId) -> None:
    """Run an execution to its end."""
    handle = claim_one(engine).handle
    assert handle.execution_id == execution
    engine.complete(handle, b"1")


@contextmanager
def waiting_for_result(
    engine: Engine, execution: ExecutionId, timeout: timedelta | None = None
) -> Iterator[Future[ExecutionOutcome]]:
    """Provide a thread that waits for the result of an execution."""
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(engine.wait_for_result, execution, timeout)
        wait_until(lambda: engine.listener._results.get(str(execution)), "it waits")
        yield future


def watched(engine: Engine) -> Any:
    """Wait for an end that will be told by a message alone; what it is known by, and its event."""
    name = str(ExecutionId.mint(engine.partitions))
    return name, engine.listener.watch(name, lambda _: ())


MESSAGES = [
    b"",
    b"wake",
    b"wake x",
    b"wake 0 1",
    b"wake 999",
    b"wake -1",
    b"standby 0 x other",
    b"taken 0",
    b"done",
    b"lost",
    b"lost one",
    b"\xff\xfe",
    b"hello",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_cannot_be_used_is_ignored_with_one_line(
    server: ValkeyServer, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        name, event = watched(engine)
        with caplog.at_level(logging.WARNING):
            for _ in range(20):
                publish(server, engine, message)
            publish(server, engine, f"done {name}".encode())
            assert event.wait(SOON)

        assert [record.getMessage().count("ignored") for record in caplog.records] == [1]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_waiter_ignores_what_it_cannot_use_with_one_line(
    server: ValkeyServer, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        waiter = engine.waiter()
        assert waiter.wait(0) is None
        with caplog.at_level(logging.WARNING):
            for _ in range(20):
                engine.store.wake(waiter.name, message)
            engine.store.wake(waiter.name, b"wake 0")
            assert waiter.wait(SOON) == {0}

        assert [record.getMessage().count("ignored") for record in caplog.records] == [1]


def test_a_waiting_claim_is_woken_though_the_listening_thread_is_stuck(server: ValkeyServer) -> None:
    with opened(server.url) as engine, opened(server.url) as other:
        engine.prepare()
        known_class(engine)
        with stuck_listener(server, engine):
            waiter = waiting(engine)
            made = created(other)

            assert [each.execution_id for each in waiter.result()] == [made]


def test_claims_of_one_instance_that_wait_at_once_are_all_woken(server: ValkeyServer) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        known_class(engine)
        waiters = [waiting(engine, worker="one") for _ in range(3)]
        made = {created(engine) for _ in range(3)}

        assert {each.execution_id for waiter in waiters for each in waiter.result()} == made


def test_workers_that_wait_once_do_not_pile_up_connections(server: ValkeyServer) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        for number in range(60):
            engine.claim_many(request(worker=f"w{number}", max_wait=timedelta()))

        assert len(server.client().client_list(_type="pubsub")) <= 20


def test_a_waiter_whose_connection_dies_at_once_claims_seldom(server: ValkeyServer) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        known_class(engine)
        waiter = waiting(engine)
        admin = server.client()
        admin.config_resetstat()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            admin.client_kill_filter(_type="pubsub")

        assert 2 <= admin.info("commandstats")["cmdstat_fcall"]["calls"] <= 20
        created(engine)
        assert len(waiter.result(SOON)) == 1


def test_a_waiter_of_a_silent_server_looks_for_itself(server: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription, "_ASK_AFTER", 0.2)
    monkeypatch.setattr(listening, "_LISTEN", 0.1)
    with opened(server.url) as engine:
        engine.prepare()
        waiter = engine.waiter()
        waiter.wait(0)
        # It answers, so silence alone is no loss.
        assert waiter.wait(1.0) == set()
        server.client().client_pause(1500)

        assert waiter.wait(SOON) is None


def test_a_callback_that_fails_does_not_end_listening(server: ValkeyServer) -> None:
    def fail(execution: str, fence: str) -> None:
        raise RuntimeError(execution + fence)

    with opened(server.url) as engine:
        engine.prepare()
        name, event = watched(engine)
        engine.listener.on_lost(fail)
        publish(server, engine, b"lost one fence")
        publish(server, engine, f"done {name}".encode())

        assert event.wait(SOON)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_started_again_by_the_next_to_wait(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    def die(*_: str) -> None:
        raise SystemExit

    with opened(server.url) as engine:
        engine.prepare()
        thread = engine.listener._thread
        engine.listener.on_lost(die)
        publish(server, engine, b"lost one fence")
        thread.join(SOON)
        assert not thread.is_alive()

        name, event = watched(engine)
        wait_until(lambda: publish(server, engine, f"done {name}".encode()), "it listens again")
        assert event.wait(SOON)
    assert any("had died" in record.getMessage() for record in caplog.records)


def test_a_recheck_that_fails_costs_no_connections(server: ValkeyServer, caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Event()

    def fail(_: list[str]) -> Iterable[str]:
        tried.set()
        raise TransportError

    with opened(server.url) as engine:
        engine.prepare()
        engine.listener.watch(str(ExecutionId.mint(1)), fail)
        before = connections_made(server)
        server.client().client_kill_filter(_type="pubsub")
        assert tried.wait(SOON)
        time.sleep(1.0)

        # One connection is this test's, and one belongs to each poll.
        assert connections_made(server) - before <= 5
        assert len(caplog.records) <= 3


def connections_made(server: ValkeyServer) -> int:
    return int(server.client().info("stats")["total_connections_received"])


def test_a_subscription_that_dies_at_once_is_not_opened_in_a_hurry(
    server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(server.url) as engine:
        engine.prepare()
        assert not engine.listener.is_closed
        admin = server.client()
        killed, until = 0, time.monotonic() + 3.0
        while time.monotonic() < until:
            killed += int(admin.client_kill_filter(_type="pubsub"))

        assert 2 <= killed <= 12
        assert len(caplog.records) == 1


def test_listening_alone_brings_an_embedded_server_back(tmp_path: Path) -> None:
    home = tmp_path / "store"
    with opened(f"embedded://{home}") as engine:
        engine.prepare()
        name, event = watched(engine)
        for pid in [*guardian_pids(home), *server_pids(home)]:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(server_pids(home)) == 1, "the server is back")

        def is_heard() -> bool:
            with contextlib.suppress(TransportError):
                engine.store.wake(engine.listener.topic, f"done {name}".encode())
            return event.is_set()

        wait_until(is_heard, "it is heard")


@pytest.mark.parametrize("timeout", [None, timedelta(seconds=60)])
def test_waiting_for_a_result_ends_with_an_error_when_the_engine_is_closed(
    server: ValkeyServer, timeout: timedelta | None
) -> None:
    with opened(server.url) as engine:
        with waiting_for_result(engine, created(engine), timeout) as result:
            engine.close()
            with refused("engine_closed"):
                result.result(SOON)
        with refused("engine_closed"):
            engine.wait_for_result(created(engine), timeout)


def test_a_result_that_came_during_an_outage_is_returned_at_the_time_out(server: ValkeyServer) -> None:
    with opened(server.url) as engine, stuck_listener(server, engine):
        made = created(engine)
        with waiting_for_result(engine, made, timedelta(seconds=1.5)) as result:
            has_ended(engine, made)

            assert result.result(SOON).result == b"1"


def test_each_looks_by_itself_at_its_fallback_when_the_listener_does_not(
    server: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "FALLBACK", 0.5)
    monkeypatch.setattr(feed, "FALLBACK", 0.5)
    with opened(server.url) as engine, stuck_listener(server, engine):
        made = created(engine)
        with waiting_for_result(engine, made) as result:
            has_ended(engine, made)

            assert result.result(SOON).result == b"1"


@contextmanager
def stuck_listener(server: ValkeyServer, engine: Engine) -> Iterator[None]:
    """Provide the thread of an engine's listener does not come back from a callback while the block runs."""
    stuck, free = threading.Event(), threading.Event()

    def hang(*_: str) -> None:
        stuck.set()
        free.wait(60)

    engine.prepare()
    engine.listener.on_lost(hang)
    publish(server, engine, b"lost one fence")
    assert stuck.wait(SOON)
    yield
    free.set()
