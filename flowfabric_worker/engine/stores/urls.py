"""Opens the store that a URL names.

    memory://[NAME]                      in this process
    embedded://DIR                       a Valkey server that this library starts, with its data in DIR
    valkey:// redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]
    valkeys:// rediss://[USER:PASSWORD@]HOST[:PORT][/DATABASE]      the same over TLS
    unix://[USER:PASSWORD@]/PATH[?db=N]
    valkey+cluster://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]
    valkey+sentinel://[USER:PASSWORD@]HOST[:PORT][,HOST[:PORT]...]/SERVICE[/DATABASE]
                                         the hosts are those of the sentinels, user and password those of the primary

    postgresql://[USER:PASSWORD@]HOST[:PORT]/DATABASE[?schema=ff]
                                         a schema of a Postgres database; the option host names the directory of a
                                         unix socket
    embedded+postgresql://DIR            a Postgres server that this library starts, with its data in DIR

Options follow `?`: prefix, partitions, and for a server pool_size, timeout (seconds to connect) and replicas (how
many must have what a call wrote before it returns). With TLS: ca, cert and key name files (PEM). With tls=yes a cluster
and sentinels use TLS to all servers. Sentinels with their own user or password take sentinel_user and
sentinel_password.

No message repeats a part of the URL that could be a password, even one in the wrong place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import attrs

from flowfabric_worker.engine.errors import UnavailableError, ValidationError
from flowfabric_worker.engine.partitions import MAX_PARTITIONS
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Store
from flowfabric_worker.engine.suggestions import did_you_mean

if TYPE_CHECKING:
    from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_SERVICE = re.compile(r"[A-Za-z0-9._-]{1,256}")
_DEFAULT_PORT = 6379
_SENTINEL_PORT = 26379
# With a topic of 32 characters behind it, a schema is the name of a channel, which has at most 63 bytes.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,29}")
_SSL_MODES = ("", "disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_MAX_REPLICAS = 100
_MAX_POOL_SIZE = 10_000
_MAX_TIMEOUT = 3600


@attrs.define(kw_only=True)
class _Options:
    """The options of a URL; partitions is None for the number that the store was set up with."""

    prefix: str = "ff"
    partitions: int | None = None
    pool_size: int = 64
    timeout: float = CALL_TIMEOUT
    db: int = 0
    replicas: int = 0
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    schema: str = "ff"
    host: str = ""
    sslmode: str = ""
    sentinel_user: str = ""
    sentinel_password: str = attrs.field(default="", repr=False)


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise _wrong("tls must be yes or no")
    return text == "yes"


def _file(path: str) -> str:
    if not path or "\0" in path:
        raise _wrong("ca, cert and key must be paths of files")
    return path


_READERS: dict[str, Callable[[str], Any]] = {
    "prefix": str,
    "partitions": int,
    "pool_size": int,
    "timeout": float,
    "db": int,
    "replicas": int,
    "tls": _yes_or_no,
    "ca": _file,
    "cert": _file,
    "key": _file,
    "schema": str,
    "host": str,
    "sslmode": str,
    "sentinel_user": str,
    "sentinel_password": str,
}


def anchored_url(url: str) -> str:
    """Make the directory in a URL absolute; return any other URL, valid or not, unchanged."""
    if not isinstance(url, str):
        return url
    scheme, _, behind = url.partition("://")
    directory, mark, options = behind.partition("?")
    if scheme not in ("embedded", "embedded+postgresql") or not directory or directory.startswith("/"):
        return url
    try:
        working = os.getcwd()
    except FileNotFoundError:
        return url  # The directory was removed, which opening the store reports.
    return f"{scheme}://{quote(working)}/{directory}{mark}{options}"


def open_store(url: str) -> tuple[Store, int | None]:
    """Return the store that a URL names, and the number of partitions that the URL asks for, or None.

    Nothing is connected yet, but an embedded server is started or joined.

    Raises:
        ValidationError: `invalid_url`; the message says what is wrong, without the password.
        UnavailableError: a package that this kind of store needs is not installed, or the store cannot run here.
    """
    if not isinstance(url, str):
        raise _wrong(f"it must be a str, not {type(url).__name__}")
    if not url:
        raise _wrong("it is empty; name a store, or leave url and $FLOWFABRIC_URL out for embedded://.flowfabric")
    scheme, mark, _ = url.partition("://")
    kind = _KINDS.get(scheme) if mark else None
    if kind is None:
        known = ", ".join(f"{name}://" for name in _KINDS)
        raise _wrong(f"it must begin with one of {known}", did_you_mean(scheme, _KINDS) if mark else "")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _wrong("its host cannot be read") from None
    if parts.fragment or url.endswith("#"):
        raise _wrong("'#' must be written %23")
    options = _read_options(parts, kind)
    return kind.open(parts, options), options.partitions


def _wrong(problem: str, hint: str = "") -> ValidationError:
    return ValidationError("invalid_url", f"The store's URL is not valid: {problem}.{hint}")


def _read_options(parts: SplitResult, kind: _Kind) -> _Options:
    known = kind.options
    given: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "verify":
            raise _wrong("a server's certificate is always verified; name the authority to trust with the option ca")
        if name not in known:
            # The message does not repeat the name, which may be a part of a password that was not percent-encoded.
            problem = f"it has an option that this kind of store does not know; known are {', '.join(known)}"
            raise _wrong(problem, did_you_mean(name, known))
        if name in given:
            raise _wrong(f"the option {name} is given twice")
        given[name] = value
    options = _Options(pool_size=kind.pool_size)
    for name, value in given.items():
        try:
            setattr(options, name, _READERS[name](value))
        except ValueError:
            raise _wrong(f"the option {name} is not a number") from None
    _check_options(options)
    return options


def _check_options(options: _Options) -> None:
    if _PREFIX.fullmatch(options.prefix) is None:
        raise _wrong("a prefix must be 1 to 64 letters, digits and '_.:-'")
    if _SCHEMA.fullmatch(options.schema) is None:
        raise _wrong("a schema is 1 to 30 lower-case letters, digits and '_', and begins with no digit")
    if options.sslmode not in _SSL_MODES:
        raise _wrong(f"sslmode is one of {', '.join(_SSL_MODES[1:])}")
    if options.partitions is not None and not 1 <= options.partitions <= MAX_PARTITIONS:
        raise _wrong(f"partitions must be 1 to {MAX_PARTITIONS}")
    if not 1 <= options.pool_size <= _MAX_POOL_SIZE:
        raise _wrong(f"pool_size must be 1 to {_MAX_POOL_SIZE}")
    if not 0 < options.timeout <= _MAX_TIMEOUT:
        raise _wrong(f"timeout must be above 0, and at most {_MAX_TIMEOUT} seconds")
    if options.db < 0:
        raise _wrong("db must be at least 0")
    if not 0 <= options.replicas <= _MAX_REPLICAS:
        raise _wrong(f"replicas must be 0 to {_MAX_REPLICAS}")


def _common(parts: SplitResult, options: _Options) -> dict[str, Any]:
    # Use RESP2, which has the same replies on every server. Without a driver name, a new connection sends nothing
    # before its first call; what it must send (the password, the database) is bounded by the timeout of the socket.
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


def _tcp(options: _Options, settings: dict[str, Any]) -> Callable[[str, int], ValkeyPool]:
    """Return a function that creates the connections to a host and port, over TLS if the options ask for it."""
    from redis.connection import Connection

    from flowfabric_worker.engine.stores.tls import TlsConnection, tls_context
    from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

    connection_class: type[Connection] = Connection
    if options.tls:
        try:
            settings = {**settings, "tls": tls_context(ca=options.ca, cert=options.cert, key=options.key)}
        except ValueError as error:
            raise _wrong(str(error)) from None
        connection_class = TlsConnection
    elif options.ca or options.cert or options.key:
        raise _wrong("ca, cert and key are for TLS: add tls=yes")

    def pool_to(host: str, port: int) -> ValkeyPool:
        place = {**settings, "host": host, "port": port}
        return ValkeyPool(connection_class, place, size=options.pool_size, retry_for=options.timeout)

    return pool_to


def _address(text: str, default_port: int = _DEFAULT_PORT) -> tuple[str, int]:
    """Return the host and the port of a server."""
    try:
        host = urlsplit(f"//{text}").hostname
    except ValueError:
        host = None
    bracket = text.rfind("]")
    _, colon, port = text[bracket + 1 :].rpartition(":")
    if not host:
        raise _wrong("a host is missing; a '/', '?', '#', '@' or ':' in a password must be percent-encoded")
    if not colon:
        return host, default_port
    if _NUMBER.fullmatch(port) is None or not 1 <= int(port) <= 65535:
        raise _wrong("a port must be 1 to 65535")
    return host, int(port)


def _database(text: str) -> int:
    if not text:
        return 0
    if _NUMBER.fullmatch(text) is None:
        raise _wrong("after the host only the number of a database may follow")
    return int(text)


def _hosts(parts: SplitResult) -> str:
    """Return the part of a URL after the user and the password."""
    return parts.netloc.rpartition("@")[2]


def _open_server(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.valkey import ValkeyStore

    host, port = _address(_hosts(parts) or "localhost")
    settings = {**_common(parts, options), "db": _database(parts.path.strip("/"))}
    pool = _tcp(options, settings)(host, port)
    return ValkeyStore(pool, prefix=options.prefix, address=f"{host}:{port}", replicas=options.replicas)


def _open_tls_server(parts: SplitResult, options: _Options) -> Store:
    return _open_server(parts, attrs.evolve(options, tls=True))


def _open_unix(parts: SplitResult, options: _Options) -> Store:
    from redis.connection import UnixDomainSocketConnection

    from flowfabric_worker.engine.stores.valkey import ValkeyStore
    from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool

    if _hosts(parts):
        raise _wrong("the path of a socket begins with '/', as in unix:///run/valkey.sock")
    if not parts.path.strip("/"):
        raise _wrong("the path of the socket is missing")
    settings = {**_common(parts, options), "path": unquote(parts.path), "db": options.db}
    del settings["socket_keepalive"]
    pool = ValkeyPool(UnixDomainSocketConnection, settings, size=options.pool_size, retry_for=options.timeout)
    return ValkeyStore(pool, prefix=options.prefix, address=parts.path, replicas=options.replicas)


def _open_cluster(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.cluster import ClusterStore

    if parts.path.strip("/"):
        raise _wrong("a cluster has one database; nothing may follow its hosts")
    hosts = _hosts(parts)
    pool_to = _tcp(options, {**_common(parts, options), "db": 0})
    seeds = [pool_to(*_address(node)) for node in hosts.split(",")]
    return ClusterStore(seeds, prefix=options.prefix, address=hosts, replicas=options.replicas)


def _open_sentinel(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.sentinel import ANSWER_TIMEOUT, SentinelStore

    hosts = _hosts(parts)
    service, _, database = parts.path.strip("/").partition("/")
    if _SERVICE.fullmatch(service) is None:
        raise _wrong("the name of the service is missing or wrong, as in valkey+sentinel://HOST/SERVICE")
    if options.sentinel_user and not options.sentinel_password:
        raise _wrong("sentinel_user needs sentinel_password")
    timeout = min(options.timeout, ANSWER_TIMEOUT)
    of_sentinels = {
        **_common(parts, options),
        "username": options.sentinel_user or None,
        "password": options.sentinel_password or None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
    }
    to_sentinel = _tcp(options, of_sentinels)
    return SentinelStore(
        [to_sentinel(*_address(each, _SENTINEL_PORT)) for each in hosts.split(",")],
        service,
        _tcp(options, {**_common(parts, options), "db": _database(database)}),
        prefix=options.prefix,
        address=f"{hosts}/{service}",
        replicas=options.replicas,
        user=unquote(parts.username) if parts.username else "default",
    )


def _open_memory(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.memory import MemoryStore

    return MemoryStore(parts.netloc + parts.path, prefix=options.prefix, partitions=options.partitions or 1)


def _directory(parts: SplitResult) -> Path:
    directory = unquote(parts.netloc + parts.path)
    if not directory or "\0" in directory:
        raise _wrong(f"the directory is missing, as in {parts.scheme}://.flowfabric")
    return Path(directory)


def _open_embedded(parts: SplitResult, options: _Options) -> Store:
    from flowfabric_worker.engine.stores.embedded import EmbeddedStore

    directory = _directory(parts)
    settings = {**_common(parts, options), "username": None, "password": None, "db": 0}
    del settings["socket_keepalive"]
    return EmbeddedStore(directory, prefix=options.prefix, pool_size=options.pool_size, settings=settings)


@contextmanager
def _needing_psycopg(scheme: str, extra: str) -> Iterator[None]:
    """Say what to install if an import of the block fails."""
    try:
        yield
    except ImportError as error:
        raise UnavailableError(
            "postgresql",
            f"{scheme}:// needs psycopg: install it with pip install 'flowfabric_worker[{extra}]'.",
            "store_not_supported",
        ) from error


def _open_embedded_postgres(parts: SplitResult, options: _Options) -> Store:
    with _needing_psycopg("embedded+postgresql", "embedded-postgres"):
        from flowfabric_worker.engine.stores.embedded_postgres import EmbeddedPostgresStore

    return EmbeddedPostgresStore(
        _directory(parts), schema=options.schema, pool_size=options.pool_size, timeout=options.timeout
    )


def _open_postgres(parts: SplitResult, options: _Options) -> Store:
    with _needing_psycopg("postgresql", "postgres"):
        from psycopg.conninfo import make_conninfo

        from flowfabric_worker.engine.stores.pool import Pool
        from flowfabric_worker.engine.stores.postgres import PostgresStore, shared_size
        from flowfabric_worker.engine.stores.postgres_connection import PostgresConnection
    host, port = options.host, 5432
    if _hosts(parts):
        host, port = _address(_hosts(parts), port)
    database = unquote(parts.path.strip("/")) or "postgres"
    given = {
        "user": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
        "sslmode": options.sslmode or None,
        "sslrootcert": options.ca or None,
        "sslcert": options.cert or None,
        "sslkey": options.key or None,
    }
    conninfo = make_conninfo(
        host=host or "localhost",
        port=port,
        dbname=database,
        application_name="flowfabric_worker",
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=30_000,
        **{name: value for name, value in given.items() if value is not None},
    )
    settings = {"conninfo": conninfo, "timeout": options.timeout}
    pool = Pool(
        PostgresConnection, settings, size=shared_size(options.pool_size), retry_for=options.timeout, saves=True
    )
    return PostgresStore(pool, schema=options.schema, address=f"{host or 'localhost'}:{port}/{database}")


@attrs.frozen
class _Kind:
    """A kind of store: the function that opens it, the options that it takes, and its default of `pool_size`."""

    open: Callable[[SplitResult, _Options], Store]
    options: tuple[str, ...]
    pool_size: int = 64


_LOCAL = ("prefix", "partitions", "pool_size", "timeout")
_SCHEMA_OPTIONS = ("schema", "partitions", "pool_size", "timeout")
# A connection is a process of the server, of which it has 100 by default.
_POSTGRES_POOL = 4
_SERVER = (*_LOCAL, "replicas")
_TLS = ("ca", "cert", "key")
_KINDS = {
    "memory": _Kind(_open_memory, ("prefix", "partitions")),
    "embedded": _Kind(_open_embedded, _LOCAL),
    "embedded+postgresql": _Kind(_open_embedded_postgres, _SCHEMA_OPTIONS, _POSTGRES_POOL),
    "valkey": _Kind(_open_server, _SERVER),
    "redis": _Kind(_open_server, _SERVER),
    "valkeys": _Kind(_open_tls_server, (*_SERVER, *_TLS)),
    "rediss": _Kind(_open_tls_server, (*_SERVER, *_TLS)),
    "unix": _Kind(_open_unix, (*_SERVER, "db")),
    "postgresql": _Kind(_open_postgres, (*_SCHEMA_OPTIONS, "host", "sslmode", *_TLS), _POSTGRES_POOL),
    "valkey+cluster": _Kind(_open_cluster, (*_SERVER, "tls", *_TLS)),
    "valkey+sentinel": _Kind(_open_sentinel, (*_SERVER, "tls", *_TLS, "sentinel_user", "sentinel_password")),
}
