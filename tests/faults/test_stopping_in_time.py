"""A stop has one deadline, also if the store hangs, is gone, or never existed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowfabric_worker.engine.types.states import PublicState
from tests.support import poisoned_app
from tests.support.cli import Process
from tests.support.crew import Crew, opened_crew
from tests.support.proxy import Proxy
from tests.support.servers import ValkeyServer, wait_until

GRACE = 2.0
# A stop may take this much longer than its grace, in seconds.
BEYOND = 5.0


@pytest.fixture
def proxy(server: ValkeyServer) -> Iterator[Proxy]:
    proxy = Proxy(server.socket)
    yield proxy
    proxy.close()


@pytest.fixture
def crew(server: ValkeyServer, tmp_path: Path) -> Iterator[Crew]:
    with opened_crew(server.url, tmp_path) as crew:
        yield crew


def launched(crew: Crew, proxy: Proxy, processes: int, grace: str = f"{GRACE:.0f}s") -> Process:
    """Return a worker behind the proxy, in one process or under a supervisor."""
    options = ("--url", f"valkey://127.0.0.1:{proxy.port}", "--grace", grace)
    if processes:
        return crew.launch(*options, processes=processes, lease="60s")
    process = Process(
        "run", "tests.support.poisoned_app:worker", "--lease", "60s", *options,
        log=crew.folder / "single.log",
        environment={poisoned_app.JOURNAL_VARIABLE: str(crew.journal)},
    )  # fmt: skip
    crew.started.append(process)
    return process


def hang(proxy: Proxy) -> None:
    proxy.swallow()


def vanish(proxy: Proxy) -> None:
    proxy.close()


each_way = pytest.mark.parametrize("harm", [hang, vanish])
each_shape = pytest.mark.parametrize("processes", [0, 1], ids=["alone", "supervised"])


@each_way
@each_shape
def test_a_stop_ends_in_time_although_the_store_does_not_answer(
    crew: Crew, proxy: Proxy, processes: int, harm: Callable[[Proxy], None]
) -> None:
    worker = launched(crew, proxy, processes)
    ends, goes_on = poisoned_app.last.submit_many([(1, 1.5), (2, 60.0)])
    wait_until(lambda: crew.pids("begin", 1) and crew.pids("begin", 2), "both have begun")
    harm(proxy)
    began = time.monotonic()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert time.monotonic() - began < GRACE + BEYOND
    # It says no more than what the store has acknowledged, which was nothing.
    assert "stopped; it handed back 0, of which 0 had begun." in worker.log
    assert "The store has not acknowledged 1 outcome and the release of 1 execution;" in worker.log
    assert {ends.state(), goes_on.state()} == {PublicState.ACTIVE}


@each_shape
def test_a_second_signal_is_heard_while_the_store_hangs(crew: Crew, proxy: Proxy, processes: int) -> None:
    worker = launched(crew, proxy, processes, grace="60s")
    poisoned_app.last.submit(1, 60.0)
    wait_until(lambda: crew.pids("begin", 1), "it has begun")
    proxy.swallow()
    worker.signal(signal.SIGTERM)
    time.sleep(0.5)
    began = time.monotonic()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert time.monotonic() - began < BEYOND


@each_shape
def test_a_worker_whose_store_hangs_from_the_start_stops_at_once(crew: Crew, proxy: Proxy, processes: int) -> None:
    proxy.swallow()
    worker = launched(crew, proxy, processes)
    wait_until(lambda: proxy.connections, "the worker tries to reach the store")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)

    assert worker.wait() == 0
    assert time.monotonic() - began < GRACE + BEYOND
