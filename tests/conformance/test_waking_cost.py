"""What waiting costs a server, and what it survives there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.executions import created
from tests.support.servers import ValkeyServer, wait_until
from tests.support.waiters import AT_ONCE, Opener, known_class, registered, waiting


@pytest.fixture
def server_url(valkey: ValkeyServer) -> str:
    """Provide a store on the server whose commands are counted."""
    return f"{valkey.url}?prefix=w{uuid4().hex[:12]}"


@pytest.fixture
def opened(server_url: str) -> Iterator[Opener]:
    """Open engines on that server."""
    with ExitStack() as stack:

        def open_one() -> Engine:
            engine = open_engine(server_url)
            engine.prepare()
            stack.callback(engine.close)
            return engine

        yield open_one


def function_calls(valkey: ValkeyServer) -> int:
    """Return how many functions the server ran since its counters were reset."""
    return int(valkey.client().info("commandstats").get("cmdstat_fcall", {}).get("calls", 0))


def test_idle_workers_cost_next_to_nothing(valkey: ValkeyServer, opened: Opener) -> None:
    engine = opened()
    known_class(engine)
    waiters = [waiting(opened()) for _ in range(8)]
    valkey.client().config_resetstat()

    time.sleep(3)

    assert function_calls(valkey) < 3 * 5
    assert not any(waiter.is_over for waiter in waiters)
    created(engine)
    wait_until(lambda: any(waiter.is_over for waiter in waiters), "one of them gets work", AT_ONCE)


def test_one_submission_causes_one_claim(valkey: ValkeyServer, opened: Opener) -> None:
    engine = opened()
    known_class(engine)
    waiters = [waiting(opened()) for _ in range(8)]
    valkey.client().config_resetstat()

    created(engine)

    wait_until(lambda: any(waiter.is_over for waiter in waiters), "one of them gets work", AT_ONCE)
    # A worker that was woken without work would have called by now.
    time.sleep(0.3)
    assert function_calls(valkey) == 2
    assert sum(waiter.is_over for waiter in waiters) == 1


def test_a_lost_connection_of_the_listener_loses_no_work(valkey: ValkeyServer, opened: Opener) -> None:
    engine = opened()
    known_class(engine)
    waiter = waiting(opened())

    valkey.client().execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    created(engine)

    assert len(waiter.result()) == 1


def test_waking_works_again_after_the_listener_connected_again(valkey: ValkeyServer, opened: Opener) -> None:
    engine = opened()
    known_class(engine)
    waiter = waiting(opened())
    client = valkey.client()
    client.config_resetstat()

    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    # After the reconnect every waiter looks once, and waits again.
    wait_until(lambda: function_calls(valkey) >= 1, "the waiting worker looked", AT_ONCE)
    wait_until(lambda: registered(engine) == 1, "it waits again")
    time.sleep(0.1)
    assert not waiter.is_over
    created(engine)

    assert len(waiter.result()) == 1
