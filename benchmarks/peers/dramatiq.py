"""Dramatiq with its Redis broker and results, as its manual sets them up. It acknowledges late by itself."""

# /// script
# dependencies = ["dramatiq[redis]", "hiredis"]
# [tool.benchmarks]
# share = 0.5
# ///

from __future__ import annotations

import sys
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import tasks
from benchmarks.peers.base import THREADS, URL, TwoLanes, serve

_COMMAND = (sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq")

broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True))
dramatiq.set_broker(broker)


TASKS = {task.__name__: dramatiq.actor(task) for task in tasks.ALL}

elsewhere = dramatiq.actor(tasks.stamp, actor_name="elsewhere", queue_name="elsewhere")


class Dramatiq(TwoLanes):
    """In bulk it has nothing better than a loop: its groups and pipelines send one message after the other."""

    packages = ("dramatiq", "redis", "hiredis")

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(URL)

    def submit(self, task: str, number: int) -> Any:
        return TASKS[task].send(number)

    def result(self, receipt: Any) -> Any:
        return receipt.get_result(block=True, timeout=10_000)

    def unfinished(self) -> int:
        # A message stays in this hash until it is acknowledged, which follows on storing its result.
        return self._redis.hlen("dramatiq:default.msgs")

    def worker_commands(self, processes: int) -> list[list[str]]:
        options = ["--processes", str(processes), "--threads", str(THREADS)]
        return [[*_COMMAND, *options, "--queues", "default"]]

    def submit_elsewhere(self, number: int) -> Any:
        return elsewhere.send(number)

    def elsewhere_commands(self) -> list[list[str]]:
        return [[*_COMMAND, "--processes", "1", "--threads", str(THREADS), "--queues", "elsewhere"]]


if __name__ == "__main__":
    serve(Dramatiq())
