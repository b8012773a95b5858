"""The limits of a task: its rate, its concurrency, and for how long its key is unique."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker import Client, Worker, current
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import QuotaPolicyId
from flowfabric_worker.engine.types.quotas import QuotaPolicy, QuotaPolicyStatus
from tests.worker.conftest import Start


def quota(worker: Worker, name: str) -> QuotaPolicyStatus:
    found = worker.engine.read_quota_policy(QuotaPolicyId(name))
    assert found is not None
    return found


def test_a_rate_and_a_concurrency_become_the_quota_of_the_task(worker: Worker) -> None:
    @worker.task(name="call", rate="10/30s", concurrency=4)
    def call(number: int) -> int:
        return number

    run = call.submit(1)

    expected = QuotaPolicy(window=timedelta(seconds=30), max_requests_per_window=10, max_concurrent=4)
    assert quota(worker, "task:call").policy == expected
    info = worker.engine.read_execution_info(run.id)
    assert info is not None
    assert info.policy.quota_policy_id == "task:call"


def test_a_changed_limit_replaces_that_of_the_last_release(worker: Worker) -> None:
    worker.task(name="call", rate="10/m")(lambda: None).submit()
    released = Worker("shop", worker.url)

    released.task(name="call", rate="5/m")(lambda: None).submit()

    assert quota(worker, "task:call").policy.max_requests_per_window == 5
    released.close()


def test_each_key_of_limit_by_has_limits_of_its_own(worker: Worker) -> None:
    @worker.task(name="call", rate="1/h", limit_by=lambda *call: call[0])
    def call(tenant: str, number: int) -> int:
        return number

    runs = [call.submit(tenant, number) for number in range(2) for tenant in ("a", "b")]
    worker.run_until_idle()

    states = [worker.engine.read_execution_state(run.id) for run in runs]
    assert states == ["completed", "completed", "rate_limited", "rate_limited"]
    assert quota(worker, "task:call:a").admitted_in_window == 1


def test_no_more_than_the_concurrency_run_at_once_in_many_threads(worker: Worker, start: Start) -> None:
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()
    together = threading.Event()

    @worker.task(concurrency=2)
    def call(number: int) -> int:
        with lock:
            running.append(number)
            most.append(len(running))
            if len(running) == 2:
                together.set()
        together.wait(5)
        with lock:
            running.remove(number)
        return number

    runs = [call.submit(number) for number in range(12)]
    start(worker, threads=8)
    assert [run.result(20) for run in runs] == list(range(12))
    assert max(most) == 2


def test_a_client_without_the_code_is_limited_too(worker: Worker) -> None:
    @worker.task(name="call", rate="1/h")
    def call() -> None: ...

    worker.publish()
    with Client(worker.url) as client:
        runs = [client.submit("call") for _ in range(2)]
        worker.run_until_idle()
        assert [worker.engine.read_execution_state(run.id) for run in runs] == ["completed", "rate_limited"]


@pytest.mark.parametrize(
    "options",
    [
        {"rate": "ten/m"},
        {"rate": "0/m"},
        {"rate": "10"},
        {"rate": 10},
        {"concurrency": 0},
        {"concurrency": "4"},
        {"limit_by": lambda: "a"},
        {"rate": "1/s", "quota": "api"},
    ],
)
def test_limits_that_contradict_or_cannot_be_read_are_refused(worker: Worker, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        worker.task(**options)(lambda: None)
    assert caught.value.code == "invalid_input"


def test_limits_belong_to_the_task(worker: Worker) -> None:
    task = worker.task(name="call", rate="10/m")(lambda: None)
    with pytest.raises(TypeError, match="rate can only be set on the task"):
        task.options(rate="5/m")


def test_a_key_is_unique_while_waiting_or_while_running(worker: Worker) -> None:
    task = worker.task(name="call")(lambda: None)
    waiting = task.options(key="w", unique="waiting")
    running = task.options(key="r", unique="running")

    assert [waiting.submit().created for _ in range(2)] == [True, False]
    assert [running.submit().created for _ in range(2)] == [True, False]
    worker.run_until_idle()
    assert waiting.submit().created
    assert running.submit().created
    with pytest.raises(TypeError, match="give a key="):
        task.options(unique="waiting").submit()


def test_a_parent_gives_its_slot_to_the_child_that_it_waits_for(worker: Worker) -> None:
    @worker.task(name="deep", concurrency=1)
    def deep(level: int) -> int:
        if level == 0:
            return 0
        (below,) = current().gather(current().spawn("child", deep, level - 1))
        return below + 1

    run = deep.submit(5)
    worker.run_until_idle()

    assert run.result(0) == 5
    assert quota(worker, "task:deep").running == 0
