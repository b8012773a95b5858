"""Celery with Redis as broker and result backend, a pool of threads, and late acknowledgement."""

# /// script
# dependencies = ["celery[redis]", "hiredis"]
# [tool.benchmarks]
# share = 0.25
# ///

from __future__ import annotations

import sys
from typing import Any

import redis
from celery import Celery

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, VARIANT, TwoLanes, serve

app = Celery("benchmark", broker=URL, backend=URL)
# Without this a worker that dies loses what it runs: every peer that can promises at least once.
app.conf.task_acks_late = VARIANT != "early"

TASKS = {task.__name__: app.task(name=task.__name__)(task) for task in tasks.ALL}


class CeleryThreads(TwoLanes):
    """In bulk it has nothing better than a loop: a group of the same tasks takes longer to send."""

    packages = ("celery", "kombu", "redis", "hiredis")
    shares_out = False

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(URL)

    def submit(self, task: str, number: int) -> Any:
        return TASKS[task].delay(number)

    def result(self, receipt: Any) -> Any:
        return receipt.get(timeout=10)

    def unfinished(self) -> int:
        # A fetched message moves from the queue to "unacked", and leaves it after its result was stored.
        return self._redis.llen("celery") + self._redis.hlen("unacked")

    def worker_commands(self, processes: int) -> list[list[str]]:
        return [_worker_command("celery")] * processes

    def submit_elsewhere(self, number: int) -> Any:
        return TASKS["stamp"].apply_async((number,), queue="elsewhere")

    def elsewhere_commands(self) -> list[list[str]]:
        return [_worker_command("elsewhere")]


def _worker_command(queue: str) -> list[str]:
    app_of = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery"]
    return [*app_of, "worker", "-P", "threads", "-c", str(THREADS), "-Q", queue, "-n", f"{queue}@%h"]


if __name__ == "__main__":
    serve(CeleryThreads())
