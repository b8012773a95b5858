"""Submissions in bulk: however many there are, only a bounded part of them is under way at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.stores import call_windows
from flowfabric_worker.engine.stores.base import Call
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.submission import CreateExecutionArgs
from tests.support.engines import opened
from tests.support.executions import creation
from tests.support.proxy import Proxy
from tests.support.servers import ValkeyServer, wait_until

COUNT = 8_000
MEGABYTE = b"x" * 1_000_000
MEGABYTES = 30
SHORT = 0.5
# Seconds for each 64 KiB.
SLOW = 0.003


def test_many_calls_at_once_may_take_longer_than_one_call(server: ValkeyServer) -> None:
    with (
        contextlib.closing(Proxy(server.socket)) as proxy,
        opened(f"valkey://127.0.0.1:{proxy.port}?timeout={SHORT}", retry_for=0) as engine,
    ):
        engine.prepare()
        proxy.delay = SLOW
        began = time.monotonic()
        answers = engine.store.call_many([Call("server_time", 0, [MEGABYTE])] * MEGABYTES, SHORT)

        assert time.monotonic() - began > 2 * SHORT
        assert not [answer for answer in answers if isinstance(answer, EngineError)]


def test_a_submission_in_bulk_to_a_dead_store_is_given_up_as_one_call_is(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=SHORT) as engine:
        engine.prepare()
        server.kill()
        began = time.monotonic()
        results = engine.create_executions([creation()] * COUNT)

        assert time.monotonic() - began < 12 * SHORT
        assert {type(result) for result in results} == {TransportError}


@pytest.mark.parametrize("partitions", [1, 16])
@pytest.mark.parametrize("pool_size", [1, 2, 3])
def test_a_submission_in_bulk_may_read_from_a_small_pool_meanwhile(
    server: ValkeyServer, pool_size: int, partitions: int
) -> None:
    def submit(engine: Engine) -> int:
        calls = (creation(priority=len(engine.list_executions(limit=1).executions)) for _ in range(350))
        return sum(len(results) for results in engine.create_in_batches(calls))

    url = f"{server.url}?pool_size={pool_size}&partitions={partitions}"
    with opened(url) as engine, ThreadPoolExecutor(4) as threads:
        engine.prepare()
        assert sum(threads.map(submit, [engine] * 4)) == 4 * 350


@pytest.mark.parametrize("partitions", [1, 16])
def test_a_batch_is_created_while_the_next_one_is_encoded(server: ValkeyServer, partitions: int) -> None:
    with opened(f"{server.url}?partitions={partitions}") as engine, opened(server.url) as other:
        engine.prepare()
        # A batch has at most 100 executions for each partition.
        first = min(100 * partitions, 500)

        def calls() -> Iterator[CreateExecutionArgs]:
            yield from (creation() for _ in range(first))
            yield creation()
            wait_until(lambda: other.list_executions(limit=1).executions, "the server has the batch before")
            yield creation()

        assert sum(map(len, engine.create_in_batches(calls()))) == first + 2


def test_calls_that_wait_behind_a_silent_server_fail_with_the_first_one(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine:
        engine.prepare()
        calls = [Call("server_time", 0, [])] * 200
        pid = int(server.client().info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            answers = engine.store.call_many(calls, SHORT)
            assert time.monotonic() - began < 10 * SHORT
        finally:
            os.kill(pid, signal.SIGCONT)

    assert all(isinstance(answer, EngineError) and answer.code == "store_timeout" for answer in answers)


@pytest.mark.parametrize("sizes", [[1] * 100, [1_000_000] * 5, [10, 2_000_000, 10], []])
def test_a_bounded_part_of_many_calls_is_under_way(sizes: Sequence[int]) -> None:
    calls = [Call("f", 0, [b"x" * size, 7]) for size in sizes]

    cut = list(call_windows.windows(calls))
    assert [call for window in cut for call in window] == calls
    for window in cut:
        assert len(window) <= call_windows._WINDOW_CALLS
        size = sum(len(argument) for call in window for argument in call.arguments if not isinstance(argument, int))
        assert len(window) == 1 or size <= call_windows._WINDOW_BYTES


def test_one_call_that_cannot_be_sent_harms_no_other_window(server: ValkeyServer) -> None:
    with opened(server.url, retry_for=0) as engine:
        engine.prepare()
        assert isinstance(engine.store, ValkeyStore)
        calls = [Call("server_time", 0, [])] * 40
        calls[20] = Call("server_time", 0, [object()])  # type: ignore[list-item]
        answers = engine.store.call_many(calls)

    failed = {place for place, answer in enumerate(answers) if isinstance(answer, EngineError)}
    assert failed == set(range(16, 32))
