"""From a URL to a store: what each URL means, and what is refused without telling a password."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from redis.connection import ConnectionPool

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.stores.cluster import ClusterStore
from flowfabric_worker.engine.stores.memory import MemoryStore
from flowfabric_worker.engine.stores.sentinel import SentinelStore
from flowfabric_worker.engine.stores.tls import TlsConnection
from flowfabric_worker.engine.stores.urls import open_store
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.stores.valkey_pool import ValkeyPool
from tests.support.tls_proxy import Certificates

SECRETS = ("hunter2", "hun", "ter2")


def opened(url: str) -> ValkeyStore:
    """Return the store of a URL; nothing is connected."""
    store, _ = open_store(url)
    assert isinstance(store, ValkeyStore)
    return store


def settings(pool: ConnectionPool) -> dict[str, Any]:
    return pool.connection_kwargs


def server_settings(url: str) -> dict[str, Any]:
    """Return what the connections of a server's store are made with."""
    return settings(opened(url).pool_of(0))


def data_pools(store: ValkeyStore) -> list[ValkeyPool]:
    """Return the connections to the servers that hold the data, as far as the URL names them."""
    if isinstance(store, ClusterStore):
        return store._seeds
    pool = store._pool_to("h", 1) if isinstance(store, SentinelStore) else store.pool_of(0)
    assert isinstance(pool, ValkeyPool)
    return [pool]


def sentinel_pools(url: str) -> list[ValkeyPool]:
    """Return the connections to the sentinels of a URL."""
    store = opened(url)
    assert isinstance(store, SentinelStore)
    return [sentinel.pool for sentinel in store._sentinels]


def refusal(url: Any) -> str:
    """Return the message with which a URL is refused."""
    with pytest.raises(ValidationError) as caught:
        open_store(url)
    assert caught.value.code == "invalid_url"
    return str(caught.value)


# Meaning


@pytest.mark.parametrize(
    ("url", "host", "port", "database"),
    [
        ("valkey://", "localhost", 6379, 0),
        ("valkey://example.org", "example.org", 6379, 0),
        ("redis://example.org:7000", "example.org", 7000, 0),
        ("valkey://example.org:7000/", "example.org", 7000, 0),
        ("valkey://example.org/3", "example.org", 6379, 3),
        ("valkey://10.0.0.1:65535/15", "10.0.0.1", 65535, 15),
        ("valkey://[::1]", "::1", 6379, 0),
        ("valkey://[::1]:7000/2", "::1", 7000, 2),
        ("valkey://user:word@example.org:7000", "example.org", 7000, 0),
    ],
)
def test_a_server_is_found_by_host_port_and_database(url: str, host: str, port: int, database: int) -> None:
    found = server_settings(url)

    assert (found["host"], found["port"], found["db"]) == (host, port, database)


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("", None, None),
        ("ann@", "ann", None),
        (":hunter2@", None, "hunter2"),
        ("ann:hunter2@", "ann", "hunter2"),
        ("a%40n:p%2Fw%3F%23%25@", "a@n", "p/w?#%"),
        ("ann:hun@ter2@", "ann", "hun@ter2"),
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "valkey://{}h",
        "rediss://{}h",
        "unix://{}/run/v.sock",
        "valkey+cluster://{}h:1,i:2",
        "valkey+sentinel://{}h:1,i:2/shop",
    ],
)
def test_user_and_password_are_taken_from_the_url(
    form: str, userinfo: str, username: str | None, password: str | None
) -> None:
    store = opened(form.format(userinfo))

    for pool in data_pools(store):
        assert (settings(pool)["username"], settings(pool)["password"]) == (username, password)
        assert "hun" not in repr(pool)
    assert "hun" not in store.address


def test_a_socket_is_found_by_its_path() -> None:
    found = server_settings("unix:///run/with%20space/v.sock?db=4")

    assert (found["path"], found["db"]) == ("/run/with space/v.sock", 4)


def test_a_cluster_is_found_by_some_of_its_nodes() -> None:
    store = opened("valkey+cluster://one:7000,two,[::1]:7002")

    assert isinstance(store, ClusterStore)
    assert [(settings(pool)["host"], settings(pool)["port"]) for pool in store._seeds] == [
        ("one", 7000),
        ("two", 6379),
        ("::1", 7002),
    ]


def test_a_primary_is_found_by_some_of_its_sentinels() -> None:
    url = "valkey+sentinel://ann:hunter2@one:7000,two,[::1]:7002/shop-1.b/3"
    store = opened(url)

    assert isinstance(store, SentinelStore)
    assert [(settings(pool)["host"], settings(pool)["port"]) for pool in sentinel_pools(url)] == [
        ("one", 7000),
        ("two", 26379),
        ("::1", 7002),
    ]
    assert store._service == "shop-1.b"
    (data,) = data_pools(store)
    assert (settings(data)["host"], settings(data)["port"], settings(data)["db"]) == ("h", 1, 3)


@pytest.mark.parametrize(
    ("options", "user", "password"),
    [
        ("", None, None),
        ("?sentinel_password=hunter2", None, "hunter2"),
        ("?sentinel_user=bob&sentinel_password=hun%26ter2", "bob", "hun&ter2"),
    ],
)
def test_sentinels_get_their_own_user_and_password(options: str, user: str | None, password: str | None) -> None:
    for pool in sentinel_pools(f"valkey+sentinel://ann:secret@h/shop{options}"):
        assert (settings(pool)["username"], settings(pool)["password"]) == (user, password)
        assert "hun" not in repr(pool)


def test_sentinels_that_are_away_delay_no_call_for_long() -> None:
    (pool,) = sentinel_pools("valkey+sentinel://h/shop?timeout=30")

    assert settings(pool)["socket_connect_timeout"] == settings(pool)["socket_timeout"] == 1.0


@pytest.mark.parametrize(
    ("url", "secured"),
    [
        ("valkey://h", False),
        ("redis://h", False),
        ("valkeys://h", True),
        ("rediss://h:7000/2", True),
        ("valkey+cluster://h,i", False),
        ("valkey+cluster://h,i?tls=no", False),
        ("valkey+cluster://h,i?tls=yes", True),
        ("valkey+sentinel://h,i/shop", False),
        ("valkey+sentinel://h,i/shop?tls=yes", True),
    ],
)
def test_tls_is_used_to_every_server_or_to_none(url: str, secured: bool) -> None:
    store = opened(url)
    pools = data_pools(store) + (sentinel_pools(url) if isinstance(store, SentinelStore) else [])

    for pool in pools:
        assert issubclass(pool.connection_class, TlsConnection) is secured
        if secured:
            assert settings(pool)["tls"].check_hostname
            assert settings(pool)["tls"].verify_mode is ssl.CERT_REQUIRED


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("tls") / "files")


def test_only_the_authority_that_is_named_is_trusted(files: Certificates) -> None:
    context = server_settings(f"rediss://h?ca={files.ca}&cert={files.cert}&key={files.key}")["tls"]

    assert context.cert_store_stats()["x509_ca"] == 1


def test_a_certificate_may_lie_in_one_file_with_its_key(files: Certificates, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(files.cert.read_bytes() + files.key.read_bytes())

    assert server_settings(f"rediss://h?cert={both}")["tls"]


def test_files_that_cannot_be_used_are_refused_at_once(files: Certificates, tmp_path: Path) -> None:
    empty, locked = tmp_path / "empty.pem", tmp_path / "locked.pem"
    empty.write_bytes(b"")
    key = load_pem_private_key(files.key.read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2")))

    for ca in (empty, tmp_path, tmp_path / "none.pem", files.key):
        assert "option ca cannot be read" in refusal(f"rediss://h?ca={ca}")
    for cert, other in ((empty, files.key), (files.cert, empty), (files.ca, files.key), (files.cert, locked)):
        assert "do not belong together" in refusal(f"rediss://h?cert={cert}&key={other}")
    assert "do not belong together" in refusal(f"rediss://h?cert={files.cert}")


def test_memory_stores_of_one_name_are_one_store() -> None:
    one, again, other, nameless = (
        opened(url) for url in ("memory://shared", "memory://shared", "memory://other", "memory://")
    )
    one.execute(one.pool_of(0), "SET", "k", "v")

    assert isinstance(one, MemoryStore)
    assert [store.execute(store.pool_of(0), "GET", "k") for store in (again, other, nameless)] == [b"v", None, None]


def test_an_embedded_store_lies_in_the_directory_of_its_url(tmp_path: Path) -> None:
    directory = tmp_path / "a b@c"
    store = opened(f"embedded://{str(directory).replace(' ', '%20')}")
    try:
        assert store.label == "embedded"
        assert directory.is_dir()
        store.ping()
    finally:
        store.close()


def test_options_are_honoured() -> None:
    store, partitions = open_store("valkey://h?prefix=shop.1&partitions=7&pool_size=3&timeout=1.5")

    assert isinstance(store, ValkeyStore)
    pool = store.pool_of(0)
    assert (store.prefix, partitions) == ("shop.1", 7)
    assert (pool.max_connections, settings(pool)["socket_connect_timeout"]) == (3, 1.5)


def test_options_that_are_not_given_have_their_defaults() -> None:
    store, partitions = open_store("valkey://h")

    assert isinstance(store, ValkeyStore)
    assert (store.prefix, partitions) == ("ff", None)


@pytest.mark.parametrize(("url", "partitions"), [("memory://", 1), ("valkey://h", 1), ("valkey+cluster://h", 16)])
def test_a_new_store_has_the_partitions_of_its_kind(url: str, partitions: int) -> None:
    assert opened(url).default_partitions == partitions


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://ann:hunter2@h:1/shop", "h:1/shop"),
        ("postgresql://h", "h:5432/postgres"),
        ("postgresql:///shop?host=/run/pg", "/run/pg:5432/shop"),
        ("postgresql://[::1]:7/shop", "::1:7/shop"),
    ],
)
def test_a_database_is_named_without_its_user(url: str, address: str) -> None:
    store: Any = open_store(url)[0]
    assert store.address == address
    assert "hunter2" not in repr(store)


def test_a_server_is_named_without_its_user(tmp_path: Path) -> None:
    assert opened("valkey://ann:hunter2@h:1").address == "h:1"
    assert opened(f"unix://ann:hunter2@{tmp_path}/v").address == f"{tmp_path}/v"
    assert opened("valkey+cluster://ann:hunter2@h:1,i:2").address == "h:1,i:2"
    assert opened("valkeys://ann:hunter2@h:1").address == "h:1"
    sentinels = "valkey+sentinel://ann:hunter2@h:1,i:2/shop/3?sentinel_password=hunter2"
    assert opened(sentinels).address == "h:1,i:2/shop"


# Refusals


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "it is empty"),
        ("hunter2", "begin with one of"),
        ("postgresql://h/d?schema=Shop", "a schema is 1 to 30"),
        (f"postgresql://h/d?schema={'s' * 31}", "a schema is 1 to 30"),
        ("postgresql://h/d?schema=1st", "a schema is 1 to 30"),
        ("postgresql://h/d?sslmode=maybe", "sslmode is one of"),
        ("postgresql://h/d?prefix=shop", "an option that this kind of store does not know"),
        ("hunter2@host", "begin with one of"),
        ("://host", "begin with one of"),
        ("ftp://ann:hunter2@host", "begin with one of"),
        ("http://host", "begin with one of"),
        ("valkey:/host", "begin with one of"),
        ("Valkey+Cluster//host", "begin with one of"),
        (None, "must be a str"),
        (b"valkey://h", "must be a str"),
        (7, "must be a str"),
        # a password that is not percent-encoded
        ("valkey://:hun/ter2@host", "percent-encoded"),
        ("valkey://:hun?ter2@host", ""),
        ("valkey://:hun#ter2@host", "%23"),
        ("valkey://ann:hun/ter2@host/0", "port"),
        ("valkey://ann:12/hunter2@host/0", "database"),
        ("valkey://ann:12?hunter2@host", "option"),
        ("unix://:hun/ter2@/run/v.sock", "begins with '/'"),
        ("valkey+cluster://:hun/ter2@h:1", ""),
        # a host that was forgotten
        ("valkey://:hunter2", "host"),
        ("valkey://ann:hunter2", "port"),
        ("valkey+cluster://ann:hunter2", "port"),
        ("valkey+cluster://ann:hunter2@", "host"),
        ("valkey+cluster://h:1,,i:2", "host"),
        # hosts and ports
        ("valkey://[::1", "host"),
        ("valkey://ann:hunter2@[::1", "host"),
        ("valkey://::1", "host"),
        ("valkey://ann:hun℀ter2@host", "host"),
        ("valkey://h:port", "port"),
        ("valkey://h:", "port"),
        ("valkey://h:0", "port"),
        ("valkey://h:65536", "port"),
        ("valkey://h:-1", "port"),
        ("valkey://h:99999999999999999999", "port"),
        ("valkey+cluster://h:1,i:x", "port"),
        # what stands behind the host
        ("valkey://ann:hunter2@h/zero", "database"),
        ("valkey://h/-1", "database"),
        ("valkey://h/1/2", "database"),
        ("valkey://h/" + "9" * 5000, "database"),
        ("valkey+cluster://h:1/2", "one database"),
        ("unix://", "missing"),
        ("unix:///", "missing"),
        ("unix://run/v.sock", "begins with '/'"),
        ("embedded://", "directory is missing"),
        ("embedded://a%00b", "directory is missing"),
        ("embedded://a#b", "%23"),
        ("valkey://h#", "%23"),
        # options
        ("valkey://ann:hunter2@h?colour=blue", "does not know"),
        ("valkey://h?password=hunter2", "does not know"),
        ("valkey://h?hunter2", "does not know"),
        ("valkey://h?db=1", "does not know"),
        ("memory://?pool_size=3", "does not know"),
        ("embedded://d?db=1", "does not know"),
        ("valkey+cluster://h?db=1", "does not know"),
        ("valkey://h?prefix=a&prefix=b", "twice"),
        ("valkey://h?prefix=", "prefix"),
        ("valkey://h?prefix=a%20b", "prefix"),
        ("valkey://h?prefix={a}", "prefix"),
        ("valkey://h?prefix=" + "a" * 65, "prefix"),
        ("valkey://h?partitions=", "not a number"),
        ("valkey://h?partitions=0", "partitions must be"),
        ("valkey://h?partitions=1025", "partitions must be"),
        ("valkey://h?partitions=1.5", "not a number"),
        ("valkey://h?pool_size=0", "pool_size must be"),
        ("valkey://h?pool_size=1000000000000", "pool_size must be"),
        ("valkey://h?timeout=0", "timeout must be"),
        ("valkey://h?timeout=-1", "timeout must be"),
        ("valkey://h?timeout=nan", "timeout must be"),
        ("valkey://h?timeout=inf", "timeout must be"),
        ("valkey://h?timeout=1e300", "timeout must be"),
        ("valkey://h?timeout=hunter2", "not a number"),
        ("unix:///v?db=-1", "db must be"),
        ("unix:///v?db=x", "not a number"),
        ("valkey://h?replicas=-1", "replicas must be"),
        ("valkey://h?replicas=101", "replicas must be"),
        ("embedded://d?replicas=1", "does not know"),
        # TLS
        ("rediss://ann:hun/ter2@host", "port"),
        ("valkeys://ann:hunter2@host?tls=yes", "does not know"),
        ("valkey://ann:hunter2@host?ca=/ca.pem", "does not know"),
        ("rediss://ann:hunter2@host?verify=no", "always verified"),
        ("rediss://ann:hunter2@host?ca=", "paths of files"),
        ("rediss://ann:hunter2@host?ca=a%00b", "paths of files"),
        ("rediss://ann:hunter2@host?key=/key.pem", "needs cert"),
        ("valkey+cluster://ann:hunter2@host?tls=hunter2", "yes or no"),
        ("valkey+cluster://ann:hunter2@host?ca=/ca.pem", "add tls=yes"),
        ("valkey+cluster://host?tls=no&key=/key.pem", "add tls=yes"),
        ("valkey+sentinel://host/shop?cert=/cert.pem", "add tls=yes"),
        # sentinels
        ("valkey+sentinel://ann:hun/ter2@h:1", "service"),
        ("valkey+sentinel://ann:hunter2@h:1", "service"),
        ("valkey+sentinel://ann:hunter2@h:1/", "service"),
        ("valkey+sentinel://ann:hunter2@h:1/sh%20op", "service"),
        ("valkey+sentinel://ann:hunter2@h:1/shop/x", "database"),
        ("valkey+sentinel://ann:hunter2@h:1/shop/1/2", "database"),
        ("valkey+sentinel://ann:hunter2@/shop", "host"),
        ("valkey+sentinel://ann:hunter2@h,,i/shop", "host"),
        ("valkey+sentinel://h/shop?sentinel_pass=hunter2", "does not know"),
        ("valkey+sentinel://h/shop?sentinel_user=hunter2", "needs sentinel_password"),
        ("valkey+sentinel://h/shop?sentinel_password=hunter2&sentinel_password=hunter2", "twice"),
        ("valkey+sentinel://h/shop?sentinel_password=hunter2&pool_size=x", "not a number"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_a_wrong_url_is_refused_without_telling_a_password(url: Any, says: str) -> None:
    message = refusal(url)

    assert says in message
    assert not [secret for secret in SECRETS if secret in message]


@pytest.mark.parametrize(
    ("name", "most"), [("partitions", 1024), ("pool_size", 10_000), ("timeout", 3600), ("replicas", 100)]
)
def test_an_option_may_have_the_size_of_its_limit(name: str, most: int) -> None:
    opened(f"valkey://h?{name}={most}")
    refusal(f"valkey://h?{name}={most + 1}")


def test_a_prefix_may_have_64_characters() -> None:
    assert opened("valkey://h?prefix=" + "a" * 64).prefix == "a" * 64
