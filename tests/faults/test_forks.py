"""Handlers that fork: the new process never becomes a second worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support import forking_app
from tests.support.cli import Process

APP = "tests.support.forking_app:worker"
WITHIN = 60.0


@attrs.frozen
class Forked:
    """A worker process with four threads whose handlers fork."""

    process: Process
    journal: Path

    def begun(self) -> Counter[str]:
        """Return how often each thing began; only in the worker itself."""
        lines = [line.split(" ") for line in self.journal.read_text().splitlines()]
        assert {int(pid) for _, pid in lines} == {self.process.popen.pid}
        return Counter(what for what, _ in lines)


@pytest.fixture
def forked(tmp_path: Path) -> Iterator[Forked]:
    worker = forking_app.worker
    outer, journal = worker.url, tmp_path / "journal"
    worker.close()
    worker.url = f"embedded://{tmp_path}/store"
    worker.engine.prepare()
    process = Process(
        "run", APP, "--threads", 4, "--memory-limit", f"{forking_app.LIMIT_MIB}MB", log=tmp_path / "log",
        environment={"FLOWFABRIC_URL": worker.url, forking_app.JOURNAL_VARIABLE: str(journal)},
    )  # fmt: skip
    try:
        yield Forked(process, journal)
    finally:
        process.end()
        worker.close()
        worker.url = outer


def test_a_forked_process_that_leaves_the_handler_ends_alone(forked: Forked) -> None:
    codes = {"returns": 0, "raises": 1, "exits": 3}
    forks = {how: forking_app.fork.submit_many([(how,)] * 5) for how in codes}
    counts = forking_app.count.submit_many((number,) for number in range(200))

    assert {how: [run.result(WITHIN) for run in runs] for how, runs in forks.items()} == {
        how: [code] * 5 for how, code in codes.items()
    }
    assert [run.result(WITHIN) for run in counts] == list(range(200))
    assert forked.begun() == Counter({**{f"fork-{how}": 5 for how in codes}, **{str(n): 1 for n in range(200)}})
    assert "ValueError: in the child" in forked.process.log


def test_a_process_forked_inside_a_step_ends_with_the_function_of_the_step(forked: Forked) -> None:
    runs = forking_app.fork_in_step.submit_many([()] * 3)

    assert [run.result(WITHIN) for run in runs] == [0] * 3
    assert forked.begun() == Counter({"charge": 3, "after": 3})


def test_processes_of_multiprocessing_end_when_they_are_terminated(forked: Forked) -> None:
    pools = forking_app.pool.submit_many([()] * 5)
    terminated = forking_app.terminate.submit_many([()] * 10)

    assert [run.result(WITHIN) for run in pools] == [[1, 2, 3]] * 5
    assert [run.result(WITHIN) for run in terminated] == [-15] * 10


def test_the_memory_limit_binds_the_worker_and_nothing_that_handlers_start(forked: Forked) -> None:
    ways = ["subprocess", "system", "fork", "spawn", "forkserver"]
    runs = [forking_app.take_much.submit(way) for way in ways]

    assert {way: run.result(WITHIN) for way, run in zip(ways, runs, strict=True)} == dict.fromkeys(ways, 0)
    assert forking_app.take_much_here.submit().result(WITHIN) == "refused"


def test_a_durable_call_in_a_forked_process_is_refused(forked: Forked) -> None:
    run = forking_app.step_in_child.submit()

    assert run.result(WITHIN) == 4


def test_a_process_that_a_conversion_forks_ends_with_the_conversion(forked: Forked) -> None:
    run = forking_app.copy.submit(forking_app.Sheet(21))

    assert run.result(WITHIN) == forking_app.Sheet(42)
    begun = forked.begun()
    assert (begun["copy"], begun["double"]) == (1, 1)
    assert begun["encode"] >= 2
    assert begun["decode"] >= 2
