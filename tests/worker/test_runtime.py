"""The threads of a worker: how they start and stop, what they claim, and what they cost."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flowfabric_worker import Runtime, TaskContext, ValidationError, Worker, WorkerSettings, current
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.workers import WorkerInfo
from tests.support.observation import info_of
from tests.support.servers import ValkeyServer, wait_until
from tests.worker.conftest import Another, Start

ROOT = Path(__file__).parents[2]


def threads_named(part: str) -> list[str]:
    """Return the living threads with this part in their names."""
    return sorted(thread.name for thread in threading.enumerate() if part in thread.name)


def calls_of(server: ValkeyServer) -> int:
    """Return how many functions the server has run."""
    stats = server.client().info("commandstats")
    return sum(stats[name]["calls"] for name in ("cmdstat_fcall",) if name in stats)


def known_workers(worker: Worker) -> dict[str, WorkerInfo]:
    """Return the workers that the store knows, by their instance ids."""
    page = worker.engine.list_workers().workers
    return {each.worker_instance_id: each for each in page if isinstance(each, WorkerInfo)}


# Starting and stopping


def test_every_thread_has_a_name_and_ends_with_the_worker(worker: Worker, start: Start) -> None:
    others = set(threads_named("flowfabric-"))
    worker.task(len)
    runtime = start(worker, threads=3)

    assert [name for name in threads_named("flowfabric-") if "listener" not in name] == [
        "flowfabric-claimer",
        "flowfabric-completer",
        "flowfabric-execution-log",
        "flowfabric-frame-appender",
        "flowfabric-handler-0",
        "flowfabric-handler-1",
        "flowfabric-handler-2",
        "flowfabric-lease-keeper",
        "flowfabric-reporter",
    ]
    runtime.stop()
    worker.close()
    assert set(threads_named("flowfabric-")) <= others


def test_an_idle_worker_stops_at_once(served: Worker, start: Start) -> None:
    served.task(len)
    runtime = start(served)
    began = time.monotonic()
    runtime.stop()

    # A claim that waits would wait for 10 s.
    assert time.monotonic() - began < 5


def test_stopping_twice_or_before_the_start_does_nothing(worker: Worker) -> None:
    worker.task(len)
    runtime = Runtime(worker)
    runtime.stop()
    runtime.start()
    runtime.stop()
    runtime.stop()


def test_a_worker_that_is_stopped_while_it_starts_claims_nothing_later(served: Worker, start: Start) -> None:
    task = served.task(name="add")(lambda a: a + 1)
    for _ in range(20):
        start(served).stop()

    run = task.submit(1)

    assert threads_named("flowfabric-claimer") == []
    assert run.state() is PublicState.WAITING


def test_a_worker_without_tasks_does_not_start(worker: Worker) -> None:
    with pytest.raises(ValueError, match="has no tasks"):
        Runtime(worker).start()


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 0},
        {"threads": 1001},
        {"lanes": {"mail": 0}},
        {"lanes": {"mail": 1.5}},
        {"lanes": {"": 1}},
        {"lease": timedelta()},
        {"capabilities": "gpu"},
        {"capabilities": ["g p u"]},
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises((ValueError, ValidationError)):
        WorkerSettings(**settings)


def test_importing_creating_and_decorating_connect_to_nothing(tmp_path: Path) -> None:
    program = """
import os, socket, subprocess, threading
from flowfabric_worker import Runtime, Worker
worker = Worker("shop")
@worker.task(lane="mail")
def send(order: int) -> int:
    return order + 1
assert send(1) == 2
assert send.options(priority=2)
assert threading.active_count() == 1
assert os.listdir() == []
assert not any("socket" in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
               if os.path.exists(f"/proc/self/fd/{fd}"))
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True, timeout=60)


def test_close_ends_the_connections_and_the_next_use_opens_them_again(valkey: ValkeyServer, served: Worker) -> None:
    others = len(valkey.client().client_list())
    task = served.task(name="add")(lambda a: a + 1)
    run = task.submit(1)
    assert len(valkey.client().client_list()) > others

    served.close()
    served.close()

    wait_until(lambda: len(valkey.client().client_list()) <= others, "the connections are closed")
    assert task.run(run.id).state() is PublicState.WAITING


# Claiming


def test_idle_workers_wait_in_the_store_without_polling(valkey: ValkeyServer, another: Another, start: Start) -> None:
    workers = [another() for _ in range(8)]
    for worker in workers:
        worker.task(len)
        start(worker)
    wait_until(lambda: len(known_workers(workers[0])) == 8, "all have begun")

    before, cpu = calls_of(valkey), time.process_time()
    time.sleep(2)

    assert calls_of(valkey) - before < 10
    assert time.process_time() - cpu < 8 * 2 * 0.02


def test_submitted_work_starts_at_once(served: Worker, start: Start) -> None:
    task = served.task(name="when")(lambda: time.monotonic())
    start(served)
    task.submit().result(10)
    delays = []
    for _ in range(20):
        asked = time.monotonic()
        delays.append(task.submit().result(10) - asked)

    # A polling interval would show in all of them, a busy machine in some.
    assert sorted(delays)[10] < 0.2


def test_threads_that_become_free_get_work_at_once(served: Worker, start: Start) -> None:
    @served.task
    def slow() -> None:
        time.sleep(0.02)

    start(served, threads=2)

    def seconds_for_25_rounds() -> float:
        runs = slow.submit_many([()] * 50)
        runs[0].result(10)
        began = time.monotonic()
        for run in runs:
            run.result(10)
        return time.monotonic() - began

    # 25 rounds of 20 ms; a claim may add some ms to each. A busy machine delays some of them, and a pause every time.
    assert min(seconds_for_25_rounds() for _ in range(4)) < 25 * 0.04


def test_no_short_task_waits_behind_a_long_one(another: Another, start: Start) -> None:
    over = threading.Event()
    workers = [another(), another()]
    for worker in workers:
        worker.task(name="long")(lambda: over.wait(30))
        worker.task(name="short")(lambda: time.sleep(0.005))
    long, short = workers[0].tasks["long"].submit(), workers[0].tasks["short"].submit_many([()] * 100)
    for worker in workers:
        start(worker, threads=1)

    for run in short:
        run.result(20)
    assert long.state() is PublicState.ACTIVE
    over.set()
    assert long.result(10) is True


def test_claimed_work_that_no_thread_begins_is_handed_back(another: Another, start: Start) -> None:
    over = threading.Event()
    busy, other = another(), another()
    # The first 500 are quick, so that more is claimed than one thread can begin when a slow one comes.
    task = busy.task(name="step")(lambda number: number < 500 or over.wait(30))
    other.task(name="step")(lambda _: True)
    runs = task.submit_many((number,) for number in range(800))
    start(busy, threads=1)
    runs[499].result(20)
    start(other, threads=1)

    others = [run for run in runs if run is not runs[500]]
    wait_until(lambda: all(run.state() is PublicState.COMPLETED for run in others), "the others have ended")
    assert runs[500].state() is PublicState.ACTIVE
    over.set()
    assert runs[500].result(10) is True
    assert {(info_of(busy, run).retry_count, info_of(busy, run).reclaim_count) for run in runs} == {(0, 0)}


def test_lanes_take_turns_by_weight_and_none_starves(served: Worker, start: Start) -> None:
    order: list[str] = []

    def note() -> None:
        order.append(current().lane)
        time.sleep(0.005)

    for lane in ("mail", "etl"):
        served.task(name=lane, lane=lane)(note).submit_many([()] * 60)
    start(served, threads=1, lanes={"mail": 3, "etl": 1})
    wait_until(lambda: len(order) >= 60, "half of it is done")

    share = Counter(order[:60])
    assert share["mail"] > 1.5 * share["etl"]
    assert share["etl"] >= 8


def test_a_worker_takes_only_what_it_offers_the_capabilities_for(another: Another, start: Start) -> None:
    plain, able = another(), another()
    for worker in (plain, able):
        worker.task(name="render", requires=("gpu", "eu"))(lambda: current().id)
        worker.task(name="send")(lambda: current().id)
    run = plain.tasks["render"].submit()
    start(plain, capabilities={"gpu"})
    plain.tasks["send"].submit().result(10)
    explanation = plain.engine.explain_execution(run.id)

    assert run.state() is PublicState.WAITING
    assert explanation is not None
    assert explanation.code == "no_capable_worker"
    start(able, capabilities={"gpu", "eu", "big"})
    assert run.result(10) == str(run.id)


def test_workers_of_one_name_are_told_apart_and_marked_when_they_stop(served: Worker, start: Start) -> None:
    served.task(len)
    first, second = start(served), start(served)
    seen = known_workers(served)

    assert set(seen) == {first.instance_id, second.instance_id}
    assert {each.worker_id for each in seen.values()} == {"shop"}
    first.stop()
    alive = {instance: each.alive for instance, each in known_workers(served).items()}
    assert alive == {first.instance_id: False, second.instance_id: True}


def test_two_runtimes_share_the_work_and_double_none_of_it(another: Another, start: Start) -> None:
    counts: Counter[int] = Counter()
    workers = [another(), another()]
    for worker in workers:
        worker.task(name="count")(lambda number: counts.update([number]))
        start(worker, threads=4)
    runs = workers[0].tasks["count"].submit_many((number,) for number in range(2000))
    for run in runs:
        run.result(30)

    assert counts == Counter(range(2000))


# Garbage


class Big:
    def __init__(self) -> None:
        self.data = bytes(1_000_000)


def test_nothing_is_kept_of_failed_tasks(served: Worker, start: Start) -> None:
    locals_: list[weakref.ref[Big]] = []

    def fail(big: Big) -> None:
        raise ValueError(f"{len(big.data)} bytes")

    @served.task
    def failing() -> None:
        big = Big()
        locals_.append(weakref.ref(big))
        try:
            fail(big)
        except ValueError as error:
            kept = error
            raise LookupError("not found") from kept

    def fail_many(count: int) -> int:
        """Run failing tasks; return how much memory is in use when they are over."""
        locals_.clear()
        failing.submit_many([()] * count)
        wait_until(lambda: len(locals_) == count and not any(ref() for ref in locals_), "their locals are gone")
        return tracemalloc.get_traced_memory()[0]

    runtime = start(served)
    # Without the collector only what has no reference is freed: no cycle may hold the frames.
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        before = fail_many(200)
        after = fail_many(1000)
    finally:
        tracemalloc.stop()
        gc.enable()

    # The store is in this process, too, and keeps a record with a traceback of each: a few kB, where a local has a MB.
    assert after - before < 1000 * 20_000
    runtime.stop()


def test_the_context_of_a_handler_is_freed_without_the_collector(served: Worker, start: Start) -> None:
    contexts: list[weakref.ref[TaskContext]] = []

    @served.task
    def noting() -> None:
        contexts.append(weakref.ref(current()))

    runtime = start(served)
    gc.collect()
    gc.disable()
    try:
        noting.submit()
        wait_until(lambda: contexts and contexts[0]() is None, "its handler's context is gone")
    finally:
        gc.enable()
    runtime.stop()
