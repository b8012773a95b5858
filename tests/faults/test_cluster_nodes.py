"""Nodes of a cluster that are away, that come, and that take slots over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from redis.crc import key_slot

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.partitions import partition_key
from flowfabric_worker.engine.stores.base import Call
from flowfabric_worker.engine.stores.cluster import ClusterStore
from flowfabric_worker.engine.stores.library import library
from tests.support.engines import opened
from tests.support.executions import created
from tests.support.servers import ValkeyCluster, ValkeyServer, free_ports, running, wait_until

TIMEOUT = 1.5
CALLERS = 16


@pytest.fixture
def own_cluster() -> Iterator[ValkeyCluster]:
    """Provide a cluster to do harm to."""
    with running(ValkeyCluster()) as cluster:
        yield cluster


@contextmanager
def frozen(*nodes: ValkeyServer) -> Iterator[None]:
    """Stop nodes, so that they accept connections and never answer, as when their machines are cut off."""
    pids = [int(node.client().info("server")["process_id"]) for node in nodes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def store_of(engine: Engine) -> ClusterStore:
    assert isinstance(engine.store, ClusterStore)
    return engine.store


def served_by(engine: Engine, node: ValkeyServer) -> list[int]:
    """Return the partitions whose primary a node is."""
    store = store_of(engine)
    ports = {partition: store.pool_of(partition).connection_kwargs["port"] for partition in range(engine.partitions)}
    return [partition for partition, port in ports.items() if port == node.port]


def has_functions(node: ValkeyServer) -> bool:
    return bool(node.client().function_list(library().name))


def joined(cluster: ValkeyCluster, node: ValkeyServer) -> None:
    """Make a new node a member of a cluster, without slots."""
    for other in cluster.nodes:
        node.client().execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
    # A node has a passing name until it has answered once.
    name = node.client().execute_command("CLUSTER", "MYID")
    wait_until(
        lambda: all(name in client.execute_command("CLUSTER", "NODES") for client in cluster.clients()),
        "all know it",
    )


def take_over(node: ValkeyServer, owner: ValkeyServer, partition: int) -> None:
    """Move the slot of a partition to another node, with what is in it."""
    slot = key_slot(partition_key(partition).encode())
    heir = node.client().execute_command("CLUSTER", "MYID")
    owner.client().execute_command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", heir)

    def has_moved() -> bool:
        return any(
            first <= slot <= last and primary[1] == node.port
            for first, last, primary, *_ in owner.client().execute_command("CLUSTER", "SLOTS")
        )

    wait_until(has_moved, "the slot has moved")
    wait_until(lambda: _serves(node), "the new primary serves")


@pytest.fixture
def newcomer(own_cluster: ValkeyCluster) -> Iterator[ValkeyServer]:
    """Provide a node that has joined and serves nothing yet."""
    (port,) = free_ports(1)
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no")
    with running(ValkeyServer(*options, port=port)) as node:
        joined(own_cluster, node)
        yield node


def test_a_primary_that_took_over_a_slot_gets_the_functions_when_called(
    own_cluster: ValkeyCluster, newcomer: ValkeyServer
) -> None:
    with opened(own_cluster.url, retry_for=0) as engine:
        kept = created(engine)
        owner = next(node for node in own_cluster.nodes if kept.partition_number in served_by(engine, node))
        take_over(newcomer, owner, kept.partition_number)
        assert not has_functions(newcomer)

        assert engine.describe_execution(kept) is not None
        assert has_functions(newcomer)


def test_calls_in_bulk_find_a_slot_that_moved_and_install_the_functions(
    own_cluster: ValkeyCluster, newcomer: ValkeyServer
) -> None:
    with opened(own_cluster.url, retry_for=0) as engine:
        engine.prepare()
        (partition, *_) = served_by(engine, own_cluster.nodes[0])
        take_over(newcomer, own_cluster.nodes[0], partition)

        answers = engine.store.call_many([Call("server_time", each, []) for each in range(engine.partitions)])
        assert not [answer for answer in answers if isinstance(answer, EngineError)]
        assert has_functions(newcomer)


def test_preparing_installs_the_functions_on_every_primary_of_this_moment(
    own_cluster: ValkeyCluster, newcomer: ValkeyServer
) -> None:
    with opened(own_cluster.url, retry_for=0) as engine:
        engine.prepare()
        (partition, *_) = served_by(engine, own_cluster.nodes[0])
        take_over(newcomer, own_cluster.nodes[0], partition)

        prepared = engine.prepare()
        assert prepared.loaded
        assert prepared.servers == 4
        assert all(has_functions(node) for node in [*own_cluster.nodes, newcomer])
        assert not engine.prepare().loaded


def test_nodes_that_do_not_answer_hold_up_no_refresh(own_cluster: ValkeyCluster) -> None:
    with opened(f"{own_cluster.url}?timeout={TIMEOUT}", retry_for=0) as engine:
        engine.prepare()
        store = store_of(engine)
        for away in (own_cluster.nodes[:2], own_cluster.nodes[1:]):
            with frozen(*away), ThreadPoolExecutor(CALLERS) as threads:
                began = time.monotonic()
                for refreshing in [threads.submit(store.refresh) for _ in range(CALLERS)]:
                    refreshing.result()
                assert time.monotonic() - began < TIMEOUT
            wait_until(lambda: _is_whole(own_cluster), "the cluster is whole again")


def test_calls_to_several_dead_primaries_wait_side_by_side(own_cluster: ValkeyCluster) -> None:
    with opened(f"{own_cluster.url}?timeout={TIMEOUT}", retry_for=0) as engine:
        engine.prepare()
        living = set(served_by(engine, own_cluster.nodes[2]))
        calls = [Call("server_time", partition, []) for partition in range(engine.partitions)]
        with frozen(*own_cluster.nodes[:2]):
            began = time.monotonic()
            answers = engine.store.call_many(calls, TIMEOUT)
            assert time.monotonic() - began < 2 * TIMEOUT

        answered = {place for place, answer in enumerate(answers) if not isinstance(answer, EngineError)}
        assert answered == living


def test_listening_moves_from_a_dead_node_to_another_one(own_cluster: ValkeyCluster) -> None:
    with opened(f"{own_cluster.url}?timeout={TIMEOUT}", retry_for=0) as engine:
        engine.prepare()
        store = store_of(engine)
        topic = engine.listener.topic
        doomed = next(node for node in own_cluster.nodes if hears(store, node, topic))
        others = [node for node in own_cluster.nodes if node is not doomed]
        doomed.kill()

        wait_until(lambda: any(hears(store, node, topic) for node in others), "another node is listened to")
        store.wake(topic, b"hello")


def hears(store: ClusterStore, node: ValkeyServer, topic: str) -> bool:
    """Return True if a topic is listened to at a node."""
    ((_, listeners),) = node.client().pubsub_numsub(store.channel(topic))
    return bool(listeners)


def _is_whole(cluster: ValkeyCluster) -> bool:
    return all(map(_serves, cluster.nodes))


def _serves(node: ValkeyServer) -> bool:
    return b"cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO")
