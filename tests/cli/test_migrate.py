"""The command `migrate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from flowfabric_worker import __version__
from flowfabric_worker.client import Client
from flowfabric_worker.engine.stores.library import library
from tests.support.cli import cli, ok, submitted
from tests.support.servers import ValkeyCluster, ValkeyServer

OLD = ("ff0_000000000000", "ff1_0123456789ab")
OTHERS = ("ff_of_somebody", "ff1_0123456789abcdef", "another")


def load(client: Redis, name: str) -> None:
    client.function_load(
        f"#!lua name={name}\nredis.register_function('{name}_x', function() return 1 end)\n", replace=True
    )


def libraries(client: Redis) -> set[str]:
    return {entry[1].decode() for entry in client.function_list()}


@pytest.fixture
def server(valkey: ValkeyServer) -> ValkeyServer:
    """Provide a server with functions of this release, of older ones, and of others."""
    valkey.client().function_flush()
    for name in (*OLD, *OTHERS):
        load(valkey.client(), name)
    return valkey


def test_migrate_sets_a_store_up_once(server: ValkeyServer, tmp_path: Path) -> None:
    url = f"{server.url}?prefix=m{tmp_path.name}&partitions=3"

    first, second = ok("migrate", "--url", url, "--json").document, ok("migrate", "--url", url, "--json").document

    assert (first["loaded"], first["created"], first["partitions"]) == (True, True, 3)
    assert (second["loaded"], second["created"], second["partitions"]) == (False, False, 3)
    assert (first["release"], first["product"], first["pruned"]) == (__version__, "valkey", None)
    assert libraries(server.client()) == {*OLD, *OTHERS, library().name}


def test_migrate_prints_what_it_did_as_text(server: ValkeyServer, tmp_path: Path) -> None:
    url = f"{server.url}?prefix=m{tmp_path.name}"

    first, second = ok("migrate", "--url", url).out, ok("migrate", "--url", url).out

    assert "loaded now" in first
    assert "1 partition, set up now" in first
    assert "now" not in second


def test_prune_removes_only_the_functions_of_other_releases(server: ValkeyServer) -> None:
    ran = ok("migrate", "--prune", "--url", server.url)

    assert all(name in ran.out for name in OLD)
    assert "load their functions again" in ran.err
    assert libraries(server.client()) == {*OTHERS, library().name}
    assert ok("migrate", "--prune", "--url", server.url, "--json").document["pruned"] == []


def test_prune_reaches_every_server_of_a_cluster(cluster: ValkeyCluster) -> None:
    for client, name in zip(cluster.clients(), (*OLD, OLD[0]), strict=True):
        load(client, name)

    document = ok("migrate", "--prune", "--url", cluster.url, "--json").document

    assert document["pruned"] == list(OLD)
    assert all(not libraries(client) & set(OLD) for client in cluster.clients())


def test_prune_in_memory_has_nothing_to_remove() -> None:
    assert ok("migrate", "--prune", "--url", "memory://", "--json").document["pruned"] == []


def test_work_continues_after_another_release_pruned_our_functions(url: str, client: Client) -> None:
    submitted("add")
    Redis(connection_pool=client.engine.store.primaries()[0]).function_delete(library().name)

    assert len(list(client.list())) == 1


def test_prune_without_the_right_is_refused(server: ValkeyServer) -> None:
    ok("migrate", "--url", server.url)
    server.client().acl_setuser(
        "producer", enabled=True, passwords=["+s3cret"], categories=["+@all"], commands=["-function|list"],
        keys=["*"], channels=["*"],
    )  # fmt: skip

    ran = cli("migrate", "--prune", "--url", f"unix://producer:s3cret@{server.socket}")

    assert ran.code == 4
    assert "lacks a right" in ran.err
