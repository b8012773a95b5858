"""PgQueuer with asyncpg: coroutines on one loop, and no results. It is here for its batched drain."""

# /// script
# dependencies = ["pgqueuer[asyncpg]", "psycopg[binary]"]
# [tool.benchmarks]
# server = "postgres"
# ///

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import asyncpg
import psycopg
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job

from benchmarks.peers import tasks
from benchmarks.peers.base import URL, Peer, serve

_BATCH = 1000


class PgQueuerPeer(Peer):
    """What stands for a result is the argument, once the job is gone."""

    packages = ("pgqueuer", "asyncpg")

    def __init__(self) -> None:
        self._session = psycopg.connect(URL, autocommit=True)
        self._loop = asyncio.new_event_loop()
        connection = self._loop.run_until_complete(asyncpg.connect(URL))
        self._queries = Queries(AsyncpgDriver(connection))
        if self._session.execute("SELECT to_regclass('pgqueuer')").fetchone() == (None,):
            self._loop.run_until_complete(self._queries.install())

    def submit(self, task: str, number: int) -> Any:
        (job,) = self._loop.run_until_complete(self._queries.enqueue(task, str(number).encode(), 0))
        return task, number, job

    def submit_many(self, count: int) -> Any:
        for first in range(0, count, _BATCH):
            numbers = range(first, min(first + _BATCH, count))
            payloads = [str(number).encode() for number in numbers]
            jobs = self._loop.run_until_complete(
                self._queries.enqueue(["noop"] * len(numbers), payloads, [0] * len(numbers))
            )
        return "noop", count - 1, jobs[-1]

    def result(self, receipt: Any) -> Any:
        task, number, job = receipt
        deadline = time.monotonic() + 10
        while self._session.execute("SELECT 1 FROM pgqueuer WHERE id = %s", (job,)).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job {job} is not done")
            time.sleep(0.001)
        if task == "noop":
            return number
        began = "SELECT extract(epoch FROM min(created)) FROM pgqueuer_log WHERE job_id = %s AND status = 'picked'"
        row = self._session.execute(began, (job,)).fetchone()
        return float(row[0]) if row and row[0] else time.time()

    def unfinished(self) -> int:
        row = self._session.execute("SELECT count(*) FROM pgqueuer").fetchone()
        return int(row[0]) if row else 0

    def worker_commands(self, processes: int) -> list[list[str]]:
        return [[sys.executable, "-m", "benchmarks.peers.pgqueuer", "worker"]] * processes


async def work() -> None:
    """Run a worker until it is told to stop."""
    manager = PgQueuer.from_asyncpg_connection(await asyncpg.connect(URL))
    for task in tasks.ALL:
        _register(manager, task)
    await manager.run(batch_size=_BATCH)


def _register(manager: PgQueuer, task: Any) -> None:
    async def run(job: Job) -> None:
        task(int(job.payload or b"0"))

    manager.entrypoint(task.__name__)(run)


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        asyncio.run(work())
    else:
        serve(PgQueuerPeer())
