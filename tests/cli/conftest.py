"""The store that the commands of a test find in their environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from flowfabric_worker.client import Client
from tests.support.cli import APP, Process
from tests.support.cli_app import worker


@pytest.fixture
def url(server_url: str | None, embedded_directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Provide the URL of an empty store, which is also $FLOWFABRIC_URL."""
    url = server_url or f"embedded://{embedded_directory}?prefix=t{uuid4().hex[:12]}"
    monkeypatch.setenv("FLOWFABRIC_URL", url)
    return url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        client.engine.publish_tasks([task.publication() for task in worker.tasks.values()])
        yield client


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start commands as processes; they are killed when the test ends."""
    started: list[Process] = []

    def start(*arguments: object) -> Process:
        log = tmp_path / f"{len(started)}.log"
        process = Process(*arguments, log=log, environment={"FLOWFABRIC_URL": url})
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


@pytest.fixture
def start_worker(start: Callable[..., Process]) -> Callable[..., Process]:
    """Start `run` with the application, and return when it takes work."""

    def start_worker(*options: object) -> Process:
        process = start("run", APP, *options)
        process.await_log("takes work")
        return process

    return start_worker
