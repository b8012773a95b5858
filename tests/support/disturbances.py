"""Ways to disturb a real server so that it answers and serves no writes, and to end that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import redis

from tests.support.servers import ValkeyServer, wait_until

Disturbance: TypeAlias = Callable[[ValkeyServer], contextlib.AbstractContextManager[None]]


@contextmanager
def failing_saves(server: ValkeyServer) -> Iterator[None]:
    """Provide the server cannot save its data, and refuses writes for that (MISCONF)."""
    client = server.client()
    (server.folder / "dump.rdb").mkdir(exist_ok=True)
    client.config_set("save", "3600 1000000")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "the save has failed")
    yield
    client.config_set("save", "")


@contextmanager
def missing_replicas(server: ValkeyServer) -> Iterator[None]:
    """Provide the server wants more replicas than there are (NOREPLICAS)."""
    server.client().config_set("min-replicas-to-write", 1)
    yield
    server.client().config_set("min-replicas-to-write", 0)


@contextmanager
def demoted(server: ValkeyServer) -> Iterator[None]:
    """Provide the server follows another one that is away (READONLY)."""
    server.client().replicaof("127.0.0.1", "1")
    yield
    server.client().replicaof("NO", "ONE")


@contextmanager
def cut_off(server: ValkeyServer) -> Iterator[None]:
    """Provide the server follows another one that is away, and does not tell what it knew (MASTERDOWN)."""
    with demoted(server):
        server.client().config_set("replica-serve-stale-data", "no")
        yield
        server.client().config_set("replica-serve-stale-data", "yes")


@contextmanager
def full(server: ValkeyServer) -> Iterator[None]:
    """Provide the server has used its memory up (OOM)."""
    server.client().config_set("maxmemory", 1)
    yield
    server.client().config_set("maxmemory", 0)


@contextmanager
def endless_script(server: ValkeyServer) -> Iterator[None]:
    """Provide the server runs a script that does not end (BUSY)."""
    client = server.client()
    client.config_set("busy-reply-threshold", 1)

    def run() -> None:
        with contextlib.suppress(redis.RedisError):
            client.eval("while true do end", 0)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: not server.answers(), "the server is busy")
    yield
    server.client().script_kill()
    thread.join(10)
    wait_until(server.answers, "the server answers")
