"""Slots of a quota, when the worker that holds them is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.claiming import Claimed
from tests.support.executions import request
from tests.support.quotas import limited, placed, queued, running_now
from tests.support.servers import wait_until

LEASE = 1.0
HOLDER = """
import sys, time
from datetime import timedelta
from flowfabric_worker.engine.engine import open_engine
from tests.support.executions import claim_one

engine = open_engine(sys.argv[1])
held = claim_one(engine, worker="killed", lease=timedelta(seconds=float(sys.argv[2])))
print("held", flush=True)
while True:
    time.sleep(0.2)
    engine.renew(held.handle)
"""


@pytest.fixture(params=["valkey", "elsewhere", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Provide the URL of an empty store on each kind of server; with five partitions, the executions are elsewhere."""
    server = request.getfixturevalue("postgres" if request.param == "postgres" else "valkey")
    with placed(request.param):
        if request.param == "postgres":
            server.empty_schema("ff")
            yield f"{server.url}&schema=ff"
        else:
            yield f"{server.url}?prefix=t{uuid4().hex[:12]}&partitions={5 if request.param == 'elsewhere' else 1}"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    engine.prepare()
    yield engine
    engine.close()


def test_the_slot_of_a_killed_worker_goes_to_the_next_after_its_lease(engine: Engine, url: str) -> None:
    limited(engine, max_concurrent=1)
    first, _ = queued(engine, 2)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, url, str(LEASE)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        time.sleep(LEASE)
        assert engine.claim_many(request()) == []
    finally:
        holder.kill()
        holder.wait()
    killed = time.monotonic()

    def claimed() -> list[Claimed]:
        return engine.claim_many(request())

    (again,) = wait_until(claimed, "the slot is free")
    assert time.monotonic() - killed < LEASE + 1
    assert (again.execution_id, running_now(engine)) == (first, 1)
    assert engine.claim_many(request()) == []
