"""Stores that go away, lose their connections or forget their functions: work goes on by itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from redis import Redis

from flowfabric_worker import Worker
from tests.support.servers import ValkeyServer, running, wait_until
from tests.worker.conftest import Start


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    """Provide a server of this test's own, which keeps what it acknowledged."""
    with running(ValkeyServer("--appendfsync", "always")) as server:
        yield server


@pytest.fixture
def worker(server: ValkeyServer) -> Iterator[Worker]:
    worker = Worker("shop", server.url)
    yield worker
    worker.close()


def test_work_goes_on_when_a_killed_store_is_back(server: ValkeyServer, worker: Worker, start: Start) -> None:
    over = threading.Event()
    ended: Counter[str] = Counter()

    @worker.task
    def through_the_outage() -> str:
        assert over.wait(30)
        ended["through"] += 1
        return "through"

    @worker.task
    def count(number: int) -> int:
        ended["counted"] += 1
        return number

    start(worker)
    through = through_the_outage.submit()
    before = count.submit_many((number,) for number in range(50))
    for run in before:
        run.result(10)

    server.kill()
    time.sleep(1)
    # It ends while the store is away: its outcome waits.
    over.set()
    wait_until(lambda: ended["through"], "the handler ran on")
    server.start()

    assert through.result(30) == "through"
    after = count.submit_many((number,) for number in range(50))
    assert [run.result(30) for run in after] == list(range(50))
    assert ended == {"through": 1, "counted": 100}


def test_waiting_workers_hear_of_new_work_after_their_connections_were_cut(
    server: ValkeyServer, worker: Worker, start: Start
) -> None:
    task = worker.task(name="add")(lambda a: a + 1)
    start(worker)
    assert task.submit(1).result(10) == 2
    for kind in ("normal", "pubsub"):
        server.client().execute_command("CLIENT", "KILL", "TYPE", kind)
    began = time.monotonic()

    assert [task.submit(number).result(20) for number in range(50)] == list(range(1, 51))
    # Faster than the look that a worker takes every ten seconds without being told.
    assert time.monotonic() - began < 8


def disturb_by_cutting(client: Redis) -> None:
    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")


def disturb_by_flushing(client: Redis) -> None:
    client.execute_command("FUNCTION", "FLUSH")


@pytest.mark.parametrize("disturb", [disturb_by_cutting, disturb_by_flushing])
def test_no_outcome_is_lost_or_doubled_under_disturbances(
    server: ValkeyServer, worker: Worker, start: Start, disturb: object
) -> None:
    assert callable(disturb)
    counts: Counter[int] = Counter()
    lock = threading.Lock()

    @worker.task
    def count(number: int) -> int:
        with lock:
            counts[number] += 1
        time.sleep(0.005)
        return number

    runs = count.submit_many((number,) for number in range(500))
    start(worker, threads=4)
    for _ in range(6):
        time.sleep(0.1)
        disturb(server.client())

    assert [run.result(40) for run in runs] == list(range(500))
    assert counts == Counter(range(500))
