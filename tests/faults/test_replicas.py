"""`?replicas=N`: what is acknowledged is known to N replicas, also when it is sent again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from flowfabric_worker.engine.stores.replicas import reading_functions
from flowfabric_worker.engine.types.submission import Created, Duplicate
from tests.support.engines import opened
from tests.support.executions import created, creation, ids_in, refused
from tests.support.servers import ValkeyCluster, ValkeyServer, WatchedValkey, running


@pytest.fixture(scope="module")
def watched() -> Iterator[WatchedValkey]:
    with running(WatchedValkey()) as watched:
        yield watched


@contextmanager
def standing_still(*servers: ValkeyServer) -> Iterator[None]:
    """Stop servers, which keep their connections."""
    pids = [server.client().info("server")["process_id"] for server in servers]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def assert_waits_for_replicas(url: str, replicas: list[ValkeyServer]) -> None:
    """Assert that writes wait for replicas, that reads do not, and that a late write may be sent again."""
    with opened(url, retry_for=0) as engine, opened(url, retry_for=0) as again:
        engine.prepare()
        there = created(engine)
        wanted = creation(execution_id=ids_in(engine, 0, 1)[0])
        with standing_still(*replicas):
            # The second time it has been made: the call writes nothing, by a connection that wrote nothing either.
            for sender in (engine, again):
                with refused("store_busy") as caught:
                    sender.create_execution(wanted)
                assert "0 of 1 replicas" in str(caught.value)
                assert caught.value.retryable
            assert engine.describe_execution(there) is not None
        answers = [sender.create_execution(wanted) for sender in (engine, again)]
        assert {answer.execution_id for answer in answers} == {wanted.execution_id}
        assert all(isinstance(each, Created | Duplicate) for each in engine.create_executions([creation()] * 3))


def test_a_server_is_asked_for_its_replicas(watched: WatchedValkey) -> None:
    assert_waits_for_replicas(f"{watched.primary.url}?replicas=1", watched.replicas)


def test_the_primary_of_sentinels_is_asked_for_its_replicas(watched: WatchedValkey) -> None:
    assert_waits_for_replicas(f"{watched.url}?replicas=1&prefix=other", watched.replicas)


def test_each_primary_of_a_cluster_is_asked_for_its_replicas() -> None:
    with running(ValkeyCluster(replicas_each=1)) as cluster:
        assert_waits_for_replicas(f"{cluster.url}?replicas=1", cluster.replicas)


def test_more_replicas_than_there_are_is_told(watched: WatchedValkey) -> None:
    url = f"{watched.primary.url}?replicas=2&prefix=third"
    with opened(url, retry_for=0) as engine, refused("store_busy") as caught:
        engine.prepare()

    assert "1 of 2 replicas" in str(caught.value)


def test_the_functions_that_never_write_are_known() -> None:
    assert {"server_time", "read_executions", "list_lanes"} <= reading_functions()
    assert not {"claim_many", "create_executions", "prepare"} & reading_functions()
