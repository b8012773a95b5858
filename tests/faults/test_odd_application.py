"""An application with hanging hooks, raising filters, forks and killed processes does its good work all the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric_worker.engine.types.states import PublicState
from tests.support import odd_app
from tests.support.cli import Process
from tests.support.observation import info_of
from tests.support.servers import wait_until

GOOD = 2000
POISON = 10
WITHIN = 60.0


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Process]:
    """Provide two processes of the odd application, and let this process submit to their store."""
    worker = odd_app.worker
    outer = worker.url
    worker.close()
    worker.url = f"embedded://{tmp_path}/store"
    worker.engine.prepare()
    process = Process(
        "run", "tests.support.odd_app:worker", "--processes", 2, "--lease", "2s",
        log=tmp_path / "log", environment={"FLOWFABRIC_URL": worker.url, "ODD_LOGGING": "1"},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.end()
        worker.close()
        worker.url = outer


def test_good_work_goes_on_beside_everything_that_an_application_may_do(supervisor: Process) -> None:
    broken, forked, pooled = odd_app.broken.submit(), odd_app.fork.submit(), odd_app.pool.submit()
    poison = odd_app.kill_process.submit_many([()] * POISON)
    variables = odd_app.leave_variable.submit_many((number,) for number in range(20))
    good = odd_app.good.submit_many((number,) for number in range(GOOD))

    assert [run.result(WITHIN) for run in good] == list(range(GOOD))
    assert {run.result(WITHIN) for run in variables} == {odd_app.UNSET}
    assert forked.result(WITHIN) == 0
    assert pooled.result(WITHIN) == [1, 2]
    wait_until(lambda: {run.state() for run in (broken, *poison)} == {PublicState.FAILED}, "the others fail", WITHIN)
    assert (info_of(odd_app.worker, broken).error or "").startswith("TextlessError: (")
    assert {info_of(odd_app.worker, run).error for run in poison} == {"reclaims_exhausted"}

    # A line about the first one may have been lost with its process.
    odd_app.broken.submit()
    supervisor.await_log("raised SystemExit")

    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0
    for line in (
        "odd.broken", "HangingHooks.on_success has run for", "killed by SIGKILL", "stopped; it handed back",
    ):  # fmt: skip
        assert line in supervisor.log
