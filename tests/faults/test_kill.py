"""Workers that are killed or told to stop at any moment: nothing is missing, only what was interrupted runs again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from flowfabric_worker import Run, Task, Worker
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.faults.counting import counting, lines_of
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]
SEEDS = range(int(os.environ.get("FLOWFABRIC_SEEDS", "3")))
COUNT = 200
LEASE = 3.0
LONG_LEASE = 60.0


@attrs.define
class Site:
    """A store with work, and the processes that do it."""

    worker: Worker
    task: Task[[int], int]
    url: str
    journal: Path
    processes: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start(self, lease: float, stderr: int | None = None) -> subprocess.Popen[bytes]:
        """A worker process that waits for work."""
        command = [sys.executable, "-m", "tests.faults.counting", self.url, str(self.journal), str(lease)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
        self.processes.append(process)
        wait_until(lambda: self.instance_of(process), "the worker has registered", 30)
        return process

    def instance_of(self, process: subprocess.Popen[bytes]) -> str:
        """The instance id of a worker process; empty when it has none yet."""
        page = self.worker.engine.list_workers().workers
        ids = [each.worker_instance_id for each in page if isinstance(each, WorkerInfo)]
        return next((each for each in ids if f"-{process.pid}-" in each), "")

    def begun_by(self, process: subprocess.Popen[bytes]) -> list[int]:
        """What a process has begun, in order."""
        return [line.number for line in lines_of(self.journal) if line.word == "begin" and line.pid == process.pid]

    def begun(self) -> Counter[int]:
        """How often each number was begun by anybody."""
        return Counter(line.number for line in lines_of(self.journal) if line.word == "begin")

    def info_of(self, run: Run[int]) -> ExecutionInfo:
        info = self.worker.engine.read_execution_info(run.id)
        assert info is not None
        return info

    def held_by(self, instance: str, runs: list[Run[int]]) -> set[int]:
        """The numbers of the runs that are under a lease of a worker."""
        leases = [self.info_of(run).current_lease for run in runs]
        return {number for number, lease in enumerate(leases) if lease and lease.worker_instance_id == instance}

    def wait_for(self, runs: list[Run[int]], timeout: float) -> None:
        """Returns when every run has its result; fails after `timeout` seconds in all."""
        deadline = time.monotonic() + timeout
        assert [run.result(max(0.001, deadline - time.monotonic())) for run in runs] == list(range(len(runs)))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    url = f"embedded://{tmp_path}/store"
    worker, task = counting(url, tmp_path / "journal")
    worker.engine.prepare()
    site = Site(worker, task, url, tmp_path / "journal")
    yield site
    for process in site.processes:
        process.kill()
        process.wait()
    worker.close()


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_killed_worker_exactly_what_was_in_flight_runs_again_and_soon(site: Site, seed: int) -> None:
    doomed, _ = site.start(LEASE), site.start(LEASE)
    instance = site.instance_of(doomed)
    runs = site.task.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(doomed), "it has begun")
    time.sleep(random.Random(seed).uniform(0.0, 0.8))
    doomed.kill()
    doomed.wait()
    killed_at = time.monotonic()

    in_flight = site.held_by(instance, runs)
    begun = set(site.begun_by(doomed))
    site.wait_for(runs, killed_at + LEASE + 2 - time.monotonic())

    assert in_flight, "the kill came when it was busy"
    again = {number for number, times in site.begun().items() if times > 1}
    assert again == in_flight & begun
    assert site.begun() == Counter(range(COUNT)) + Counter(again)
    assert {number for number, run in enumerate(runs) if site.info_of(run).reclaim_count} == in_flight
    assert {site.info_of(run).retry_count for run in runs} == {0}


@pytest.mark.parametrize("seed", SEEDS)
def test_of_a_worker_that_is_told_to_stop_nothing_is_lost_and_nothing_runs_twice(site: Site, seed: int) -> None:
    told, _ = site.start(LONG_LEASE), site.start(LONG_LEASE)
    runs = site.task.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(told), "it has begun")
    time.sleep(random.Random(seed).uniform(0.0, 0.8))
    told.send_signal(signal.SIGTERM)

    assert told.wait(timeout=10) == 0
    # What it had claimed and not begun is with the other one at once, not when a lease of a minute is over.
    site.wait_for(runs, 10)
    assert site.begun() == Counter(range(COUNT))
    assert {(site.info_of(run).reclaim_count, site.info_of(run).retry_count) for run in runs} == {(0, 0)}


def test_a_second_signal_hands_back_what_runs_and_it_starts_elsewhere_at_once(site: Site) -> None:
    told, _ = site.start(LONG_LEASE), site.start(LONG_LEASE)
    runs = site.task.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(told), "it has begun")
    told.send_signal(signal.SIGTERM)
    told.send_signal(signal.SIGINT)

    assert told.wait(timeout=5) == 0
    site.wait_for(runs, 10)
    twice = {number for number, times in site.begun().items() if times > 1}
    assert twice <= set(site.begun_by(told))
    assert {site.info_of(run).reclaim_count for run in runs} == {0}
    assert {run.state() for run in runs} == {PublicState.COMPLETED}


def test_a_worker_prints_what_its_threads_do_when_it_is_asked(site: Site) -> None:
    process = site.start(LONG_LEASE, stderr=subprocess.PIPE)
    assert site.task.submit(0).result(10) == 0
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=10)

    assert process.returncode == 0
    assert printed.count(b"Thread 0x") >= 8 + 3
    assert b"handlers.py" in printed
    assert b"claimer.py" in printed
