"""DBOS with workflows in a queue. A worker runs eight of them at a time in threads, and polls the queue."""

# /// script
# dependencies = ["dbos", "psycopg[binary]"]
# [tool.benchmarks]
# share = 0.25
# server = "postgres"
# ///

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import psycopg
from dbos import DBOS, DBOSClient

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, Peer, serve

_QUEUE = "benchmark"


class Dbos(Peer):
    """A worker takes all that is queued at a poll, which is faster than a limit per worker."""

    packages = ("dbos", "psycopg")
    # A worker polls once a second.
    apart = 0.05

    def __init__(self) -> None:
        self._url = URL.replace("postgresql://", "postgresql+psycopg://")
        DBOS(config={"name": "benchmark", "system_database_url": self._url, "run_admin_server": False})
        DBOS.launch()
        DBOS.destroy()
        self._client = DBOSClient(system_database_url=self._url)
        self._session = psycopg.connect(URL, autocommit=True)

    def submit(self, task: str, number: int) -> Any:
        return self._client.enqueue({"workflow_name": task, "queue_name": _QUEUE}, number)

    def result(self, receipt: Any) -> Any:
        return receipt.get_result()

    def unfinished(self) -> int:
        row = self._session.execute(
            "SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')"
        ).fetchone()
        return int(row[0]) if row else 0

    def worker_commands(self, processes: int) -> list[list[str]]:
        return [[sys.executable, "-m", "benchmarks.peers.dbos", "worker"]] * processes


def work() -> None:
    """Run a worker until it is told to stop."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    url = URL.replace("postgresql://", "postgresql+psycopg://")
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": url,
            "run_admin_server": False,
            "max_executor_threads": THREADS,
        }
    )
    for task in tasks.ALL:
        DBOS.workflow(name=task.__name__)(task)
    DBOS.launch()
    DBOS.register_queue(_QUEUE)
    stop.wait()
    DBOS.destroy()


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        work()
    else:
        serve(Dbos())
