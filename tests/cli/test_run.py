"""The command `run`, with real processes and real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.support.cli import APP, Process, await_state
from tests.support.servers import wait_until

StartWorker = Callable[..., Process]


def test_sigterm_lets_handlers_finish_releases_the_rest_and_exits_0(client: Client, start_worker: StartWorker) -> None:
    naps = client.submit_many("nap", [(1.0,)] * 4, lane="naps")
    worker = start_worker("--threads", 1)
    await_state(client, str(naps[0].id), PublicState.ACTIVE)

    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    states = [run.state() for run in naps]
    begun = states.index(PublicState.WAITING)
    assert set(states[:begun]) == {PublicState.COMPLETED}
    assert set(states[begun:]) == {PublicState.WAITING}
    assert len([line for line in worker.log.splitlines() if "takes work" in line or "stopped;" in line]) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handler_that_outlives_the_grace_is_released_without_a_retry(
    client: Client, start_worker: StartWorker, number: int
) -> None:
    nap = client.submit("nap", (60,), lane="naps")
    worker = start_worker("--grace", "100ms")
    await_state(client, str(nap.id), PublicState.ACTIVE)

    worker.signal(number)

    assert worker.wait() == 0
    info = client.get(nap.id)
    assert info is not None
    assert (info.public_state, info.retry_count, info.reclaim_count) == (PublicState.WAITING, 0, 0)


def test_repeated_signals_release_everything_at_once_and_exit_0(client: Client, start_worker: StartWorker) -> None:
    nap = client.submit("nap", (60,), lane="naps")
    worker = start_worker("--grace", "60s")
    await_state(client, str(nap.id), PublicState.ACTIVE)

    def keep_signalling() -> bool:
        worker.signal(signal.SIGTERM)
        return worker.popen.poll() is not None

    wait_until(keep_signalling, "the worker has ended")
    assert worker.wait() == 0
    assert client.run(nap.id).state() is PublicState.WAITING


def test_work_of_a_killed_worker_is_finished_by_another(client: Client, start_worker: StartWorker) -> None:
    naps = client.submit_many("nap", [(0.2,)] * 20, lane="naps")
    first = start_worker("--threads", 2, "--lease", "1s")
    await_state(client, str(naps[0].id), PublicState.COMPLETED)
    (instance,) = (row.worker_instance_id for row in client.workers() if isinstance(row, WorkerInfo))

    first.signal(signal.SIGKILL)
    first.wait()
    active = [client.get(summary.execution_id) for summary in client.list(state=PublicState.ACTIVE)]
    interrupted = {info.execution_id for info in active if info and info.current_lease}
    second = start_worker("--threads", 4, "--lease", "1s")

    assert {run.result(timeout=20) for run in naps} == {"slept"}
    infos = {run.id: client.get(run.id) for run in naps}
    assert interrupted
    assert {identity for identity, info in infos.items() if info and info.reclaim_count} == interrupted
    ended = [event.execution_id for event in client.completions(timeout=timedelta())]
    assert sorted(ended) == sorted(run.id for run in naps)
    assert instance not in second.log


def test_options_of_run_reach_the_worker(client: Client, start_worker: StartWorker) -> None:
    start_worker("--threads", 3, "--lanes", "naps=2,extra", "--capabilities", "gpu,eu")

    (row,) = client.workers()

    assert isinstance(row, WorkerInfo)
    assert (row.threads, row.lanes, row.capabilities) == (3, ("extra", "naps"), ("eu", "gpu"))


def test_namespace_option_sets_the_namespace_of_the_worker(url: str, start_worker: StartWorker) -> None:
    start_worker("--namespace", "tenant")

    with Client(url, namespace="tenant") as tenant:
        assert tenant.submit("add", (1, 2), force=True, lane="sums").result(timeout=20) == 3
    with Client(url) as client:
        assert list(client.workers()) == []


def test_log_records_of_a_handler_name_its_execution(client: Client, start_worker: StartWorker) -> None:
    worker = start_worker()
    nap = client.submit("nap", (0.5,), lane="naps")

    worker.await_log("sleeping for 0.5 s")

    (line,) = (line for line in worker.log.splitlines() if "sleeping" in line)
    assert f"[task=nap lane=naps attempt=0 execution_id={nap.id.plain}]" in line


def test_log_level_option_limits_what_is_logged(client: Client, start: Callable[..., Process]) -> None:
    worker = start("run", APP, "--log-level", "warning")
    assert client.submit("nap", (0,), lane="naps").result(timeout=20) == "slept"
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert worker.log == ""


def test_idle_worker_takes_work_that_is_submitted_later(client: Client, start_worker: StartWorker) -> None:
    start_worker()
    wait_until(lambda: list(client.workers()), "the worker is known")

    assert client.submit("add", (1, 2), lane="sums").result(timeout=5) == 3
