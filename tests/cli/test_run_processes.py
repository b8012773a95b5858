"""The command `run --processes`: its options, its help and its exit codes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from flowfabric_worker.cli.exit_codes import ExitCode
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.support.cli import APP, Process, await_state, cli, ok
from tests.support.servers import wait_until

Start = Callable[..., Process]


def await_workers(client: Client, count: int) -> list[WorkerInfo]:
    """Return the rows of so many workers that take work."""

    def living() -> list[WorkerInfo]:
        rows = [row for row in client.workers() if isinstance(row, WorkerInfo) and row.alive]
        return rows if len(rows) == count else []

    rows: list[WorkerInfo] = wait_until(living, f"{count} workers are known")
    return rows


@pytest.mark.parametrize("spelled", [("--processes", "3"), ("--processes=3",)])
def test_run_starts_the_processes_with_the_same_options(client: Client, start: Start, spelled: tuple[str]) -> None:
    supervisor = start("run", APP, *spelled, "--threads", 2, "--lanes", "naps=2,extra", "--capabilities", "gpu,eu")

    rows = await_workers(client, 3)

    assert {row.pid for row in rows} == supervisor.children()
    assert {(row.threads, row.lanes, row.capabilities) for row in rows} == {(2, ("extra", "naps"), ("eu", "gpu"))}
    assert len({row.worker_instance_id for row in rows}) == 3


def test_processes_use_the_namespace_and_store_of_the_command(url: str, start: Start, tmp_path: Path) -> None:
    start("run", APP, "--processes", 1, "--namespace", "tenant", "--url", f"{url}2")

    with Client(f"{url}2", namespace="tenant") as tenant:
        assert tenant.submit("add", (1, 2), force=True, lane="sums").result(timeout=20) == 3


def test_sigterm_lets_running_handlers_finish_and_exits_0(client: Client, start: Start) -> None:
    supervisor = start("run", APP, "--processes", 2)
    await_workers(client, 2)
    nap = client.submit("nap", (1.0,), lane="naps")
    await_state(client, str(nap.id), PublicState.ACTIVE)

    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert nap.state() is PublicState.COMPLETED
    assert supervisor.log.count(" stopped; ") == 2


def test_handler_that_outlives_the_grace_is_released_without_a_retry(client: Client, start: Start) -> None:
    nap = client.submit("nap", (60,), lane="naps")
    supervisor = start("run", APP, "--processes", 1, "--grace", "100ms")
    await_state(client, str(nap.id), PublicState.ACTIVE)

    supervisor.signal(signal.SIGINT)

    assert supervisor.wait() == 0
    info = client.get(nap.id)
    assert info is not None
    assert (info.public_state, info.retry_count, info.reclaim_count) == (PublicState.WAITING, 0, 0)


def test_processes_log_at_the_level_of_the_command(client: Client, start: Start) -> None:
    supervisor = start("run", APP, "--processes", 1, "--log-level", "error")
    assert client.submit("add", (1, 2), lane="sums").result(timeout=20) == 3
    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert supervisor.log == ""


@pytest.mark.parametrize(
    ("app", "sentence"),
    [
        ("tests.cli.nowhere:worker", "There is no module 'tests.cli.nowhere'"),
        ("tests.support.cli_app:missing", "The module 'tests.support.cli_app' has no 'missing'"),
        ("tests.support.cli_app:without_tasks", "has no tasks"),
    ],
)
def test_unusable_application_is_reported_once_for_all_processes(start: Start, app: str, sentence: str) -> None:
    supervisor = start("run", app, "--processes", 1)

    assert supervisor.wait() == ExitCode.APP
    assert supervisor.log.count(sentence) == 1
    assert "Traceback" not in supervisor.log


@pytest.mark.parametrize(
    "wrong",
    [
        ("--processes", "0"),
        ("--processes", "many"),
        ("--memory-limit", "lots", "--processes", "2"),
        ("--memory-limit", "0MB", "--processes", "2"),
        ("--max-stuck-threads", "0", "--processes", "2"),
        ("--lease", "0s", "--processes", "2"),
        ("--lanes", "mail=none", "--processes", "2"),
    ],
)
def test_wrong_option_is_refused_before_any_process_starts(url: str, wrong: tuple[str, ...]) -> None:
    ran = cli("run", APP, *wrong)

    assert ran.code == ExitCode.USAGE
    assert wrong[0] in ran.err
    assert "Started" not in ran.err


def test_run_help_describes_processes_and_how_they_end() -> None:
    said = " ".join(ok("run", "--help").out.split())

    for words in (
        "--processes N",
        "--memory-limit SIZE",
        "--max-stuck-threads N",
        "exits with code 7",
        "SIGTERM",
        "SIGUSR1",
    ):
        assert words in said
    assert "7 the worker needs a restart" in " ".join(ok("--help").out.split())


@pytest.mark.parametrize("processes", [(), ("--processes", 2)])
def test_memory_limit_below_what_the_application_uses_is_refused(start: Start, processes: tuple[object]) -> None:
    worker = start("run", APP, "--memory-limit", "20MB", *processes)

    assert worker.wait() == ExitCode.USAGE
    assert "--memory-limit" in worker.log
    assert "Traceback" not in worker.log
