"""Time, waking and removal: timers under load, herds of them, idle fleets, and what waiting costs the server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from typing import Final
from uuid import uuid4

import redis

from benchmarks.comparison import Tell
from benchmarks.report import Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker.engine.class_cache import lane_arguments
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs
from tests.support.servers import ValkeyCluster

LOAD_SECONDS: Final = 15.0
HERD: Final = 100_000
_SECOND: Final = timedelta(seconds=1)
_SHORT: Final = ExecutionPolicy(retention=_SECOND)
_DELAY: Final = timedelta(seconds=0.5)


def table(tell: Tell) -> Table:
    """Measure each on a server of its own."""
    rows: list[list[str]] = []
    for what, measure in (
        ("Removal under full load with a retention of 1 s", _removal),
        (f"A herd of {HERD:,} delays that are due at one moment", _herd),
        ("A delay of 0.5 s with two idle workers, one given work", _watch),
        ("100 submissions to four idle processes", _shares),
        ("100 waiters of 1,000 classes, one submission of 100", _waiters),
        ("A cluster of 16 partitions, 8 idle workers, one submission", _cluster),
    ):
        tell(what)
        rows += measure()
    headings = ["what", "measured", "at most", "reached"]
    return Table(title="Time, waking and removal", headings=headings, rows=rows)


def _row(what: str, value: float, most: float | None, unit: str) -> list[str]:
    if most is None:
        return [what, f"{number(value)}{unit}", "", ""]
    return [what, f"{number(value)}{unit}", f"{number(most)}{unit}", verdict([value <= most])]


# Work


def _request(lane: str, *, limit: int = 1, wait: timedelta | None = None, worker: str = "w") -> ClaimRequest:
    policy = ClaimPolicy(worker_id=worker, worker_instance_id=worker, lease=timedelta(seconds=30), max_wait=wait)
    return ClaimRequest(lanes=(LaneRequest(lane=lane),), policy=policy, limit=limit)


def _submit(engine: Engine, lane: str, delay: timedelta | None = None) -> ExecutionId:
    created = engine.create_execution(CreateExecutionArgs(lane=lane, task="noop", payload=b"1", delay=delay))
    assert isinstance(created, Created)
    return created.execution_id


def _submit_many(engine: Engine, lane: str, count: int, **options: object) -> None:
    args = [CreateExecutionArgs(lane=lane, task="noop", payload=b"1", **options) for _ in range(count)]  # type: ignore[arg-type]
    for first in range(0, count, MAX_BATCH_ITEMS):
        for result in engine.create_executions(args[first : first + MAX_BATCH_ITEMS]):
            if isinstance(result, EngineError):
                raise result


def _complete(engine: Engine, claimed: list[Claimed]) -> None:
    for result in engine.complete_many([Completion(handle=each.handle) for each in claimed]):
        if isinstance(result, EngineError):
            raise result


def _lateness_ms(engine: Engine, execution_id: ExecutionId) -> float:
    """Return how long after its moment a delayed execution was handed out, by the store's clock."""
    info = engine.read_execution_info(execution_id)
    assert info is not None
    assert info.started_at_ms is not None
    return info.started_at_ms - info.created_at_ms - _DELAY / timedelta(milliseconds=1)


@contextlib.contextmanager
def _serving(engine: Engine, lane: str, worker: str) -> Iterator[list[ExecutionId]]:
    """Provide a thread that claims what comes in a lane and completes it; what it got."""
    got: list[ExecutionId] = []
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            claimed = engine.claim_many(_request(lane, wait=timedelta(seconds=5), worker=worker))
            _complete(engine, claimed)
            got.extend(each.execution_id for each in claimed)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield got
    finally:
        stopping.set()
        engine.stop_waiting(worker)
        thread.join(10)


def _wait_for(condition: Callable[[], bool], within: float) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing came within {within} s")
        time.sleep(0.005)


# Removal and herds


def _load(url: str, seconds: float) -> int:
    """Create, claims and complete at full speed in a process of its own; how much."""
    engine = open_engine(url)
    ended = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _submit_many(engine, "load", MAX_BATCH_ITEMS, policy=_SHORT)
        claimed = engine.claim_many(_request("load", limit=MAX_BATCH_ITEMS, worker="load"))
        _complete(engine, claimed)
        ended += len(claimed)
    engine.close()
    return ended


def _drain(url: str, count: int) -> float:
    """Drain the herd in a process of its own; how many seconds that took since its first execution."""
    engine = open_engine(url)
    done, began = 0, 0.0
    while done < count:
        claimed = engine.claim_many(_request("herd", limit=MAX_BATCH_ITEMS, wait=timedelta(seconds=60), worker="drain"))
        began = began or time.monotonic()
        _complete(engine, claimed)
        done += len(claimed)
    engine.close()
    return time.monotonic() - began


def _removal() -> list[list[str]]:
    with Server() as server, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        engine, other = open_engine(server.url), open_engine(server.url)
        engine.prepare()
        client = redis.Redis.from_url(server.url)
        load = processes.submit(_load, server.url, LOAD_SECONDS)
        late, most = [], 0
        with _serving(other, "timer", "timer") as got:
            while not load.done():
                execution_id = _submit(engine, "timer", _DELAY)
                _wait_for(lambda sought=execution_id: sought in got, 30)  # type: ignore[misc]
                late.append(_lateness_ms(engine, execution_id))
                overdue = client.zcount("ff:{fp:0}:retention", "-inf", engine.server_time() - 1000)
                most = max(most, overdue)
        ended = load.result()
        other.close()
        engine.close()
    return [
        _row("full load, retention 1 s: ends per s", ended / LOAD_SECONDS, None, ""),
        _row("most records overdue by more than 1 s", most, ended / LOAD_SECONDS, ""),
        _row("a delay of 0.5 s meanwhile: worst start after its time", max(late), 50, " ms"),
    ]


def _herd() -> list[list[str]]:
    with Server() as server, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        engine, other = open_engine(server.url), open_engine(server.url)
        engine.prepare()
        moment = datetime.now(UTC) + timedelta(seconds=12)
        _submit_many(engine, "herd", HERD, delay_until=moment)
        drained = processes.submit(_drain, server.url, HERD)
        late = []
        with _serving(other, "timer", "timer") as got:
            time.sleep(max(0.0, (moment - datetime.now(UTC)).total_seconds() - 0.3))
            while not drained.done():
                execution_id = _submit(engine, "timer", _DELAY)
                _wait_for(lambda sought=execution_id: sought in got, 60)  # type: ignore[misc]
                late.append(_lateness_ms(engine, execution_id))
        other.close()
        engine.close()
    return [
        _row(f"{HERD:,} delays due at one moment: until all of them were run", drained.result(), None, " s"),
        _row("a delay of 0.5 s of another lane meanwhile: worst start after its time", max(late), 50, " ms"),
    ]


# Waking


def _watch() -> list[list[str]]:
    with Server() as server:
        engines = [open_engine(server.url) for _ in range(3)]
        engines[0].prepare()
        late = []
        with _serving(engines[1], "work", "one") as first, _serving(engines[2], "work", "two") as second:
            for _ in range(20):
                execution_id = _submit(engines[0], "work", _DELAY)
                time.sleep(0.1)
                for _ in range(3):
                    _submit(engines[0], "work")
                    time.sleep(0.05)
                _wait_for(lambda sought=execution_id: sought in [*first, *second], 15)  # type: ignore[misc]
                late.append(_lateness_ms(engines[0], execution_id))
        for engine in engines:
            engine.close()
    return [_row("two idle workers, one given work: worst start of a 0.5 s delay after its time", max(late), 50, " ms")]


def _serve(url: str, seconds: float) -> int:
    """Return an idle process with eight free threads; how much it got."""
    engine = open_engine(url)
    worker = uuid4().hex
    got = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        claimed = engine.claim_many(_request("work", limit=8, wait=timedelta(seconds=0.5), worker=worker))
        _complete(engine, claimed)
        got += len(claimed)
    engine.close()
    return got


def _shares() -> list[list[str]]:
    with Server() as server, ProcessPoolExecutor(4, mp_context=get_context("spawn")) as processes:
        engine = open_engine(server.url)
        engine.prepare()
        shares = [processes.submit(_serve, server.url, 12.0) for _ in range(4)]
        client = redis.Redis.from_url(server.url)
        _wait_for(lambda: client.hlen("ff:{fp:0}:waiters") == 4, 10)
        for _ in range(100):
            _submit(engine, "work")
            time.sleep(0.02)
        got = sorted(each.result() for each in shares)
        engine.close()
    return [["four idle processes, 100 submissions: their shares", ", ".join(map(str, got)), "", ""]]


def _waiters() -> list[list[str]]:
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        tasks = [f"task-{number}" for number in range(1000)]
        _create_tasks(engine, tasks)
        while claimed := engine.claim_many(_request("work", limit=MAX_BATCH_ITEMS)):
            _complete(engine, claimed)
        matching = engine.matching_lanes(0, _request("work"))
        waiters = [engine.waiter() for _ in range(100)]
        for waiter in waiters:
            waiter.wait(0)
            head = [str(uuid4()), b"", b"", waiter.name, 1000, 60_000, 0, matching.set_name, "1"]
            engine.store.call("claim_many", 0, [*head, *lane_arguments(matching.lanes)])
        server.reset()
        _create_tasks(engine, tasks[::10])
        spent = server.function_microseconds() / 1000
        engine.close()
    return [_row("100 waiters, 1,000 classes: one submission of 100, in the server", spent, 20, " ms")]


def _create_tasks(engine: Engine, tasks: list[str]) -> None:
    for first in range(0, len(tasks), MAX_BATCH_ITEMS):
        args = [CreateExecutionArgs(lane="work", task=task) for task in tasks[first : first + MAX_BATCH_ITEMS]]
        engine.create_executions(args)


def _cluster() -> list[list[str]]:
    cluster = ValkeyCluster()
    url = f"valkey+cluster://127.0.0.1:{cluster.nodes[0].port}"
    try:
        engines = [open_engine(url) for _ in range(9)]
        engines[0].prepare()
        with contextlib.ExitStack() as stack:
            for number_of, engine in enumerate(engines[1:]):
                stack.enter_context(_serving_many(engine, f"w{number_of}"))
            for _ in range(64):
                _submit(engines[0], "work")
            time.sleep(3)
            before = engines[0].store.info().calls
            for _ in range(5):
                _submit(engines[0], "work")
                time.sleep(0.3)
            calls = (engines[0].store.info().calls - before) / 5
        for engine in engines:
            engine.close()
    finally:
        for node in cluster.nodes:
            node.stop()
    return [_row("cluster of 16 partitions, 8 idle workers: calls for one submission", calls, 20, "")]


@contextlib.contextmanager
def _serving_many(engine: Engine, worker: str) -> Iterator[None]:
    """Provide a thread with eight free places that claims what comes, and completes it."""
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            request = _request("work", limit=8, wait=timedelta(seconds=60), worker=worker)
            _complete(engine, engine.claim_many(request))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        engine.stop_waiting(worker)
        thread.join(10)
