"""Everything a store holds, as plain values: two dumps are equal when nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from redis import Redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.valkey import ValkeyStore

Dump: TypeAlias = Callable[[], dict[str, Any]]


def dump_of(engine: Engine) -> dict[str, Any]:
    """Return the keys under the engine's prefix and what they hold."""
    store = engine.store
    if store.label == "postgresql":
        from tests.support.postgres_dumps import dump_of_postgres
        from tests.support.postgres_view import PostgresView

        return dump_of_postgres(PostgresView(engine))
    assert isinstance(store, ValkeyStore)
    content: dict[str, Any] = {}
    for pool in store.primaries():
        client = Redis(connection_pool=pool)
        for key in client.scan_iter(f"{store.prefix}:{{fp:*", count=1000):
            content[key.decode("utf-8", "backslashreplace")] = _value(client, key)
    return content


def _value(client: Redis, key: bytes) -> Any:
    readers = {
        b"hash": lambda: client.hgetall(key),
        b"zset": lambda: client.zrange(key, 0, -1, withscores=True),
        b"string": lambda: client.get(key),
        b"stream": lambda: client.xrange(key),
    }
    return readers[client.type(key)]()
