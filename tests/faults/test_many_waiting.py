"""Ten thousand executions that wait cost a worker of two handler threads nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker import Client, Runtime, Worker, WorkerSettings, current
from flowfabric_worker.engine.types.states import PublicState
from tests.support.executions import depths
from tests.support.servers import ValkeyServer, wait_until

MANY = 10_000
ANSWERED = 500


@pytest.fixture
def worker(valkey: ValkeyServer) -> Iterator[Worker]:
    worker = Worker("many", f"{valkey.url}?prefix=many-waiting")
    worker.engine.prepare(testing=True)
    yield worker
    worker.engine.erase()
    worker.close()


def test_ten_thousand_runs_wait_beside_two_handler_threads(worker: Worker) -> None:
    tokens: dict[int, str] = {}

    @worker.task(lane="waiting")
    def wait(number: int) -> int:
        if number < ANSWERED:
            tokens[number] = current().waitpoint("go")
        return number + current().wait_for("go", type=int)

    other = worker.task(name="other", lane="other")(lambda: "at once")
    runs = wait.submit_many((number,) for number in range(MANY))
    runtime = Runtime(worker, WorkerSettings(threads=2))
    runtime.start()
    try:
        threads = threading.active_count()
        wait_until(lambda: depths(worker.engine, "waiting") == {PublicState.SUSPENDED: MANY}, "all wait", 120)
        assert threading.active_count() <= threads
        began = time.monotonic()
        assert other.submit().result(10) == "at once"
        assert time.monotonic() - began < 5

        with Client(worker.url) as client:
            for token in tokens.values():
                client.signal(token, "go", 1)
        assert [run.result(60) for run in runs[:ANSWERED]] == list(range(1, ANSWERED + 1))
        assert depths(worker.engine, "waiting")[PublicState.SUSPENDED] == MANY - ANSWERED
    finally:
        runtime.stop(timedelta(seconds=5))
