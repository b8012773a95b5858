"""The command `run`: what it logs on a terminal and to a file, and how it respects an application's logging."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from flowfabric_worker._runtime.execution_log import short
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.states import PublicState
from tests.support.cli import APP, Process, await_state, on_terminal_until

Start = Callable[..., Process]
OWN = "tests.support.logging_app:worker"


def test_run_logs_its_start_and_each_end_once(client: Client, start_worker: Start) -> None:
    worker = start_worker("--threads", 2)
    added, refused = client.submit("add", (1, 2), lane="sums"), client.submit("refuse", ("no",), lane="sums")
    worker.await_log(f"refuse {refused.id.plain} failed for good: no")
    worker.await_log(f"add {short(str(added.id))} completed in ")
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    for text in ("takes work from embedded://", "add " + short(str(added.id)), refused.id.plain, " stopped;"):
        assert worker.log.count(text) == 1
    assert f"[lane=sums attempt=0 execution_id={added.id.plain}]" in worker.log


def test_run_logs_lines_of_80_columns_on_a_terminal(client: Client, url: str) -> None:
    added = client.submit("add", (1, 2), lane="sums")

    printed = on_terminal_until("completed in", "run", APP, url=url)

    (line,) = [line for line in printed.splitlines() if "completed in" in line]
    assert re.fullmatch(rf"\d\d:\d\d:\d\d INFO    add {short(str(added.id))} completed in .{{3,8}}", line)
    assert len(line) <= 80


def test_run_logs_the_process_id_with_several_processes(client: Client, start: Start) -> None:
    added = client.submit("add", (1, 2), lane="sums")
    supervisor = start("run", APP, "--processes", 1)
    supervisor.await_log("completed in")
    (pid,) = supervisor.children()

    (line,) = [line for line in supervisor.log.splitlines() if short(str(added.id)) in line]

    assert f" {pid} INFO " in line


def test_run_logs_what_a_stop_waits_for(client: Client, start_worker: Start) -> None:
    nap = client.submit("nap", (1.0,), lane="naps")
    worker = start_worker("--grace", "20s")
    await_state(client, str(nap.id), PublicState.ACTIVE)

    worker.signal(signal.SIGINT)

    assert worker.wait() == 0
    assert f"Stopping: waiting up to 20 s for 1 handler: nap {short(str(nap.id))} (" in worker.log


@pytest.mark.parametrize("own", ["basic", "dict"])
def test_run_keeps_the_logging_setup_of_the_application(
    client: Client, start: Start, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setenv("LOGGING", own)
    added = client.submit("add", (1, 2), lane="sums")
    worker = start("run", OWN)

    worker.await_log("completed in")

    assert f"mine: add {short(str(added.id))} completed in" in worker.log
    assert all(line.startswith("mine: ") for line in worker.log.splitlines())


def test_run_keeps_the_log_level_of_the_application_by_default(
    client: Client, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGGING", "quiet")
    quiet = start("run", OWN)
    client.submit("add", (1, 2), lane="sums").result(20)
    quiet.signal(signal.SIGTERM)
    assert quiet.wait() == 0
    talking = start("run", OWN, "--log-level", "info")
    talking.await_log("mine: application")

    assert quiet.log == ""
