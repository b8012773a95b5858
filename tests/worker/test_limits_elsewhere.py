"""The limits of a task whose executions are in other partitions than its quota: members of flows, children, keys."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from flowfabric_worker import Worker, current
from flowfabric_worker.engine.ids import QuotaPolicyId
from flowfabric_worker.engine.types.quotas import QuotaPolicyStatus
from tests.support.servers import wait_until
from tests.worker.conftest import Start


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Provide a worker on a store of five partitions."""
    worker = Worker("shop", f"memory://{uuid4().hex}?partitions=5")
    worker.engine.prepare(testing=True)
    yield worker
    worker.close()


class Running:
    """How many handlers run at once, and the most that did."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def quota(worker: Worker, name: str) -> QuotaPolicyStatus:
    found = worker.engine.read_quota_policy(QuotaPolicyId(name))
    assert found is not None
    return found


def test_a_concurrency_limits_the_members_of_all_flows(worker: Worker, start: Start) -> None:
    running = Running()

    @worker.task(name="call", concurrency=2)
    def call(number: int) -> int:
        with running:
            return number

    @worker.task
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    runs = []
    for _ in range(5):
        with worker.flow("many") as flow:
            flow.returns(add.node([call.node(number) for number in range(4)]))
        runs.append(flow.submit())
    start(worker, threads=8)

    assert [run.result(30) for run in runs] == [6] * 5
    assert (running.total, running.most) == (20, 2)
    wait_until(lambda: quota(worker, "task:call").running == 0, "no slot is held")


def test_a_concurrency_limits_the_children_of_all_parents(worker: Worker, start: Start) -> None:
    running = Running()

    @worker.task(name="call", concurrency=1)
    def call(number: int) -> int:
        with running:
            return number

    @worker.task
    def parent() -> int:
        return sum(current().gather(*(current().spawn(str(number), call, number) for number in range(3))))

    runs = [parent.submit() for _ in range(5)]
    start(worker, threads=8)

    assert [run.result(30) for run in runs] == [3] * 5
    assert (running.total, running.most) == (15, 1)


@pytest.mark.parametrize("unique", ["waiting", "running"])
def test_a_rate_limits_executions_that_are_unique_by_key(worker: Worker, unique: str) -> None:
    @worker.task(name="call", rate="3/h")
    def call(number: int) -> int:
        return number

    runs = [call.options(key=str(number), unique=unique).submit(number) for number in range(8)]
    worker.run_until_idle()

    states = sorted(str(worker.engine.read_execution_state(run.id)) for run in runs)
    assert states == ["completed"] * 3 + ["rate_limited"] * 5
    assert quota(worker, "task:call").admitted_in_window == 3
