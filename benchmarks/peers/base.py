"""What a peer is, and how each is measured: the same way for all of them.

Runs in the environment of the peer, so it needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.figures import percentile
from benchmarks.peers.tasks import STAMPS

URL = os.environ.get("BENCHMARK_URL", "")
VARIANT = os.environ.get("BENCHMARK_VARIANT", "")
THREADS = 8

# The interval at which the end of a drain is polled. It adds 1 % to the time of a drain of one second, and a poll takes
# up to 0.6 ms of CPU time, which is 3 % of a core.
_POLL = 0.02
_STANDSTILL = 60.0
_WARM_UP = 20
_LATENCIES = 200
# Seconds between submissions beside a drain, which may be over soon.
_APART_BESIDE = 0.01
_STOP_WITHIN = 20.0


class Crew:
    """Worker processes, and the folder in which they stamp the beginning of their work."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]], stamps: Path) -> None:
        self._processes = processes
        self._stamps = stamps

    def began(self) -> float:
        """Return when the first task of any of them began."""
        return min(int(stamp.name.partition(".")[0]) for stamp in self._stamps.iterdir()) / 1e9

    def has_begun(self) -> bool:
        """Return True if a no-op task of any of them has begun."""
        return any(self._stamps.iterdir())

    def check(self) -> None:
        """Raise RuntimeError if one of them has ended by itself."""
        for process in self._processes:
            if process.poll() is not None:
                raise RuntimeError(f"a worker ended by itself with the code {process.returncode}")


class Peer(ABC):
    """A library that runs the tasks of `tasks.py`.

    Attributes:
        packages: whose versions are told.
        shares_out: whether it is also measured with two worker processes.
        apart: seconds between submissions to an idle worker: so many that it is idle again.
    """

    packages: ClassVar[Sequence[str]] = ()
    shares_out: ClassVar[bool] = True
    apart: ClassVar[float] = 0.02

    # The operations of a peer

    @abstractmethod
    def submit(self, task: str, number: int) -> Any:
        """Submit a task by its name; return what its result is asked for with."""

    def submit_many(self, count: int) -> Any:
        """Submit the no-op task with 0 to `count - 1` in the fastest way it has; return what `submit` would last."""
        for number in range(count - 1):
            self.submit("noop", number)
        return self.submit("noop", count - 1)

    @abstractmethod
    def result(self, receipt: Any) -> Any:
        """Wait for the result of a task, in the way that its manual shows; for 10 seconds at most."""

    @abstractmethod
    def unfinished(self) -> int:
        """Return how many tasks are not yet done with, their results stored and their messages acknowledged."""

    @abstractmethod
    def worker_commands(self, processes: int) -> list[list[str]]:
        """Return the commands that together run this many worker processes of eight threads."""

    def versions(self) -> dict[str, str]:
        """Return what is measured."""
        return {name: importlib.metadata.version(name) for name in self.packages}

    # Steps

    def one_by_one(self, tasks: int) -> dict[str, float]:
        """Submit tasks one by one while no worker runs; then one process drains them."""
        began = time.perf_counter()
        for number in range(tasks):
            receipt = self.submit("noop", number)
        rate = tasks / (time.perf_counter() - began)
        return {"submit": rate, "drain": self._drain(tasks, 1, receipt)}

    def in_bulk(self, tasks: int) -> dict[str, float]:
        """Submit tasks in bulk while no worker runs; then two processes drain them."""
        began = time.perf_counter()
        receipt = self.submit_many(tasks)
        figures = {"bulk": tasks / (time.perf_counter() - began)}
        if self.shares_out:
            figures["drain_two"] = self._drain(tasks, 2, receipt)
        return figures

    def at_rest(self, _tasks: int) -> dict[str, float]:
        """Submit a task now and then to an idle worker; in ms."""
        with self._workers(1):
            for _ in range(_WARM_UP):
                self.result(self.submit("stamp", 0))
            starts = self._until_started()
            results = self._until_result()
        return {
            "start_p50": percentile(starts, 0.5),
            "start_p99": percentile(starts, 0.99),
            "result_p50": percentile(results, 0.5),
        }

    def at_once(self, tasks: int) -> dict[str, float]:
        """Submit no-op tasks to a worker that runs elsewhere, and wait until they are done with."""
        self.submit_many(tasks)
        self._wait_until_finished()
        return {}

    def failures(self, tasks: int) -> dict[str, float]:
        """Return the same with tasks that fail."""
        for number in range(tasks):
            self.submit("failing", number)
        self._wait_until_finished()
        return {}

    def slow(self, tasks: int) -> dict[str, float]:
        """Submit tasks that take their time, and do not wait for them."""
        for number in range(tasks):
            self.submit("slow", number)
        return {}

    # Measurements

    def _drain(self, tasks: int, processes: int, last: Any) -> float:
        """Tasks per second, from the first line of the first task until nothing is unfinished.

        The workers start when everything is queued, and the time they need for that does not count. The start is seen
        by the tasks, since nothing else knows of it; the end is seen in the server, so that it is there for all of
        them when results are stored and messages acknowledged, not when a worker only believes to be done.
        """
        with self._workers(processes) as crew:
            self._wait_until_finished(crew)
            ended = time.time()
            began = crew.began()
            if self.result(last) != tasks - 1:
                raise RuntimeError(f"the last of {tasks} tasks has another result than {tasks - 1}")
        return tasks / (ended - began)

    def _wait_until_finished(self, crew: Crew | None = None) -> None:
        left, moved = self.unfinished(), time.monotonic()
        while left:
            if crew:
                crew.check()
            time.sleep(_POLL)
            now = self.unfinished()
            if now != left:
                left, moved = now, time.monotonic()
            elif time.monotonic() - moved > _STANDSTILL:
                raise RuntimeError(f"{left} tasks are left, and nothing has moved for {_STANDSTILL} s")

    def _until_started(self) -> list[float]:
        """Time from submission to the first line of the task, in ms. Results are read later: that would be load."""
        sent = []
        for _ in range(_LATENCIES):
            began = time.time()
            sent.append((began, self.submit("stamp", 0)))
            time.sleep(max(0.0, began + self.apart - time.time()))
        return [(self.result(receipt) - began) * 1000 for began, receipt in sent]

    def _until_result(self) -> list[float]:
        """Time from submission until its result is in hand, in ms."""
        waits = []
        for _ in range(_LATENCIES // 2):
            began = time.perf_counter()
            self.result(self.submit("stamp", 0))
            waits.append((time.perf_counter() - began) * 1000)
            time.sleep(self.apart)
        return waits

    def _workers(self, processes: int) -> contextlib.AbstractContextManager[Crew]:
        """Run workers for the length of a block."""
        return self._running(self.worker_commands(processes))

    @contextlib.contextmanager
    def _running(self, commands: Sequence[Sequence[str]]) -> Iterator[Crew]:
        """Run workers for the length of a block; show what they printed if the block fails."""
        with tempfile.TemporaryDirectory() as stamps, tempfile.TemporaryFile() as log:
            environment = {**os.environ, STAMPS: stamps}
            running = [
                subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                for command in commands
            ]
            try:
                yield Crew(running, Path(stamps))
            except Exception:
                log.seek(0)
                sys.stderr.write(log.read().decode("utf-8", "replace"))
                raise
            finally:
                stop(running)


class TwoLanes(Peer):
    """A peer that can put tasks into another queue than the first, which another worker serves."""

    @abstractmethod
    def submit_elsewhere(self, number: int) -> Any:
        """Submit the task `stamp` to the other queue."""

    @abstractmethod
    def elsewhere_commands(self) -> list[list[str]]:
        """Return the commands that together run one worker process of eight threads for the other queue."""

    def beside(self, tasks: int) -> dict[str, float]:
        """Submit a task now and then to an idle queue: first on a quiet server, then while another one is drained.

        In ms; and how many times as long it takes beside the drain.
        """
        with self._running(self.elsewhere_commands()):
            for _ in range(_WARM_UP):
                self.result(self.submit_elsewhere(0))
            alone = self._submitted(lambda sent: len(sent) < _LATENCIES)
            self.submit_many(tasks)
            with self._workers(1) as crew:
                while not crew.has_begun():
                    crew.check()
                    time.sleep(0.001)
                # The last of the drain is no full load any more.
                beside = self._submitted(lambda _: self.unfinished() > tasks // 10)
                self._wait_until_finished(crew)
        figures = {}
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            for index, what in enumerate(("submit", "start")):
                idle, busy = (percentile([each[index] for each in times], share) for times in (alone, beside))
                figures |= {f"beside_{what}_{name}": busy, f"beside_{what}_{name}_times": busy / idle}
        return figures

    def _submitted(self, more: Callable[[Sequence[Any]], bool]) -> list[tuple[float, float]]:
        """Submit until told to stop; return for each task how long its submission and its start took, in ms."""
        sent: list[tuple[float, float, Any]] = []
        while more(sent):
            began = time.time()
            receipt = self.submit_elsewhere(0)
            sent.append((began, time.time(), receipt))
            time.sleep(max(0.0, began + _APART_BESIDE - time.time()))
        return [
            ((submitted - began) * 1000, (self.result(receipt) - began) * 1000) for began, submitted, receipt in sent
        ]


def stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that lead process groups: in order first, then with all their children."""
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median of times, in ms."""
    return statistics.median(seconds) * 1000


def serve(peer: Peer) -> None:
    """Run the step that the command line names and print its figures: the peer's side of the protocol."""
    name, tasks = sys.argv[1], int(sys.argv[2])
    if name == "versions":
        answer: dict[str, Any] = {"versions": peer.versions()}
    elif name == "commands":
        answer = {"commands": peer.worker_commands(1)}
    else:
        step = getattr(peer, name, None)
        answer = {"figures": step(tasks) if step else {}}
    print(json.dumps(answer))
