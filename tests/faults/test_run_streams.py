"""Streams of runs while stores restart, replies are lost, workers are killed, and many read at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import attrs
import pytest

from flowfabric_worker import Client, EngineTimeoutError, NotFoundError, Run, Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.engine import Engine
from tests.faults.test_restarts import cut, killed_and_started, stopped_and_started
from tests.support.lossy_store import LosingStore
from tests.support.servers import ValkeyServer, wait_until
from tests.support.site import ROOT, seeds
from tests.support.streaming_worker import Tasks, streaming, told

LEASE = 2.0
LONG_LEASE = 60.0
SEEDS = seeds(4)

Process = subprocess.Popen[bytes]


@attrs.define
class Site:
    """A store, the same tasks as its worker processes, and those processes."""

    worker: Worker
    tasks: Tasks
    url: str
    processes: list[Process] = attrs.field(factory=list)

    def start(self, lease: float, grace: float = 10.0) -> Process:
        """Start a worker process; return it when it takes work."""
        known = len(self.worker.engine.list_workers().workers)
        command = [sys.executable, "-m", "tests.support.streaming_worker", self.url, str(lease), str(grace)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT))
        wait_until(lambda: len(self.worker.engine.list_workers().workers) > known, "the worker has registered", 30)
        return self.processes[-1]


@pytest.fixture
def site(server: ValkeyServer) -> Iterator[Site]:
    """Provide a site on a server of this test's own, whose processes are gone when the test ends."""
    worker, tasks = streaming(server.url)
    worker.engine.prepare()
    site = Site(worker, tasks, server.url)
    yield site
    for process in site.processes:
        process.kill()
        process.wait()
    worker.close()


@attrs.define
class Reader:
    """A reader of a run in a thread, with connections of its own.

    Attributes:
        found: the values of the stream, and what its marks say.
        took: how many seconds the reading took.
    """

    url: str
    run: Run[Any]
    found: list[int | str] = attrs.field(factory=list)
    took: float = 0.0
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        began = time.monotonic()
        with Client(self.url) as client:
            # What was read so far is seen by the test while the stream goes on.
            for item in client.stream(self.run.id):
                self.found += told([item])
        self.took = time.monotonic() - began

    def result(self, timeout: float) -> list[int | str]:
        """Return what was read, when the iteration has ended by itself."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the iteration goes on after {self.found[-3:]}"
        return self.found


class EveryTenthLost(LosingStore):
    """A store of which every tenth reply is lost, whichever call it belongs to."""

    _calls = 0

    def _lose(self, *_: Hashable) -> bool:
        self._calls += self._loses
        lost = self._loses and self._calls % 10 == 0
        self.lost += lost
        return lost


# Stores and connections


@pytest.mark.parametrize("harm", [cut, killed_and_started, stopped_and_started])
def test_readers_and_writers_survive_a_disturbed_store(
    server: ValkeyServer, site: Site, harm: Callable[[ValkeyServer], None]
) -> None:
    site.start(LONG_LEASE)
    runs = [site.tasks.pour.submit(300, 0.01) for _ in range(4)]
    readers = [Reader(server.url, run) for run in runs]
    wait_until(lambda: all(len(reader.found) > 20 for reader in readers), "the streams are read")
    harm(server)

    for reader, run in zip(readers, runs, strict=True):
        assert reader.result(30) == list(range(300))
        assert run.result(10) == 300


def test_readers_that_are_cut_off_at_the_end_end_by_themselves(server: ValkeyServer, site: Site) -> None:
    site.start(LONG_LEASE)
    took: list[float] = []
    for _ in range(10):
        readers = [Reader(server.url, site.tasks.pour.submit(5, 0.0)) for _ in range(5)]
        cutting = threading.Thread(target=cut, args=(server,))
        cutting.start()
        assert [reader.result(20) for reader in readers] == [[0, 1, 2, 3, 4]] * 5
        cutting.join()
        took += [reader.took for reader in readers]

    assert max(took) < 10


def test_values_whose_replies_are_lost_are_read_once_and_in_order(server: ValkeyServer) -> None:
    worker, tasks = streaming(server.url)
    worker.engine.prepare()
    losing = EveryTenthLost(worker.engine.store)  # type: ignore[arg-type]
    worker._engine = Engine(lambda: (losing, None))
    runtime = Runtime(worker, WorkerSettings(threads=1))
    runtime.start()
    run = tasks.pour.submit(1000, 0.001)
    with losing.losing():
        assert run.result(30) == 1000
    runtime.stop()

    assert losing.lost > 10
    assert told(run.stream()) == list(range(1000))
    worker.close()


def test_a_handler_waits_for_its_store_and_goes_on(server: ValkeyServer) -> None:
    worker = Worker("patient", server.url)
    emitted: list[int] = []

    @worker.task
    def pour(count: int) -> None:
        for number in range(count):
            current().emit(number)
            emitted.append(number)
            if number == 100:
                server.kill()

    runtime = Runtime(worker, WorkerSettings(threads=1))
    runtime.start()
    run = pour.submit(5000)
    wait_until(lambda: len(emitted) >= 1000, "the handler waits")
    count = len(emitted)
    time.sleep(0.5)
    assert len(emitted) == count, "the handler emits no further values while its store is away"
    assert count < 1300, "what waits for the store is bounded"
    server.start()
    run.result(30)
    runtime.stop()

    assert told(run.stream()) == list(range(5000))
    worker.close()


def test_a_handler_that_waits_for_its_store_learns_that_its_lease_is_lost(server: ValkeyServer) -> None:
    worker = Worker("patient", server.url)
    ended: list[str] = []

    @worker.task(lease=timedelta(seconds=1))
    def pour() -> Iterator[int]:
        number = 0
        try:
            while True:
                yield number
                number += 1
                if number == 100:
                    server.kill()
        except GeneratorExit:
            ended.append("closed")
            raise

    runtime = Runtime(worker, WorkerSettings(threads=1))
    runtime.start()
    pour.submit()
    wait_until(lambda: ended, "the generator is closed", 15)
    runtime.stop(timedelta())
    worker.close()


def test_a_stop_comes_in_time_although_values_wait_for_their_store(server: ValkeyServer) -> None:
    worker = Worker("patient", server.url)
    begun = threading.Event()

    @worker.task
    def pour() -> Iterator[int]:
        for number in range(1_000_000):
            yield number
            if number == 100:
                begun.set()

    runtime = Runtime(worker, WorkerSettings(threads=2))
    runtime.start()
    for _ in range(2):
        pour.submit()
    assert begun.wait(10)
    server.kill()
    began = time.monotonic()
    runtime.stop(timedelta(seconds=0.5))
    took = time.monotonic() - began
    worker.close()

    assert took < 6.5


# Workers


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_generator_doubles_no_value_within_an_attempt(site: Site, seed: int) -> None:
    doomed = site.start(LEASE)
    runs = [site.tasks.pour.submit(300, 0.01) for _ in range(4)]
    readers = [Reader(site.url, run) for run in runs]
    wait_until(lambda: all(reader.found for reader in readers), "the streams are read")
    time.sleep(random.Random(seed).uniform(0.0, 0.6))
    doomed.kill()
    doomed.wait()
    site.start(LEASE)

    for reader, run in zip(readers, runs, strict=True):
        found = reader.result(LEASE + 15)
        mark = found.index("attempt 1")
        assert found[:mark] == list(range(mark))
        assert found[mark + 1 :] == list(range(300))
        assert told(run.stream()) == found


def test_a_stop_within_the_grace_lets_generators_finish(site: Site) -> None:
    stopped = site.start(LONG_LEASE, grace=15)
    runs = [site.tasks.pour.submit(100, 0.01) for _ in range(4)]
    readers = [Reader(site.url, run) for run in runs]
    wait_until(lambda: all(reader.found for reader in readers), "the streams are read")
    stopped.send_signal(signal.SIGTERM)

    assert stopped.wait(20) == 0
    assert [reader.result(10) for reader in readers] == [list(range(100))] * 4


def test_a_generator_that_is_handed_back_continues_elsewhere_without_a_gap(site: Site) -> None:
    stopped = site.start(LONG_LEASE, grace=0.2)
    runs = [site.tasks.pour.submit(200, 0.01) for _ in range(4)]
    readers = [Reader(site.url, run) for run in runs]
    wait_until(lambda: all(len(reader.found) > 10 for reader in readers), "the streams are read")
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(20) == 0
    site.start(LONG_LEASE)

    assert [reader.result(20) for reader in readers] == [list(range(200))] * 4


# Many


@pytest.mark.parametrize("streams", [1, 50])
def test_a_hundred_readers_read_everything_and_end(site: Site, streams: int) -> None:
    site.start(LONG_LEASE)
    runs = [site.tasks.pour.submit(50, 0.01) for _ in range(streams)]
    found: list[list[int | str]] = []
    with Client(site.url) as client:
        threads = [
            threading.Thread(target=lambda of=run: found.append(told(client.stream(of.id))), daemon=True)
            for run in runs
            for _ in range(100 // streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert found == [list(range(50))] * 100


def test_fifty_thousand_values_are_all_there_and_leave_nothing(server: ValkeyServer, site: Site) -> None:
    site.start(LONG_LEASE)
    run = site.tasks.pour.submit(50_000, 0.0)

    assert told(run.stream()) == list(range(50_000))
    site.worker.engine.purge(run.id)
    with suppress(EngineTimeoutError), pytest.raises(NotFoundError):
        next(run.stream(timeout=1))
    assert list(server.client().scan_iter(match=f"*{run.id.uuid}*", count=1000)) == []
