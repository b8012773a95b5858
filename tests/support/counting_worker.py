"""A worker that writes down what it begins and ends; run as a module it is a process to kill.

python -m tests.support.counting_worker URL JOURNAL LEASE_SECONDS
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Literal

import attrs

from flowfabric_worker import Runtime, Task, Worker, WorkerSettings, current

Word = Literal["begin", "end", "told"]

THREADS = 8
TASK_SECONDS = 0.1


@attrs.frozen
class Line:
    """One line of the journal: a process began or ended a number, or was told that its result will not count."""

    word: str
    number: int
    pid: int


@attrs.frozen
class Tasks:
    """What the worker can do.

    Attributes:
        count: takes a tenth of a second.
        last: takes as many seconds as it is told, and ends at once when its result will not count, or when it runs
            again.
    """

    count: Task[[int], int]
    last: Task[[int, float], int]


def counting(url: str, journal: Path) -> tuple[Worker, Tasks]:
    """Return a worker whose tasks return the number that they get, and say so before and after."""
    worker = Worker("counting", url)

    @worker.task
    def count(number: int) -> int:
        _write(journal, "begin", number)
        time.sleep(TASK_SECONDS)
        _write(journal, "end", number)
        return number

    @worker.task
    def last(number: int, seconds: float) -> int:
        _write(journal, "begin", number)
        told = current().cancelled.wait(seconds if current().attempt == 0 else 0)
        _write(journal, "told" if told else "end", number)
        return number

    return worker, Tasks(count, last)


def _write(journal: Path, word: Word, number: int) -> None:
    # A single write to a file opened for appending is never interleaved with another.
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word} {number} {os.getpid()}\n".encode())
    os.close(file)


def lines_of(journal: Path) -> Iterator[Line]:
    """Yield what was written down so far."""
    for text in journal.read_text().splitlines() if journal.exists() else ():
        word, number, pid = text.split(" ")
        yield Line(word, int(number), int(pid))


if __name__ == "__main__":
    served, _ = counting(sys.argv[1], Path(sys.argv[2]))
    Runtime(served, WorkerSettings(threads=THREADS, lease=timedelta(seconds=float(sys.argv[3])))).run()
    served.close()
