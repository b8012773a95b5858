"""A worker keeps no memory of ended work, for any number of tasks and any outcome."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import ValkeyServer, running, wait_until
from tests.support.site import ROOT, Process

KIB = 1024
# An allocator never gives everything back at once. A hundred bytes for each task would be more than this.
MAY_GROW_KIB = 6 * KIB
MAY_OCCUPY_KIB = 60_000_000 // KIB


@attrs.frozen
class Measured:
    """A worker process as users start it, and a client of its store."""

    process: Process
    client: Client

    def memory(self) -> int:
        """Return the memory that the process occupies, in KiB."""
        status = Path(f"/proc/{self.process.pid}/status")
        if status.exists():
            return int(status.read_text().split("VmRSS:")[1].split()[0])
        return int(subprocess.check_output(["ps", "-o", "rss=", "-p", str(self.process.pid)]))

    def memory_after(self, task: str, count: int) -> int:
        """Run a task so often and return the resident memory of the process afterwards, in KiB."""
        self.client.submit_many(task, (() for _ in range(count)), force=True)
        wait_until(self.is_idle, "everything has ended", 100)
        return self.memory()

    def is_idle(self) -> bool:
        depths = [lane.depths for lane in self.client.lanes()]
        return not any(lane.get(state) for lane in depths for state in (PublicState.WAITING, PublicState.ACTIVE))


@pytest.fixture
def measured(tmp_path: Path) -> Iterator[Measured]:
    """Provide a worker that has run everything once, so that it holds what it holds for good."""
    with running(ValkeyServer("--appendonly", "no")) as server, Client(server.url) as client:
        command = [sys.executable, "-m", "flowfabric_worker", "run", "tests.support.forgetful_app:worker"]
        # Else glibc keeps the megabytes of failed handlers, each thread as many as it happened to run side by side.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(128 * KIB)}
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--url", server.url, "--log-level", "error"], cwd=ROOT, stderr=log, env=environment
            )
        measured = Measured(process, client)
        try:
            for task in ("nothing", "fail"):
                client.submit(f"forgetting.{task}", force=True)
            wait_until(lambda: measured.is_idle() and list(client.workers()), "it has started")
            yield measured
        finally:
            process.kill()
            process.wait()


def test_the_memory_of_a_worker_does_not_grow_with_what_it_has_done(measured: Measured) -> None:
    before = measured.memory_after("forgetting.nothing", 20_000)
    after = measured.memory_after("forgetting.nothing", 80_000)

    assert after - before < MAY_GROW_KIB
    assert after < MAY_OCCUPY_KIB


def test_the_memory_of_a_worker_does_not_grow_with_what_has_failed_in_it(measured: Measured) -> None:
    before = measured.memory_after("forgetting.fail", 2_000)
    after = measured.memory_after("forgetting.fail", 8_000)

    # Eight of eight thousand megabytes would be more than this.
    assert after - before < MAY_GROW_KIB


def test_work_for_another_day_lies_in_the_store_and_not_in_the_worker(measured: Measured) -> None:
    before = measured.memory_after("forgetting.nothing", 1_000)
    measured.client.submit_many("nothing", (() for _ in range(100_000)), force=True, delay=timedelta(days=1))
    # It has looked at its lane since.
    after = measured.memory_after("forgetting.nothing", 1_000)

    assert after - before < MAY_GROW_KIB


# One by one


@attrs.frozen(eq=False, slots=False)
class Argument:
    """An object that is freed with its last reference."""

    name: str


@pytest.mark.parametrize("fails", [False, True])
def test_an_argument_dies_when_its_run_has_ended(fails: bool) -> None:
    seen: list[weakref.ref[Argument]] = []
    worker = Worker("forgetting", f"memory://{uuid4().hex}")

    @worker.task
    def take(argument: Argument) -> str:
        seen.append(weakref.ref(argument))
        if fails:
            raise ValueError(argument.name)
        return argument.name

    runtime = Runtime(worker, WorkerSettings(threads=1))
    runtime.start()
    try:
        # No cycle may keep it either: when a cycle is collected is not known.
        gc.disable()
        take.submit(Argument("it"))
        wait_until(lambda: seen and seen[0]() is None, "it came and went")
    finally:
        gc.enable()
        runtime.stop()
        worker.close()
