"""A store with work for the poisoned application, and the supervisors whose processes do it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import attrs

from flowfabric_worker import Run
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import TerminalOutcome
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.support import poisoned_app
from tests.support.cli import Process
from tests.support.observation import held_by, info_of
from tests.support.servers import wait_until

APP = "tests.support.poisoned_app:worker"
PROCESSES = 2


@attrs.define
class Crew:
    """A store with work, and supervisors whose processes do it.

    Attributes:
        url: the store.
        folder: for the journal and the logs.
    """

    url: str
    folder: Path
    started: list[Process] = attrs.field(factory=list)

    # Processes

    def launch(self, *options: object, app: str = APP, processes: int = PROCESSES, lease: str = "2s") -> Process:
        """Start a supervisor."""
        process = Process(
            "run", app, "--processes", processes, "--lease", lease, *options,
            log=self.folder / f"{len(self.started)}.log",
            environment={"FLOWFABRIC_URL": self.url, poisoned_app.JOURNAL_VARIABLE: str(self.journal)},
        )  # fmt: skip
        self.started.append(process)
        return process

    def start(self, *options: object, processes: int = PROCESSES, lease: str = "2s") -> Process:
        """Start a supervisor; return when each of its processes takes work."""
        supervisor = self.launch(*options, processes=processes, lease=lease)
        await_workers(supervisor, processes)
        return supervisor

    # The journal

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def pids(self, word: str, what: object) -> list[int]:
        """Return the processes in which something happened, in order."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return [int(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{word} {what} ")]

    def begun(self) -> Counter[int]:
        """Return how often each number was begun by any worker."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        words = [line.split(" ") for line in lines]
        return Counter(int(what) for word, what, _ in words if word == "begin" and what.isdecimal())

    # Work

    def submit_counts(self, count: int, first: int = 0) -> list[Run[int]]:
        """Submit ordinary short tasks."""
        return poisoned_app.count.submit_many((number,) for number in range(first, first + count))

    def info_of(self, run: Run[object] | Run[int] | Run[str] | Run[None]) -> ExecutionInfo:
        return info_of(poisoned_app.worker, run)

    def held_by(self, instance: str, runs: Sequence[Run[int]]) -> set[int]:
        """Return which of the runs are under a lease of a worker, by their places."""
        return held_by(poisoned_app.worker, instance, runs)

    def outcomes(self) -> Counter[tuple[str, TerminalOutcome]]:
        """Return how often each outcome was announced of each execution."""
        events = poisoned_app.worker.engine.subscribe_completions(timeout=timedelta(0))
        return Counter((str(event.execution_id), event.outcome) for event in events)

    def instances(self) -> list[str]:
        """Return the instance ids of the workers that live."""
        page = poisoned_app.worker.engine.list_workers().workers
        return [each.worker_instance_id for each in page if isinstance(each, WorkerInfo) and each.alive]

    def assert_all_ended_well(self, runs: Sequence[Run[int]], timeout: float, first: int = 0) -> None:
        """Assert that every number has one result, and ran again only where a worker was lost or memory was short."""
        for place, run in enumerate(runs):
            assert run.result(timeout) == first + place
        outcomes = self.outcomes()
        begun = self.begun()
        for number, run in enumerate(runs, first):
            info = self.info_of(run)
            announced = {outcome: times for (key, outcome), times in outcomes.items() if key == str(run.id)}
            assert announced == {TerminalOutcome.SUCCESS: 1}
            assert 1 <= begun[number] <= 1 + info.reclaim_count + info.retry_count


def await_workers(supervisor: Process, count: int) -> None:
    """Wait until so many starts of its processes take work."""
    wait_until(lambda: supervisor.log.count("takes work") >= count, f"{count} processes take work")


def ends_of(supervisor: Process) -> list[str]:
    """Return how its processes ended that were replaced, in order."""
    return re.findall(r"The worker process \d+ ended \((.*?)\)", supervisor.log)


def processes_of(supervisor: Process) -> dict[int, str]:
    """Return the states of the processes that it started and has not waited for, as ps shows them."""
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in table.splitlines()]
    return {int(pid): state for pid, parent, state in rows if int(parent) == supervisor.popen.pid}


def runs_now(pid: int) -> bool:
    """Return True if a worker process runs; what is dead and only not waited for does not."""
    command = ["ps", "-o", "stat=,args=", "-p", str(pid)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return APP in shown and not shown.startswith("Z")


@contextmanager
def opened_crew(url: str, folder: Path) -> Iterator[Crew]:
    """Provide a crew on an empty store; its processes are gone when the block ends."""
    outer = poisoned_app.worker.url
    poisoned_app.worker.close()
    poisoned_app.worker.url = url
    poisoned_app.worker.engine.prepare()
    crew = Crew(url, folder)
    try:
        yield crew
    finally:
        for process in crew.started:
            process.end()
            # They end by themselves when their supervisor is gone; some of them cannot.
            for pid in re.findall(r"Started the worker process (\d+)", process.log):
                if runs_now(int(pid)):
                    os.kill(int(pid), signal.SIGKILL)
        poisoned_app.worker.close()
        poisoned_app.worker.url = outer
