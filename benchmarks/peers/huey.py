"""Huey with Redis, a consumer of threads, and results stored. It promises at most once, and has no other way.

SIGTERM is made the signal that lets running tasks finish: by default that is SIGINT, and SIGTERM loses them.
"""

# /// script
# dependencies = ["huey", "redis", "hiredis"]
# [tool.benchmarks]
# share = 0.5
# ///

from __future__ import annotations

import sys
from typing import Any

import redis
from huey import RedisHuey

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, Peer, serve

huey = RedisHuey("benchmark", url=URL)

TASKS = {task.__name__: huey.task()(task) for task in tasks.ALL}


class Huey(Peer):
    """In bulk it has nothing better than a loop: its `map` sends one message after the other."""

    packages = ("huey", "redis", "hiredis")

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(URL)
        self._stored_before = self._stored()
        self._submitted = 0

    def submit(self, task: str, number: int) -> Any:
        self._submitted += 1
        return TASKS[task](number)

    def result(self, receipt: Any) -> Any:
        return receipt.get(blocking=True, timeout=10)

    def unfinished(self) -> int:
        # Huey stores nothing about a running task, so the results are counted.
        return self._submitted - (self._stored() - self._stored_before)

    def _stored(self) -> int:
        return self._redis.hlen(huey.storage.result_key)

    def worker_commands(self, processes: int) -> list[list[str]]:
        consumer = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey.huey"]
        options = ["--workers", str(THREADS), "--worker-type", "thread", "--graceful-signal", "TERM", "--quiet"]
        return [[*consumer, *options]] * processes


if __name__ == "__main__":
    serve(Huey())
