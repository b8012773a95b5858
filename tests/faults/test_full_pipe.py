"""A worker whose log is no longer read: it works on, and it stops."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from flowfabric_worker.client import Client
from tests.support.servers import PATIENCE, ValkeyServer, wait_until
from tests.support.site import ROOT

GRACE = 2
# A pipe holds 64 KiB; each failure takes a line with a traceback of more than 100 bytes.
FAILURES = 1500


@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one process", "two processes"])
def test_a_worker_whose_stderr_is_a_full_pipe_works_on_and_stops(server: ValkeyServer, options: list[str]) -> None:
    command = [sys.executable, "-m", "flowfabric_worker", "run", "tests.support.forgetful_app:worker", *options]
    with (
        Client(server.url) as client,
        subprocess.Popen(
            [*command, "--url", server.url, "--grace", f"{GRACE}s", "--log-level", "debug"],
            cwd=ROOT, stderr=subprocess.PIPE,
        ) as process,
    ):  # fmt: skip
        try:
            wait_until(lambda: list(client.workers()), "it has started")
            failing = [client.submit("fail") for _ in range(FAILURES)]
            for run in failing:
                wait_until(lambda run=run: run.state().is_terminal, "it has failed")  # type: ignore[misc]
            assert client.submit("nothing").result(PATIENCE) is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(GRACE + PATIENCE) == 0
        finally:
            process.kill()
