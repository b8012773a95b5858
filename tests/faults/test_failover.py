"""A primary of a cluster dies under load: the others go on meanwhile, and its own work after the failover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from flowfabric_worker.engine.partitions import DEFAULT_CLUSTER_PARTITIONS, partition_key
from flowfabric_worker.engine.types.states import PublicState
from tests.support.counting_worker import THREADS
from tests.support.servers import ValkeyCluster, ValkeyServer, running, wait_until
from tests.support.site import Site, opened_site

COUNT = 1000
LEASE = 10.0
WORKERS = 2


@pytest.fixture
def replicated() -> Iterator[ValkeyCluster]:
    """Provide a cluster that survives the loss of a primary."""
    with running(ValkeyCluster(replicas_each=1)) as cluster:
        yield cluster


@pytest.fixture
def site(replicated: ValkeyCluster, tmp_path: Path) -> Iterator[Site]:
    with opened_site(replicated.url, tmp_path) as site:
        yield site


def partitions_on(node: ValkeyServer) -> set[int]:
    """Return the partitions whose slots a primary serves."""
    client = node.client()
    mine = client.execute_command("CLUSTER", "MYID")
    ranges = [
        range(first, last + 1)
        for first, last, (_, _, owner, *_), *_ in client.execute_command("CLUSTER", "SLOTS")
        if owner == mine
    ]
    slots = {partition: key_slot(partition_key(partition).encode()) for partition in range(DEFAULT_CLUSTER_PARTITIONS)}
    return {partition for partition, slot in slots.items() if any(slot in each for each in ranges)}


def await_replicated(node: ValkeyServer, partition: int) -> None:
    """Return when a replica has everything that the node acknowledged before."""
    client = node.client()
    # WAIT looks at what its own connection wrote, and at everything before that.
    client.delete(f"{partition_key(partition)}:nothing")
    client.set(f"{partition_key(partition)}:marker", "1")
    assert client.execute_command("WAIT", 1, 5000) == 1


def test_other_partitions_go_on_and_the_dead_ones_work_follows_failover(replicated: ValkeyCluster, site: Site) -> None:
    doomed, heir = replicated.nodes[0], replicated.replicas[0]
    lost_partitions = partitions_on(doomed)
    site.start_two(LEASE)
    runs = site.tasks.count.submit_many((number,) for number in range(COUNT))
    assert {run.id.partition_number for run in runs} == set(range(DEFAULT_CLUSTER_PARTITIONS))
    on_it = {number for number, run in enumerate(runs) if run.id.partition_number in lost_partitions}
    elsewhere = [run for number, run in enumerate(runs) if number not in on_it]

    wait_until(lambda: len(site.begun()) >= COUNT / 10, "they are busy")
    kept: set[int] = wait_until(
        lambda: {number for number in on_it if runs[number].state() is PublicState.COMPLETED},
        "some of the work on the node to kill has ended",
    )
    # The replica waits until this test has seen that the other partitions go on without it.
    heir.client().config_set("cluster-replica-no-failover", "yes")
    await_replicated(doomed, min(lost_partitions))
    doomed.kill()
    ended = site.ended(elsewhere)
    # More than what the workers had when it happened.
    wait_until(lambda: site.ended(elsewhere) > ended + 3 * THREADS * WORKERS, "the others go on")
    assert heir.client().info("replication")["role"] == "slave"
    heir.client().config_set("cluster-replica-no-failover", "no")

    site.wait_for(runs, 60)
    # Only work that was acknowledged but not replicated may have run twice.
    assert site.begun_again() <= on_it - kept
    assert site.begun().keys() == Counter(range(COUNT)).keys()
    site.assert_each_ended_once(runs)
