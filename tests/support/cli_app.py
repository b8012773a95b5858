"""The application that the tests of the command line run."""

from __future__ import annotations

import time
from datetime import timedelta

from flowfabric_worker import Fail, RetryPolicy, Worker, current

worker = Worker("application")
without_tasks = Worker("idle")
number = 7


@worker.task(name="add", lane="sums")
def add(left: int, right: int = 0) -> int:
    return left + right


@worker.task(name="refuse", lane="sums")
def refuse(why: str) -> None:
    raise Fail(why, detail="more of it")


@worker.task(name="stumble", lane="sums", retry=RetryPolicy(max_retries=3, initial=timedelta(milliseconds=10)))
def stumble() -> str:
    if current().retry_count == 0:
        raise ValueError("stumbled")
    return "went on"


@worker.task(name="nap", lane="naps")
def nap(seconds: float) -> str:
    current().log.info("sleeping for %s s", seconds)
    time.sleep(seconds)
    return "slept"
