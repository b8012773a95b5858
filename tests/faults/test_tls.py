"""Stores over TLS: work is done as without, and an untrusted server is refused with what to do about it."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.stores.tls import failed_handshake
from flowfabric_worker.engine.stores.urls import open_store
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from tests.support.engines import opened
from tests.support.executions import LANE, claim_one, created, refused, request
from tests.support.servers import ValkeyCluster, ValkeyServer, free_ports, running, wait_until
from tests.support.site import Site, opened_site
from tests.support.tls_proxy import Certificates, TlsProxy
from tests.support.waiters import waiting

PASSWORD = "hunter2"
# What a user needs: its keys and channels, the function library, and the commands that the functions run.
RIGHTS = "+@read +@write +@connection -@dangerous +time +fcall +function|load +info +subscribe +publish"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Issue certificates by an authority that is not trusted."""
    return Certificates.made_in(tmp_path_factory.mktemp("tls") / "strange")


@pytest.fixture
def proxy(valkey: ValkeyServer, certificates: Certificates) -> Iterator[TlsProxy]:
    """Provide a server over TLS."""
    with closing(TlsProxy(valkey.socket, certificates.server_context())) as proxy:
        yield proxy


@pytest.fixture
def strict_proxy(valkey: ValkeyServer, certificates: Certificates) -> Iterator[TlsProxy]:
    """Provide a server over TLS that demands a certificate of its clients."""
    with closing(TlsProxy(valkey.socket, certificates.server_context(wants_client=True))) as proxy:
        yield proxy


def url_of(proxy: TlsProxy, *options: str, scheme: str = "valkeys", user: str = "", host: str = "127.0.0.1") -> str:
    prefix = f"prefix=t{uuid4().hex[:12]}"
    return f"{scheme}://{user}{host}:{proxy.port}?{'&'.join((prefix, *options))}"


def assert_works(engine: Engine) -> None:
    """Prepare, makes work and do it."""
    engine.prepare()
    made = created(engine)
    claimed = claim_one(engine)
    engine.complete(claimed.handle, b"1")
    (ended,) = engine.subscribe_completions(timeout=timedelta(0))
    assert made == claimed.execution_id == ended.execution_id


# Accepted stores


@pytest.mark.parametrize("scheme", ["valkeys", "rediss"])
def test_work_is_done_over_tls(proxy: TlsProxy, certificates: Certificates, scheme: str) -> None:
    with opened(url_of(proxy, f"ca={certificates.ca}", scheme=scheme)) as engine:
        assert_works(engine)


def test_a_waiting_claim_is_woken_over_tls(proxy: TlsProxy, certificates: Certificates) -> None:
    url = url_of(proxy, f"ca={certificates.ca}")
    with opened(url) as idle, opened(url) as producer:
        waiter = waiting(idle)
        made = created(producer)

        assert [each.execution_id for each in waiter.result()] == [made]


def has_begun(site: Site, count: int) -> bool:
    return len(site.begun()) >= count


def test_workers_go_on_when_their_connections_are_cut(
    proxy: TlsProxy, certificates: Certificates, tmp_path: Path
) -> None:
    count = 200
    with opened_site(url_of(proxy, f"ca={certificates.ca}"), tmp_path) as site:
        site.start_two(10.0)
        runs = site.tasks.count.submit_many((number,) for number in range(count))
        for share in (4, 2):
            wait_until(partial(has_begun, site, count // share), "they are busy")
            assert proxy.cut()
        site.wait_for(runs, 60)
        site.assert_each_ended_once(runs)


def test_a_user_needs_the_rights_that_are_written_down_and_no_more_keys(
    proxy: TlsProxy, valkey: ValkeyServer, certificates: Certificates
) -> None:
    name, prefix = f"u{uuid4().hex[:12]}", f"t{uuid4().hex[:12]}"
    valkey.client().execute_command(
        "ACL", "SETUSER", name, "on", f">{PASSWORD}", f"~{prefix}:*", f"&{prefix}:*", *RIGHTS.split(" ")
    )
    place = f"valkeys://{name}:{PASSWORD}@127.0.0.1:{proxy.port}/0?ca={certificates.ca}"

    with opened(f"{place}&prefix={prefix}") as engine:
        assert_works(engine)
        assert not engine.claim_many(request(LANE, max_wait=timedelta(milliseconds=1)))
    with opened(f"{place}&prefix=other{prefix}") as engine, refused("permission_denied"):
        engine.prepare()


def test_a_database_is_chosen_over_tls(proxy: TlsProxy, valkey: ValkeyServer, certificates: Certificates) -> None:
    prefix = f"t{uuid4().hex[:12]}"
    with opened(f"rediss://127.0.0.1:{proxy.port}/3?ca={certificates.ca}&prefix={prefix}") as engine:
        assert_works(engine)

    assert not list(valkey.client().scan_iter(f"{prefix}:*"))


def test_a_server_that_demands_a_certificate_gets_it(strict_proxy: TlsProxy, certificates: Certificates) -> None:
    files = (f"ca={certificates.ca}", f"cert={certificates.cert}", f"key={certificates.key}")
    with opened(url_of(strict_proxy, *files)) as engine:
        assert_works(engine)


def names_ports(node: ValkeyServer, ports: set[int]) -> bool:
    """Return True if a node of a cluster sends clients to these ports."""
    return {place[1] for _, _, place in node.client().execute_command("CLUSTER", "SLOTS")} == ports


def test_a_cluster_is_reached_over_tls(certificates: Certificates) -> None:
    with running(ValkeyCluster()) as cluster:
        proxies = [TlsProxy(node.socket, certificates.server_context()) for node in cluster.nodes]
        try:
            for node, proxy in zip(cluster.nodes, proxies, strict=True):
                node.client().config_set("cluster-announce-port", proxy.port)
            ports = {proxy.port for proxy in proxies}
            for node in cluster.nodes:
                wait_until(partial(names_ports, node, ports), "every node knows the new ports")
            hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
            with opened(f"valkey+cluster://{hosts}?tls=yes&ca={certificates.ca}") as engine:
                assert_works(engine)
        finally:
            for proxy in proxies:
                proxy.close()


# Refusals


def assert_refused(url: str, says: str) -> None:
    """Assert that the store is refused for its TLS at once, for any `retry_for`, and that no secret is shown."""
    with opened(url) as engine, refused("tls_failed") as caught:
        engine.prepare()

    assert not caught.value.retryable
    for text in (str(caught.value), repr(caught.value), repr(caught.value.details), str(caught.value.__cause__)):
        assert PASSWORD not in text
    assert says in str(caught.value)
    assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)


def test_a_server_that_is_not_trusted_is_refused(proxy: TlsProxy, strangers: Certificates) -> None:
    for options in ([f"ca={strangers.ca}"], []):
        assert_refused(url_of(proxy, *options, user=f":{PASSWORD}@"), "with the option ca")


def test_a_server_of_another_name_is_refused(proxy: TlsProxy, certificates: Certificates) -> None:
    url = url_of(proxy, f"ca={certificates.ca}", user=f":{PASSWORD}@", host="localhost")

    assert_refused(url, "use a host name that the certificate holds")


@pytest.mark.parametrize("timeout", ["5", "2"])
@pytest.mark.parametrize("user", ["", f":{PASSWORD}@"])
def test_a_client_without_a_demanded_certificate_is_told_to_name_one(
    strict_proxy: TlsProxy, certificates: Certificates, timeout: str, user: str
) -> None:
    url = url_of(strict_proxy, f"ca={certificates.ca}", f"timeout={timeout}", user=user)

    assert_refused(url, "with the options cert and key")


def test_why_a_server_has_hung_up_is_found_out_when_it_is_noticed(
    strict_proxy: TlsProxy, certificates: Certificates
) -> None:
    store, _ = open_store(url_of(strict_proxy, f"ca={certificates.ca}"))
    assert isinstance(store, ValkeyStore)
    connection = store.pool_of(0).get_connection()
    plain: Any = connection._sock
    poll = select.poll()
    poll.register(plain, select.POLLRDHUP)
    assert poll.poll(5000), "the server hangs up"

    with pytest.raises(redis.ConnectionError) as caught:
        connection.can_read(1)
    assert failed_handshake(caught.value)


def test_a_client_with_a_strangers_certificate_is_told_to_name_another_one(
    strict_proxy: TlsProxy, certificates: Certificates, strangers: Certificates
) -> None:
    files = (f"ca={certificates.ca}", f"cert={strangers.cert}", f"key={strangers.key}")

    assert_refused(url_of(strict_proxy, *files), "with the options cert and key")


def test_a_server_that_speaks_no_tls_is_named_as_such(certificates: Certificates) -> None:
    (port,) = free_ports(1)
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}?ca={certificates.ca}&timeout=1"
    with (
        running(ValkeyServer(port=port)),
        opened(url, retry_for=0) as engine,
        # Servers wait for the rest of what they take for a command, or answer in plain text.
        pytest.raises(TransportError, match="speak TLS there") as caught,
    ):
        engine.prepare()

    assert PASSWORD not in str(caught.value)
