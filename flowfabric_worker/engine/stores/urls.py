"""From a URL to a store.

    memory://[NAME]                      in this process
    embedded://DIR                       a Valkey server that this library starts, with its data in DIR
    valkey:// redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]
    unix://[USER:PASSWORD@]/PATH[?db=N]
    valkey+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]

Options stand behind `?`: prefix, partitions, and for a server pool_size and timeout (seconds to connect).

No message repeats a part of the URL that could hold a password, also when it stands in the wrong place.
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
_NUMBER = re.compile(r"[0-9]{1,9}")
_DEFAULT_PORT = 6379
_MAX_POOL_SIZE = 10_000
_MAX_TIMEOUT = 3600


@attrs.define(kw_only=True)
class _Options:
    """The options of a URL; None for a number of partitions means: what the store was set up with."""

    prefix: str = "ff"
    partitions: int | None = None
    pool_size: int = 64
    timeout: float = CALL_TIMEOUT
    db: int = 0


_READERS: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "partitions": int,
    "pool_size": int,
    "timeout": float,
    "db": int,
}


def open_store(url: str) -> tuple[Store, int | None]:
    """The store that a URL names, and the number of partitions that the URL asks for, if it does.

    Nothing is connected yet, but an embedded server is started or joined.

    Raises:
        ValidationError: `invalid_url`; the message says what is wrong with it, without its password.
        UnavailableError: a package that this kind of store needs is not installed, or it cannot run here.
    """
    if not isinstance(url, str):
        raise _wrong(f"it must be a str, not {type(url).__name__}")
    scheme, behind, _ = url.partition("://")
    kind = _KINDS.get(scheme) if behind else None
    if kind is None:
        raise _wrong(f"it must begin with one of {', '.join(f'{name}://' for name in _KINDS)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong("its host cannot be read") from None
    if parts.fragment or url.endswith("#"):
        raise _wrong("'#' must be written %23")
    options = _read_options(parts, kind.options)
    return kind.open(parts, options), options.partitions


def _wrong(problem: str) -> ValidationError:
    return ValidationError("invalid_url", f"The store's URL is not valid: {problem}.")


def _read_options(parts: SplitResult, known: tuple[str, ...]) -> _Options:
    given: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _wrong(f"it has an option that this kind of store does not know; known are {', '.join(known)}")
        if name in given:
            raise _wrong(f"the option {name} stands twice")
        given[name] = value
    options = _Options()
    for name, value in given.items():
        try:
            setattr(options, name, _READERS[name](value))
        except ValueError:
            raise _wrong(f"the option {name} is no number") from None
    _check_options(options)
    return options


def _check_options(options: _Options) -> None:
    if _PREFIX.fullmatch(options.prefix) is None:
        raise _wrong("a prefix is 1 to 64 letters, digits and '_.:-'")
    if options.partitions is not None and not 1 <= options.partitions <= MAX_PARTITIONS:
        raise _wrong(f"partitions must be 1 to {MAX_PARTITIONS}")
    if not 1 <= options.pool_size <= _MAX_POOL_SIZE:
        raise _wrong(f"pool_size must be 1 to {_MAX_POOL_SIZE}")
    if not 0 < options.timeout <= _MAX_TIMEOUT:
        raise _wrong(f"timeout must be above 0, and at most {_MAX_TIMEOUT} seconds")
    if options.db < 0:
        raise _wrong("db must be at least 0")


def _common(parts: SplitResult, options: _Options) -> dict[str, Any]:
    # RESP2 gives the same shapes on every server. Without a name for the driver a new connection asks nothing before
    # its first call; what it must ask (the password, the database) is bounded by the socket's timeout.
    return {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "socket_timeout": options.timeout,
        "socket_connect_timeout": options.timeout,
        "socket_keepalive": True,
        "protocol": 2,
        "retry": None,
        "driver_info": None,
    }


def _pool(connection_class: type[Any], options: _Options, settings: dict[str, Any]) -> ConnectionPool:
    return BlockingConnectionPool(
        connection_class=connection_class,
        max_connections=options.pool_size,
        timeout=int(options.timeout) or 1,
        **settings,
    )


def _address(text: str) -> tuple[str, int]:
    """Host and port of a server."""
    try:
        host = urlsplit(f"//{text}").hostname
    except ValueError:
        host = None
    bracket = text.rfind("]")
    _, colon, port = text[bracket + 1 :].rpartition(":")
    if not host:
        raise _wrong("a host is missing; a '/', '?', '#', '@' or ':' in a password must be percent-encoded")
    if not colon:
        return host, _DEFAULT_PORT
    if _NUMBER.fullmatch(port) is None or not 1 <= int(port) <= 65535:
        raise _wrong("a port must be 1 to 65535")
    return host, int(port)


def _database(parts: SplitResult, options: _Options) -> int:
    path = parts.path.strip("/")
    if not path:
        return options.db
    if _NUMBER.fullmatch(path) is None:
        raise _wrong("what stands behind the host is the number of a database")
    return int(path)


def _open_server(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.valkey import ValkeyStore

    host, port = _address(parts.netloc.rpartition("@")[2] or "localhost")
    settings = {**_common(parts, options), "host": host, "port": port, "db": _database(parts, options)}
    return ValkeyStore(_pool(Connection, options, settings), prefix=options.prefix, address=f"{host}:{port}")


def _open_unix(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.valkey import ValkeyStore

    if parts.netloc.rpartition("@")[2]:
        raise _wrong("the path of a socket begins with '/', as in unix:///run/valkey.sock")
    if not parts.path.strip("/"):
        raise _wrong("the path of the socket is missing")
    settings = {**_common(parts, options), "path": unquote(parts.path), "db": options.db}
    del settings["socket_keepalive"]
    pool = _pool(UnixDomainSocketConnection, options, settings)
    return ValkeyStore(pool, prefix=options.prefix, address=parts.path)


def _open_cluster(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.cluster import ClusterStore

    if parts.path.strip("/"):
        raise _wrong("a cluster has one database; nothing may stand behind its hosts")
    hosts = parts.netloc.rpartition("@")[2]
    seeds = []
    for node in hosts.split(","):
        host, port = _address(node)
        settings = {**_common(parts, options), "host": host, "port": port, "db": 0}
        seeds.append(_pool(Connection, options, settings))
    return ClusterStore(seeds, prefix=options.prefix, address=hosts)


def _open_memory(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.memory import MemoryStore

    return MemoryStore(parts.netloc + parts.path, prefix=options.prefix, partitions=options.partitions or 1)


def _open_embedded(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.embedded import EmbeddedStore

    directory = unquote(parts.netloc + parts.path)
    if not directory or "\0" in directory:
        raise _wrong("the directory is missing, as in embedded://.flowfabric")
    settings = {**_common(parts, options), "username": None, "password": None, "db": 0}
    del settings["socket_keepalive"]
    return EmbeddedStore(Path(directory), prefix=options.prefix, pool_size=options.pool_size, settings=settings)


@attrs.frozen
class _Kind:
    """A kind of store: how it is opened, and the options that it honours."""

    open: Callable[[SplitResult, _Options], Store]
    options: tuple[str, ...]


_SERVER = ("prefix", "partitions", "pool_size", "timeout")
_KINDS = {
    "memory": _Kind(_open_memory, ("prefix", "partitions")),
    "embedded": _Kind(_open_embedded, _SERVER),
    "valkey": _Kind(_open_server, _SERVER),
    "redis": _Kind(_open_server, _SERVER),
    "unix": _Kind(_open_unix, (*_SERVER, "db")),
    "valkey+cluster": _Kind(_open_cluster, _SERVER),
}
