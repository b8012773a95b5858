"""A worker whose tasks yield numbers; run as a module it is a process to kill.

python -m tests.support.streaming_worker URL LEASE_SECONDS GRACE_SECONDS
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterable
from datetime import timedelta

import attrs

from flowfabric_worker import (
    AttemptBegan,
    Runtime,
    StreamItem,
    StreamValue,
    Task,
    ValuesDropped,
    Worker,
    WorkerSettings,
)

THREADS = 8


@attrs.frozen
class Tasks:
    """What the worker can do.

    Attributes:
        pour: yields the numbers from 0 on, with a pause in seconds after each, and returns how many there were.
    """

    pour: Task[[int, float], Generator[int, None, int]]


def streaming(url: str) -> tuple[Worker, Tasks]:
    """Return a worker whose tasks yield numbers."""
    worker = Worker("streaming", url)

    @worker.task
    def pour(count: int, pause: float) -> Generator[int, None, int]:
        for number in range(count):
            yield number
            time.sleep(pause)
        return count

    return worker, Tasks(pour)


def told(stream: Iterable[StreamItem[int]]) -> list[int | str]:
    """Return the values of a stream, and what its marks say."""
    found: list[int | str] = []
    for item in stream:
        match item:
            case StreamValue(value):
                found.append(value)
            case AttemptBegan(attempt):
                found.append(f"attempt {attempt}")
            case ValuesDropped():
                found.append("dropped")
    return found


if __name__ == "__main__":
    served, _ = streaming(sys.argv[1])
    lease, grace = (timedelta(seconds=float(text)) for text in sys.argv[2:])
    Runtime(served, WorkerSettings(threads=THREADS, lease=lease, grace=grace)).run()
    served.close()
