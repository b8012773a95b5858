"""Fixtures of the tests of the SDK: a worker on a separate store, and runtimes that stop when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import uuid4

import pytest

from flowfabric_worker import Runtime, Worker, WorkerSettings
from tests.support.mailbox import Mailbox
from tests.support.places import Place
from tests.support.servers import ValkeyServer

Start: TypeAlias = Callable[..., Runtime]
Another: TypeAlias = Callable[..., Worker]
RunAll: TypeAlias = Callable[[Worker, Start], None]


@pytest.fixture
def worker() -> Iterator[Worker]:
    """Provide a worker on a fresh store in this process, prepared for tests."""
    worker = Worker("shop", f"memory://{uuid4().hex}")
    worker.engine.prepare(testing=True)
    yield worker
    worker.close()


@pytest.fixture
def served_url(server_url: str | None, valkey: ValkeyServer) -> str:
    """Provide the URL of a store of this test's own on a real server."""
    return server_url or f"{valkey.url}?prefix=t{uuid4().hex[:12]}"


@pytest.fixture
def another(served_url: str) -> Iterator[Another]:
    """Make workers on one store on a real server, each with connections of its own, as processes have them.

    Each has the middleware that it is given.
    """
    made: list[Worker] = []

    def make(*middleware: Any) -> Worker:
        made.append(Worker("shop", served_url, middleware=middleware))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def served(another: Another) -> Worker:
    """Provide a worker on a store on a real server."""
    return another()


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start runtimes, two threads each unless the test says otherwise; they are stopped when it ends."""
    for name in ("worker", "another"):
        if name in request.fixturenames:
            # Set up before, so that it is torn down after: workers are closed when their runtimes have stopped.
            request.getfixturevalue(name)
    started: list[Runtime] = []

    def start(worker: Worker, **settings: Any) -> Runtime:
        runtime = Runtime(worker, WorkerSettings(**{"threads": 2, **settings}))
        started.append(runtime)
        runtime.start()
        return runtime

    yield start
    for runtime in started:
        runtime.stop(timedelta())


@pytest.fixture(params=["eager", "memory", "server"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Provide each of the places where tasks run: in the call, in a runtime on memory, in a runtime on a server."""
    worker: Worker = request.getfixturevalue("served" if request.param == "server" else "worker")
    with ExitStack() as stack:
        if request.param == "eager":
            stack.enter_context(worker.eager())

        def start() -> None:
            """Start one thread, so that the order of runs is known; call it when the tasks are there."""
            if request.param != "eager":
                runtime = Runtime(worker, WorkerSettings(threads=1))
                stack.callback(runtime.stop, timedelta())
                runtime.start()

        yield Place(worker, start)


@pytest.fixture(params=["memory", "server"])
def either(request: pytest.FixtureRequest) -> Worker:
    """Provide a worker on a store in this process, and one on a store on a real server."""
    worker: Worker = request.getfixturevalue("served" if request.param == "server" else "worker")
    return worker


@pytest.fixture
def mailbox(either: Worker) -> Mailbox:
    """Provide where the handlers of the fixture `either` hand out tokens."""
    return Mailbox(either)


@pytest.fixture
def times() -> Iterator[int]:
    """Count the runs of a handler that asks for the next number."""
    return iter(range(1, 1000))


def run_here(worker: Worker, start: Start) -> None:
    """Run everything in this thread."""
    worker.run_until_idle()


def run_in_threads(worker: Worker, start: Start) -> None:
    """Run everything as production does."""
    start(worker)


each_way = pytest.mark.parametrize("run_all", [run_here, run_in_threads])
