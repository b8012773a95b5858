"""Procrastinate with its Psycopg connectors. It runs plain functions in threads, and keeps no results."""

# /// script
# dependencies = ["procrastinate", "psycopg[binary]"]
# [tool.benchmarks]
# share = 0.1
# server = "postgres"
# ///

from __future__ import annotations

import sys
import time
from typing import Any

import procrastinate
import psycopg

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, Peer, serve

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=URL))
TASKS = {task.__name__: app.task(name=task.__name__)(task) for task in tasks.ALL}


class Procrastinate(Peer):
    """What stands for a result: when the job began, as its event says, or its argument."""

    packages = ("procrastinate", "psycopg")

    def __init__(self) -> None:
        self._session = psycopg.connect(URL, autocommit=True)
        app.open()
        if self._one("SELECT to_regclass('procrastinate_jobs')") is None:
            app.schema_manager.apply_schema()

    def _one(self, query: str, *values: object) -> Any:
        row = self._session.execute(query, values).fetchone()
        return row and row[0]

    def submit(self, task: str, number: int) -> Any:
        return task, number, app.configure_task(task).defer(**{_argument(task): number})

    def submit_many(self, count: int) -> Any:
        ids = app.configure_task("noop").batch_defer(*({"number": number} for number in range(count)))
        return "noop", count - 1, ids[-1]

    def result(self, receipt: Any) -> Any:
        task, number, job = receipt
        deadline = time.monotonic() + 10
        while self._one("SELECT status FROM procrastinate_jobs WHERE id = %s", job) != "succeeded":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job {job} is not done")
            time.sleep(0.001)
        if task == "noop":
            return number
        began = "SELECT extract(epoch FROM at) FROM procrastinate_events WHERE job_id = %s AND type = 'started'"
        return float(self._one(began, job))

    def unfinished(self) -> int:
        return int(self._one("SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"))

    def worker_commands(self, processes: int) -> list[list[str]]:
        app_of = ["--app", "benchmarks.peers.procrastinate.app"]
        command = [sys.executable, "-m", "procrastinate", *app_of, "worker", "--concurrency", str(THREADS)]
        return [command] * processes


def _argument(task: str) -> str:
    """Return what a task calls its argument."""
    return "_number" if task == "stamp" else "number"


if __name__ == "__main__":
    serve(Procrastinate())
