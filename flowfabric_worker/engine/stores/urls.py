"""From a URL to a store.

    memory://[NAME]                      in this process
    embedded://DIR                       a Valkey server that this library starts, with its data in DIR
    valkey:// redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]
    unix://[USER:PASSWORD@]/PATH[?db=N]
    valkey+cluster://HOST[:PORT][,HOST[:PORT]...]

Options stand behind `?`: prefix, partitions, pool_size, timeout (seconds to connect).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import attrs
from redis.connection import BlockingConnectionPool, Connection, ConnectionPool, UnixDomainSocketConnection

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.partitions import MAX_PARTITIONS
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Store

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_DEFAULT_PORT = 6379


@attrs.define(kw_only=True)
class _Options:
    """The options of a URL; None for a number of partitions means: what the store was set up with."""

    prefix: str = "ff"
    partitions: int | None = None
    pool_size: int = 64
    timeout: float = CALL_TIMEOUT
    db: int = 0


def open_store(url: str) -> tuple[Store, int | None]:
    """The store that a URL names, and the number of partitions that the URL asks for, if it does.

    Nothing is connected yet, but an embedded server is started or joined.

    Raises:
        ValidationError: `invalid_url`; the message says what is wrong with it, without its password.
        UnavailableError: a package that this kind of store needs is not installed, or it cannot run here.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValidationError("invalid_url", f"The store's URL cannot be read: {error}.") from None
    opener = _OPENERS.get(parts.scheme)
    if opener is None:
        raise ValidationError(
            "invalid_url", f"{_shown(parts)!r} names no store: it must begin with one of {', '.join(sorted(_OPENERS))}."
        )
    options = _read_options(parts)
    try:
        return opener(parts, options), options.partitions
    except ValueError as error:
        raise ValidationError("invalid_url", f"{_shown(parts)!r} is not valid: {error}.") from None


def _shown(parts: SplitResult) -> str:
    """A URL without its user, password and options."""
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else "that"


def _read_options(parts: SplitResult) -> _Options:
    options = _Options()
    readers: dict[str, Callable[[str], Any]] = {
        "prefix": str,
        "partitions": int,
        "pool_size": int,
        "timeout": float,
        "db": int,
    }
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in readers:
            raise ValidationError(
                "invalid_url", f"The store's URL has an unknown option {name!r}; known are {', '.join(readers)}."
            )
        try:
            setattr(options, name, readers[name](value))
        except ValueError:
            raise ValidationError("invalid_url", f"The option {name}={value!r} of the store's URL is no number.") from None
    if _PREFIX.fullmatch(options.prefix) is None:
        raise ValidationError("invalid_url", "A prefix is 1 to 64 letters, digits and '_.:-'.")
    if options.partitions is not None and not 1 <= options.partitions <= MAX_PARTITIONS:
        raise ValidationError("invalid_url", f"partitions must be 1 to {MAX_PARTITIONS}.")
    if options.pool_size < 1 or options.timeout <= 0 or options.db < 0:
        raise ValidationError("invalid_url", "pool_size must be at least 1, timeout above 0, and db at least 0.")
    return options


def _common(parts: SplitResult, options: _Options) -> dict[str, Any]:
    # RESP2 gives the same shapes on every server; the engine's own deadlines come before the socket's.
    return {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "socket_timeout": 30.0,
        "socket_connect_timeout": options.timeout,
        "socket_keepalive": True,
        "protocol": 2,
        "retry": None,
    }


def _pool(connection_class: type[Any], options: _Options, settings: dict[str, Any]) -> ConnectionPool:
    return BlockingConnectionPool(
        connection_class=connection_class, max_connections=options.pool_size, timeout=int(options.timeout) or 1, **settings
    )


def _database(parts: SplitResult, options: _Options) -> int:
    path = parts.path.strip("/")
    if not path:
        return options.db
    if not path.isdecimal():
        raise ValueError(f"the database {path!r} is no number")
    return int(path)


def _open_server(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.valkey import ValkeyStore

    host, port = parts.hostname or "localhost", parts.port or _DEFAULT_PORT
    settings = {**_common(parts, options), "host": host, "port": port, "db": _database(parts, options)}
    return ValkeyStore(_pool(Connection, options, settings), prefix=options.prefix, address=f"{host}:{port}")


def _open_unix(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.valkey import ValkeyStore

    if not parts.path.strip("/"):
        raise ValueError("the path of the socket is missing")
    settings = {**_common(parts, options), "path": unquote(parts.path), "db": options.db}
    del settings["socket_keepalive"]
    pool = _pool(UnixDomainSocketConnection, options, settings)
    return ValkeyStore(pool, prefix=options.prefix, address=parts.path)


def _open_cluster(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.cluster import ClusterStore

    seeds = []
    hosts = parts.netloc.rpartition("@")[2]
    for node in hosts.split(","):
        host, _, port = node.rpartition(":") if ":" in node else (node, "", str(_DEFAULT_PORT))
        if not host or not port.isdecimal():
            raise ValueError(f"{node!r} is not HOST:PORT")
        user = parts.netloc.rpartition("@")[0]
        single = urlsplit(f"valkey://{user}@{host}" if user else f"valkey://{host}")
        settings = {**_common(single, options), "host": host, "port": int(port), "db": 0}
        seeds.append(_pool(Connection, options, settings))
    return ClusterStore(seeds, prefix=options.prefix, address=hosts)


def _open_memory(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.memory import MemoryStore

    return MemoryStore(parts.netloc + parts.path, prefix=options.prefix, partitions=options.partitions or 1)


def _open_embedded(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.embedded import EmbeddedStore

    directory = unquote(parts.netloc + parts.path)
    if not directory:
        raise ValueError("the directory is missing, as in embedded://.flowfabric")
    settings = {**_common(parts, options), "db": 0}
    del settings["socket_keepalive"]
    return EmbeddedStore(Path(directory), prefix=options.prefix, pool_size=options.pool_size, settings=settings)


_OPENERS: dict[str, Callable[[SplitResult, _Options], Store]] = {
    "memory": _open_memory,
    "embedded": _open_embedded,
    "valkey": _open_server,
    "redis": _open_server,
    "unix": _open_unix,
    "valkey+cluster": _open_cluster,
}
