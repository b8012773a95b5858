"""Workers that are killed between two lines of a handler that makes steps and waits."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from flowfabric_worker import Client, Runtime, WorkerSettings
from flowfabric_worker.engine.types.states import PublicState
from tests.support.dying_worker import LEASE, ordering
from tests.support.observation import info_of
from tests.support.servers import ValkeyServer, wait_until
from tests.support.site import ROOT

# Each moment, and what is done twice because of it: what happened and was not recorded.
MOMENTS = {
    "after create_waitpoint 1": "",
    "mail": "mail",
    "before record_step 1": "mail",
    "after record_step 1": "",
    "after try_satisfy 1": "",
    "before suspend 1": "",
    "after suspend 1": "",
    "after observe_signals 1": "",
    "before record_step 2": "",
    "after record_step 2": "",
    "charge": "charge",
    "before record_step 3": "charge",
    "after record_step 3": "",
    "before complete_many 1": "",
    "after complete_many 1": "",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_repeats_only_the_step_that_was_under_way(moment: str, valkey: ValkeyServer, tmp_path: Path) -> None:
    url, journal = f"{valkey.url}?prefix=k{tmp_path.name}", tmp_path / "journal"
    worker, order = ordering(url, journal)
    worker.engine.prepare()
    run = order.submit()
    command = [sys.executable, "-m", "tests.support.dying_worker", url, str(journal), moment]
    process = subprocess.Popen(command, cwd=ROOT)
    runtime = Runtime(worker, WorkerSettings(threads=2, lease=LEASE))
    try:
        wait_until(lambda: process.poll() is not None or run.state() is PublicState.SUSPENDED, "it waits or died", 30)
        waitpoints = worker.engine.list_pending_waitpoints(run.id).waitpoints
        died_early = process.poll() is not None
        if died_early:
            runtime.start()
        token = wait_until(lambda: journal.exists() and journal.read_text().split()[1], "the token is told")
        with Client(url) as client:
            client.signal(token, "answer", "yes", by="jane")
        assert process.wait(timeout=30) == -9
        if not died_early:
            runtime.start()
        assert run.result(15) == "yes signal"
    finally:
        process.kill()
        process.wait()
        runtime.stop(timedelta())

    lines = Counter(journal.read_text().splitlines())
    assert len(waitpoints) == 1
    assert [line for line in lines if line.startswith("token ")] == [f"token {token}"]
    assert (lines["mail"], lines["charge"]) == (1 + (MOMENTS[moment] == "mail"), 1 + (MOMENTS[moment] == "charge"))
    assert info_of(worker, run).retry_count == 0
    worker.close()
