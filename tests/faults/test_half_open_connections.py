"""An exception that reaches a thread while a connection is opened, or a reply is outstanding, harms no later call."""

from __future__ import annotations

import itertools
import linecache
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis

from flowfabric_worker.engine import stores
from flowfabric_worker.engine.stores.urls import open_store
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from tests.support.proxy import Proxy
from tests.support.servers import ValkeyServer, wait_until

DATABASE = 3
DELAY = 0.005
TRACED = tuple(str(Path(str(package.__file__)).parent) for package in (redis, stores))


class InterruptedBySignalError(BaseException):
    """What a signal's handler raises, as Ctrl-C raises KeyboardInterrupt."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise in the main thread after so many seconds, unless the block has ended by then."""

    def interrupt(*_: object) -> None:
        raise InterruptedBySignalError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def slow_store(server: ValkeyServer, options: str = "") -> Iterator[tuple[ValkeyStore, Proxy]]:
    """Provide a store behind a network on which every answer takes a while, in a database of its own."""
    proxy = Proxy(server.socket)
    proxy.delay = DELAY
    store, _ = open_store(f"valkey://127.0.0.1:{proxy.port}/{DATABASE}{options}")
    assert isinstance(store, ValkeyStore)
    try:
        yield store, proxy
    finally:
        store.close()
        proxy.close()


def said(store: ValkeyStore, *command: str) -> Any:
    return store.execute(store.pool_of(0), *command)


def is_finalizing(frame: FrameType | None) -> bool:
    """Return True if a frame runs for the garbage collector, where an exception would reach no caller."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Raise before the line of that number that this thread runs in the driver or in a store, if it gets so far."""
    steps = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        file = frame.f_code.co_filename
        if not file.startswith(TRACED) or is_finalizing(frame):
            return None
        # No signal's handler runs between a lock and its block, nor between the block and the lock's release.
        if event == "line" and not linecache.getline(file, frame.f_lineno).strip().startswith("with"):
            steps += 1
            if steps == step:
                raise InterruptedBySignalError
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def is_interrupted(store: ValkeyStore, step: int) -> bool:
    """Make a call that is interrupted at a step; False if it has fewer steps."""
    try:
        with interrupted_at(step):
            said(store, "ECHO", "lost")
    except InterruptedBySignalError:
        return True
    return False


@pytest.mark.parametrize("opens", [True, False])
def test_no_reply_belongs_to_the_call_before_wherever_it_was_interrupted(server: ValkeyServer, opens: bool) -> None:
    """Check besides that no call goes to another database and that the pool loses no connection."""
    store, _ = open_store(f"{server.url}?db={DATABASE}&pool_size=1&timeout=2")
    assert isinstance(store, ValkeyStore)
    for step in itertools.count(1):
        if opens:
            store.close()
        if not is_interrupted(store, step):
            break
        assert said(store, "ECHO", str(step)) == str(step).encode()
        said(store, "SET", f"key-{step}", "1")

    store.close()
    assert step > 10
    assert server.client().dbsize() == 0
    assert server.client().info("keyspace")[f"db{DATABASE}"]["keys"] == step - 1


def test_a_time_out_while_a_connection_is_opened_closes_it(server: ValkeyServer) -> None:
    with slow_store(server, "?timeout=1") as (store, proxy):
        proxy.delay = 2.0
        with pytest.raises(Exception, match="did not answer in time"):
            said(store, "SET", "lost", "1")
        proxy.delay = 0.0

        assert said(store, "ECHO", "mine") == b"mine"
        said(store, "SET", "kept", "1")

    assert server.client().dbsize() == 0


def test_a_subscription_that_is_interrupted_while_it_opens_is_closed(server: ValkeyServer) -> None:
    with slow_store(server) as (store, proxy):
        proxy.delay = 0.2
        with pytest.raises(InterruptedBySignalError), interrupted_after(0.3):
            store.subscribe("topic")
        proxy.delay = 0.0

        wait_until(lambda: not server.client().pubsub_numsub(store.channel("topic"))[0][1], "it is closed")
        opened = store.subscribe("topic")
        store.wake("topic", b"hello")
        assert opened.wait(5) == [b"hello"]
        opened.close()
