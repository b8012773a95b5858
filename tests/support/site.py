"""A store with work, and the worker processes that do it: what tests with real processes share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import attrs

from flowfabric_worker import Run, Worker
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.support.counting_worker import Tasks, Word, counting, lines_of
from tests.support.observation import held_by, info_of
from tests.support.servers import wait_until

ROOT = Path(__file__).parents[2]

Process = subprocess.Popen[bytes]


def seeds(count: int) -> range:
    """Return the seeds of a test with random moments: so many, or what $FLOWFABRIC_SEEDS says."""
    return range(int(os.environ.get("FLOWFABRIC_SEEDS", count)))


@attrs.define
class Site:
    """A store with work, and the processes that do it.

    Attributes:
        worker: has the same tasks as the processes, and runs nothing.
        tasks: what there is to do.
        url: the store, reached directly.
        journal: what the processes write down.
    """

    worker: Worker
    tasks: Tasks
    url: str
    journal: Path
    processes: list[Process] = attrs.field(factory=list)

    # Processes

    def start(self, lease: float, url: str | None = None, stderr: int | None = None) -> Process:
        """Return a worker process that waits for work; it may reach the store in another way than the test does."""
        process = self._launch(lease, url, stderr)
        self._await_registered(process)
        return process

    def start_two(self, lease: float) -> tuple[Process, Process]:
        """Return two worker processes that wait for work."""
        both = self._launch(lease), self._launch(lease)
        for process in both:
            self._await_registered(process)
        return both

    def _launch(self, lease: float, url: str | None = None, stderr: int | None = None) -> Process:
        command = [
            sys.executable,
            "-m",
            "tests.support.counting_worker",
            url or self.url,
            str(self.journal),
            str(lease),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
        self.processes.append(process)
        return process

    def _await_registered(self, process: Process) -> None:
        wait_until(lambda: self.instance_of(process), "the worker has registered")

    def instance_of(self, process: Process) -> str:
        """Return the instance id of a worker process; empty when it has none yet."""
        page = self.worker.engine.list_workers().workers
        ids = [each.worker_instance_id for each in page if isinstance(each, WorkerInfo)]
        return next((each for each in ids if f"-{process.pid}-" in each), "")

    # The journal

    def begun_by(self, process: Process) -> list[int]:
        """Return what a process has begun, in order."""
        return [line.number for line in lines_of(self.journal) if line.word == "begin" and line.pid == process.pid]

    def counted(self, word: Word) -> Counter[int]:
        """Return how often a word was written down for each number by any worker."""
        return Counter(line.number for line in lines_of(self.journal) if line.word == word)

    def begun(self) -> Counter[int]:
        """Return how often each number was begun by any worker."""
        return self.counted("begin")

    def begun_again(self) -> set[int]:
        """Return the numbers that were begun more than once."""
        return {number for number, times in self.begun().items() if times > 1}

    # The state in the store

    def info_of(self, run: Run[int]) -> ExecutionInfo:
        return info_of(self.worker, run)

    def held_by(self, instance: str, runs: Sequence[Run[int]]) -> set[int]:
        """Return which of the runs are under a lease of a worker, by their places."""
        return held_by(self.worker, instance, runs)

    def reclaimed(self, runs: Sequence[Run[int]]) -> set[int]:
        """Return which of the runs were claimed again because their worker was lost, by their places."""
        return {number for number, run in enumerate(runs) if self.info_of(run).reclaim_count}

    def ended(self, runs: Sequence[Run[int]]) -> int:
        """Return how many of the runs have an outcome."""
        return sum(run.state() is PublicState.COMPLETED for run in runs)

    def wait_for(self, runs: Sequence[Run[int]], timeout: float, first: int = 0) -> None:
        """Return when every run has its result: numbers in order from `first`; fail after `timeout` s in all."""
        deadline = time.monotonic() + timeout
        results = [run.result(max(0.001, deadline - time.monotonic())) for run in runs]
        assert results == list(range(first, first + len(runs)))

    def assert_each_ended_once(self, runs: Sequence[Run[int]]) -> None:
        """Assert that no outcome is missing or announced twice, and that no failure was counted."""
        events = list(self.worker.engine.subscribe_completions(timeout=timedelta(0)))
        assert {event.outcome for event in events} == {TerminalOutcome.SUCCESS}
        assert Counter(event.execution_id for event in events) == Counter(run.id for run in runs)
        assert {self.info_of(run).retry_count for run in runs} == {0}


@contextmanager
def opened_site(url: str, folder: Path) -> Iterator[Site]:
    """Provide a site on an empty store; its processes are gone when the block ends."""
    worker, tasks = counting(url, folder / "journal")
    worker.engine.prepare()
    site = Site(worker, tasks, url, folder / "journal")
    try:
        yield site
    finally:
        for process in site.processes:
            process.kill()
            process.wait()
        worker.close()
