"""Many waiting callers cost little, and a slow call delays no other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings
from tests.support.counting_worker import THREADS
from tests.support.engines import connections_to
from tests.support.servers import ValkeyServer, wait_until
from tests.support.site import Site

WAITING = 2000
GETTERS = 64
GETS = 100
LONG_SECONDS = 8.0
SHORT = 50
SILENT_SECONDS = 5


@pytest.fixture
def doer(server: ValkeyServer) -> Iterator[Worker]:
    """Provide a worker that does what others wait for, once it is started."""
    worker = Worker("doer", server.url)
    worker.task(name="echo")(echo)
    yield worker
    worker.close()


def echo(number: int) -> int:
    return number


def waiter_on(server: ValkeyServer, pool_size: int) -> Worker:
    """Return a worker that does nothing but wait, with so many connections for its calls."""
    worker = Worker("waiter", f"{server.url}?pool_size={pool_size}")
    worker.task(name="echo")(echo)
    worker.engine.prepare()
    return worker


def calls(server: ValkeyServer) -> int:
    """Return how many stored functions a server was asked to run, and how often whether it lives."""
    statistics = server.client().info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("fcall", "ping"))


def is_quiet(server: ValkeyServer) -> bool:
    """Return True if a server is asked nearly nothing for half a second."""
    before = calls(server)
    time.sleep(0.5)
    return calls(server) - before < 10


@contextmanager
def doing(doer: Worker) -> Iterator[None]:
    """Provide the worker runs for the length of a block."""
    runtime = Runtime(doer, WorkerSettings(threads=THREADS))
    runtime.start()
    try:
        yield
    finally:
        runtime.stop()


def test_2000_waiters_share_two_connections_and_do_not_poll(server: ValkeyServer, doer: Worker) -> None:
    with closing(waiter_on(server, pool_size=1)) as waiter:
        runs = waiter.tasks["echo"].submit_many((number,) for number in range(WAITING))
        asked = calls(server)
        with ThreadPoolExecutor(WAITING) as pool:
            results = [pool.submit(run.result, 110) for run in runs]
            # Each has looked once, and then asked to be told.
            wait_until(lambda: calls(server) >= asked + 2 * WAITING and is_quiet(server), "every caller waits", 80)
            before, since = calls(server), time.monotonic()
            time.sleep(SILENT_SECONDS)
            spent = calls(server) - before

            # Once in ten seconds the waiter looks at all of them, 100 in a call; nothing else asks.
            assert spent <= WAITING / 100 + 5 * (time.monotonic() - since)
            assert connections_to(server) == 2
            assert not any(result.done() for result in results)
            with doing(doer):
                assert [result.result(60) for result in results] == list(range(WAITING))


def test_many_threads_that_get_results_share_the_connections_of_their_pool(server: ValkeyServer, doer: Worker) -> None:
    with closing(waiter_on(server, pool_size=8)) as waiter:
        runs = waiter.tasks["echo"].submit_many((number,) for number in range(GETTERS * GETS))

        def get(first: int) -> list[int]:
            return [run.result(60) for run in runs[first::GETTERS]]

        with ThreadPoolExecutor(GETTERS) as pool, doing(doer):
            got = [pool.submit(get, first) for first in range(GETTERS)]
            results = [each.result() for each in got]

        assert results == [list(range(first, GETTERS * GETS, GETTERS)) for first in range(GETTERS)]


def test_short_work_is_done_beside_long_work_by_two_workers(served_site: Site) -> None:
    served_site.start_two(30.0)
    # All threads but two have something long to do, and nothing may be kept in line behind it.
    long = served_site.tasks.last.submit_many((number, LONG_SECONDS) for number in range(2 * THREADS - 2))
    wait_until(lambda: served_site.begun().total() == len(long), "the long ones have begun")
    short = served_site.tasks.count.submit_many((number,) for number in range(len(long), len(long) + SHORT))

    served_site.wait_for(short, LONG_SECONDS, first=len(long))
    assert not served_site.counted("end").keys() & set(range(len(long)))
    served_site.wait_for(long, 2 * LONG_SECONDS)
    assert served_site.begun() == Counter(range(len(long) + SHORT))
