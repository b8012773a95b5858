"""Stores that fail, lose data, refuse or do not answer: callers are not affected, or get an error that says why."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.states import TerminalOutcome
from tests.support.engines import opened
from tests.support.executions import BOOM, LANE, claim_one, created, refused, request
from tests.support.servers import PATIENCE, ValkeyServer, free_ports, wait_until
from tests.support.servers import running as running_server

COUNT = 300
WORKERS = 2
PASSWORD = "hunter2"


# Under load


@attrs.frozen
class Load:
    """One thread that creates work and two that do it, until all of it has ended.

    Attributes:
        created: what was acknowledged as created.
        ended: what was acknowledged as completed.
    """

    engine: Engine
    created: list[ExecutionId] = attrs.field(factory=list)
    ended: list[ExecutionId] = attrs.field(factory=list)
    gave_up: threading.Event = attrs.field(factory=threading.Event)

    def create(self) -> None:
        for _ in range(COUNT):
            self.created.append(created(self.engine))

    def work(self, worker: str) -> None:
        wanted = request(LANE, worker=worker, limit=4, max_wait=timedelta(seconds=0.5))
        while len(self.ended) < COUNT and not self.gave_up.is_set():
            claimed = self.engine.claim_many(wanted)
            answers = self.engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in claimed])
            assert answers == [None] * len(claimed)
            self.ended.extend(each.execution_id for each in claimed)

    def has_ended(self, count: int) -> bool:
        """Return True if at least so many have ended."""
        return len(self.ended) >= count

    def run(self, disturb: Callable[[list[Future[None]]], None]) -> None:
        """Run the load while `disturb` does its worst; raise what reached any of the callers."""
        with ThreadPoolExecutor(1 + WORKERS) as threads:
            futures = [threads.submit(self.create)]
            futures += [threads.submit(self.work, f"w{number}") for number in range(WORKERS)]
            try:
                disturb(futures)
                for future in futures:
                    future.result(60)
            finally:
                self.gave_up.set()

    def assert_each_ended_once(self) -> None:
        events = list(self.engine.subscribe_completions(timeout=timedelta(0)))
        assert len(self.created) == COUNT
        assert {event.outcome for event in events} == {TerminalOutcome.SUCCESS}
        assert Counter(event.execution_id for event in events) == Counter(self.created)
        assert Counter(self.ended) == Counter(self.created)


@pytest.mark.parametrize(
    "commands",
    [
        pytest.param(["FUNCTION FLUSH"], id="functions flushed"),
        pytest.param(["CLIENT KILL TYPE normal", "CLIENT KILL TYPE pubsub"], id="connections cut"),
    ],
)
def test_callers_notice_no_disturbance_and_nothing_is_lost_or_doubled(
    server: ValkeyServer, commands: list[str]
) -> None:
    disturbances = 0

    def disturb(futures: list[Future[None]]) -> None:
        nonlocal disturbances
        client = server.client()
        while not all(future.done() for future in futures):
            for command in commands:
                client.execute_command(*command.split(" "))
            disturbances += 1
            time.sleep(0.05)

    with opened(server.url) as engine:
        load = Load(engine)
        load.run(disturb)

        assert disturbances > 5
        load.assert_each_ended_once()


def test_work_that_a_killed_store_acknowledged_ends_once_when_it_is_back(server: ValkeyServer) -> None:
    def disturb(futures: list[Future[None]]) -> None:
        for reached in (COUNT // 6, COUNT // 2):
            wait_until(partial(load.has_ended, reached), "the load is under way")
            server.kill()
            server.start()
        assert not all(future.done() for future in futures)

    with opened(server.url, retry_for=30) as engine:
        load = Load(engine)
        load.run(disturb)

        load.assert_each_ended_once()


# Unusable stores


@pytest.mark.parametrize("url", ["unix:///nowhere/v.sock", "valkey://127.0.0.1:{port}"])
def test_a_missing_store_is_named_in_the_error(url: str) -> None:
    url = url.format(port=free_ports(1)[0])
    with opened(url, retry_for=0) as engine, refused("transport") as caught:
        engine.prepare()

    assert url.partition("://")[2] in str(caught.value)


@pytest.mark.parametrize("user", ["", f":wrong{PASSWORD}@"])
def test_a_password_that_is_missing_or_wrong_is_refused_and_never_told(server: ValkeyServer, user: str) -> None:
    server.client().config_set("requirepass", PASSWORD)
    url = f"unix://{user}{server.socket}"

    with opened(url) as engine, refused("authentication_failed") as caught:
        engine.prepare()

    assert str(server.socket) in str(caught.value)
    for text in (str(caught.value), repr(caught.value), repr(caught.value.details), str(caught.value.__cause__)):
        assert PASSWORD not in text


def caller_url(server: ValkeyServer) -> str:
    """Return the URL of a user that may call functions and not load them."""
    server.client().execute_command("ACL", "SETUSER", "caller", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-function")
    return f"unix://caller:{PASSWORD}@{server.socket}"


def test_a_user_that_may_not_load_functions_is_told_what_to_do(
    server: ValkeyServer,
) -> None:
    with opened(caller_url(server)) as engine:
        for call in (engine.prepare, lambda: created(engine)):
            with refused("permission_denied") as caught:
                call()
            assert "FUNCTION LOAD" in str(caught.value)
            assert "flowfabric-worker check" in str(caught.value)

        with opened(server.url) as owner:
            owner.prepare()
        made = created(engine)
        assert claim_one(engine).execution_id == made


def test_the_advice_to_a_user_that_may_not_load_functions_lets_it_prepare(server: ValkeyServer) -> None:
    with opened(server.url) as owner:
        owner.prepare()

    with opened(caller_url(server)) as engine:
        assert not engine.prepare().loaded


def test_a_store_that_throws_keys_away_is_refused() -> None:
    with (
        running_server(ValkeyServer("--maxmemory-policy", "allkeys-lru")) as server,
        opened(server.url) as engine,
        refused("store_not_supported") as caught,
    ):
        engine.prepare()

    assert "allkeys-lru" in str(caught.value)
    assert "noeviction" in str(caught.value)


class _OldServer(socketserver.StreamRequestHandler):
    """Answers as a server from before there were functions."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            self.wfile.write(self.answer(words[0].upper()))

    @staticmethod
    def answer(command: bytes) -> bytes:
        if command == b"PING":
            return b"+PONG\r\n"
        if command == b"INFO":
            text = b"# Server\r\nredis_version:6.2.0\r\n"
            return b"$%d\r\n%s\r\n" % (len(text), text)
        return b"-ERR unknown command '%s'\r\n" % command


@pytest.fixture
def old_server_url() -> Iterator[str]:
    """Provide a server that is too old."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _OldServer) as old:
        old.daemon_threads = True
        threading.Thread(target=old.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"valkey://127.0.0.1:{old.server_address[1]}"
        old.shutdown()


@pytest.mark.parametrize("call", [Engine.prepare, created])
def test_a_store_that_is_too_old_is_refused_with_the_required_versions(
    old_server_url: str, call: Callable[[Engine], object]
) -> None:
    with opened(old_server_url) as engine, refused("store_not_supported") as caught:
        call(engine)

    assert "Valkey 7.2 or Redis 7.0" in str(caught.value)


def test_a_full_store_takes_no_new_work_and_lets_what_runs_go_on(server: ValkeyServer) -> None:
    with opened(server.url) as engine:
        for _ in range(3):
            created(engine)
        completing, failing, waiting = (claim_one(engine).handle for _ in range(3))
        server.client().config_set("maxmemory", 1)

        with refused("store_full"):
            created(engine)
        assert engine.renew(waiting).lease_epoch == waiting.lease_epoch
        engine.complete(completing, b"1")
        engine.fail(failing, BOOM, FailureClass.PERMANENT)

        server.client().config_set("maxmemory", 0)
        created(engine)
        outcomes = {each.execution_id: each.outcome for each in engine.subscribe_completions(timeout=timedelta(0))}
        assert outcomes == {
            completing.execution_id: TerminalOutcome.SUCCESS,
            failing.execution_id: TerminalOutcome.FAILED,
        }


# Silence


@contextmanager
def takes(least: float, most: float) -> Iterator[None]:
    """Provide what happens inside takes this many seconds."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began < most


def test_a_store_that_accepts_connections_and_never_answers_fails_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with (
            opened(f"valkey://127.0.0.1:{port}", retry_for=0) as engine,
            takes(4.5, 15.0),
            refused("store_timeout") as caught,
        ):
            engine.prepare()

    assert f"127.0.0.1:{port}" in str(caught.value)


@pytest.mark.parametrize("connected", [True, False])
def test_a_renewal_is_given_up_after_a_sixth_of_the_lease(server: ValkeyServer, connected: bool) -> None:
    with opened(server.url, retry_for=0) as engine:
        created(engine)
        handle = claim_one(engine, lease=timedelta(seconds=3)).handle
        if not connected:
            engine.store.close()
        server.client().execute_command("CLIENT", "PAUSE", 30_000, "ALL")

        with takes(0.45, 4.0), refused("store_timeout"):
            engine.renew(handle)


# Shutting down


def test_a_shutdown_lets_a_call_under_way_finish_within_its_grace(server: ValkeyServer) -> None:
    with opened(server.url) as engine, ThreadPoolExecutor() as pool:
        engine.prepare()
        server.client().client_pause(3000)
        call = pool.submit(created, engine)
        wait_until(lambda: engine.under_way.wait(0), "the call is under way")
        engine.shutdown_prepare(timedelta(seconds=PATIENCE))
        with opened(server.url) as other:
            assert other.describe_execution(call.result()) is not None


def test_a_shutdown_that_cannot_wait_says_that_a_call_was_still_under_way(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine, ThreadPoolExecutor() as pool:
        engine.prepare()
        server.client().client_pause(3000)
        call = pool.submit(created, engine)
        wait_until(lambda: engine.under_way.wait(0), "the call is under way")
        with refused("timeout"):
            engine.shutdown_prepare(timedelta())
        call.exception(PATIENCE)
