"""The command `workers`."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.cli import ok, serving

pytestmark = pytest.mark.usefixtures("url")


def test_workers_lists_alive_and_stopped_workers(url: str) -> None:
    with serving(url):
        alive = ok("workers").out.splitlines()[1].split()
        (document,) = ok("workers", "--json").documents
    gone = ok("workers").out.splitlines()[1].split()

    assert alive[0] == gone[0] == document["worker_instance_id"]
    assert (alive[1], gone[1]) == ("alive", "stopped")
    assert (document["alive"], document["threads"]) == (True, 2)
    assert document["lanes"] == ["naps", "streams", "sums", "waits"]


def test_workers_shows_why_and_when_a_worker_ended(client: Client) -> None:
    for name in ("stopped-itself", "went-silent"):
        short = timedelta(milliseconds=1)
        client.engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id=name, alive_for=short))
    client.engine.mark_worker_dead("stopped-itself", "stopped")

    _, stopped, silent = ok("workers").out.splitlines()

    assert re.search(r"stopped-itself +stopped \ds ago", stopped)
    assert re.search(r"went-silent +lost: silent for \ds", silent)
