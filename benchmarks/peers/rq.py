"""RQ with its own worker, which forks for every job, and has no threads: eight of them in a pool stand for one process.

Its SimpleWorker does not fork and is faster, but its manual has it for tests: there a job can end the worker.
"""

# /// script
# dependencies = ["rq", "hiredis"]
# [tool.benchmarks]
# share = 0.05
# ///

from __future__ import annotations

import sys
from typing import Any

import redis
from rq import Queue, Retry

from benchmarks.peers.base import THREADS, URL, Peer, serve

_TASKS = "benchmarks.peers.tasks"
# Without a retry left, a job whose worker died is not run again but declared failed.
_RETRY = Retry(max=3)


class Rq(Peer):
    packages = ("rq", "redis", "hiredis")
    shares_out = False
    apart = 0.1

    def __init__(self) -> None:
        self._redis = redis.Redis.from_url(URL)
        self._queue = Queue(connection=self._redis)

    def submit(self, task: str, number: int) -> Any:
        return self._queue.enqueue(f"{_TASKS}.{task}", args=(number,), retry=_RETRY)

    def submit_many(self, count: int) -> Any:
        jobs = (Queue.prepare_data(f"{_TASKS}.noop", args=(number,), retry=_RETRY) for number in range(count))
        return self._queue.enqueue_many(jobs)[-1]

    def result(self, receipt: Any) -> Any:
        return receipt.latest_result(timeout=10).return_value

    def unfinished(self) -> int:
        # A job moves from the queue by the intermediate list to the started ones, and leaves them with its result.
        lists = ("rq:queue:default", "rq:queue:default:intermediate")
        return sum(self._redis.llen(name) for name in lists) + self._redis.zcard("rq:wip:default")

    def worker_commands(self, processes: int) -> list[list[str]]:
        pool = [sys.executable, "-m", "rq.cli", "worker-pool", "--url", URL, "--quiet"]
        return [[*pool, "--num-workers", str(THREADS)]] * processes


if __name__ == "__main__":
    serve(Rq())
