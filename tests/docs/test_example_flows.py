"""examples/etl.py and examples/race.py do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from examples import etl, race
from flowfabric_worker import ExecutionCancelled, ExecutionFailed, Runtime, Worker, WorkerSettings
from flowfabric_worker.engine.types.flows import FlowState
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.testing import Clock
from tests.support.servers import ValkeyServer


@pytest.fixture
def served(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Provide the worker of the example on a real server, which is quicker than one in this process."""
    monkeypatch.setattr(etl.worker, "url", f"{valkey.url}?prefix=t{uuid4().hex[:12]}")
    yield etl.worker
    etl.worker.close()


def test_a_fan_out_and_fan_in_of_a_thousand_files_runs_once_each(served: Worker) -> None:
    files = [f"{number}.txt" for number in range(1000)]
    runtime = Runtime(served, WorkerSettings(threads=4))
    runtime.start()
    try:
        run, again = (etl.day(files, key="monday").submit() for _ in range(2))

        assert run.result(60).startswith("1000 files with ")
        assert (again.id, again.created) == (run.id, False)
        assert run.state() is FlowState.COMPLETED
        described = run.describe()
        assert described is not None
        assert (described.node_count, described.member_counts[PublicState.COMPLETED]) == (2002, 2002)
    finally:
        runtime.stop()


def test_a_missing_file_skips_the_join_and_not_the_report() -> None:
    with etl.worker.in_memory() as worker:
        clock = Clock(worker)
        run = etl.day(["a.txt", "missing.txt"]).submit()
        for _ in range(3):
            worker.run_until_idle()
            clock.move(etl.timedelta(seconds=1))

        assert run.node("report").result(1).endswith("words; 1 files are missing")
        assert run.node("load").state() is PublicState.SKIPPED
        with pytest.raises(ExecutionFailed, match=r"the node 'extract-2': .*missing\.txt"):
            run.result(1)


def test_the_quickest_provider_wins_and_the_slow_one_is_cancelled() -> None:
    with race.worker.in_memory() as worker:
        runtime = Runtime(worker, WorkerSettings(threads=3))
        runtime.start()
        try:
            run = race.race("why").submit()

            assert run.result(10) == "QUICK SAYS: WHY IS A GOOD QUESTION"
            with pytest.raises(ExecutionCancelled):
                run.node("slow").result(3)
            assert run.state() is FlowState.COMPLETED
        finally:
            runtime.stop()
