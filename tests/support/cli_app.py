"""The application that the tests of the command line run."""

from __future__ import annotations

import time
from datetime import timedelta

from flowfabric_worker import Approval, Fail, RetryPolicy, Worker, current

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


@worker.task(name="count", lane="streams")
def count(last: int) -> None:
    for number in range(1, last + 1):
        current().emit(number)


@worker.task(name="tell", lane="streams", retry=RetryPolicy(max_retries=1, initial=timedelta(milliseconds=10)))
def tell(text: str) -> None:
    current().emit(text)
    if current().retry_count == 0:
        raise ValueError("stumbled")


@worker.task(name="ask", lane="waits")
def ask(name: str) -> object:
    current().emit(current().waitpoint(name))
    return current().wait_for(name)


@worker.task(name="decide", lane="waits")
def decide() -> str:
    current().emit(current().waitpoint("decision"))
    decision = current().wait_for("decision", type=Approval)
    return f"{'approved' if decision else 'rejected'} by {decision.by}: {decision.reason}"
