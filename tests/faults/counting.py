"""A worker that writes down what it begins and ends; run as a module it is a process to kill.

python -m tests.faults.counting URL JOURNAL LEASE_SECONDS
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import attrs

from flowfabric_worker import RunSettings, Runtime, Task, Worker

THREADS = 8
TASK_SECONDS = 0.1


@attrs.frozen
class Line:
    """One line of the journal: a process began or ended a number."""

    word: str
    number: int
    pid: int


def counting(url: str, journal: Path) -> tuple[Worker, Task[[int], int]]:
    """A worker with one task: it takes a tenth of a second and says so before and after."""
    worker = Worker("counting", url)

    @worker.task
    def count(number: int) -> int:
        _write(journal, "begin", number)
        time.sleep(TASK_SECONDS)
        _write(journal, "end", number)
        return number

    return worker, count


def _write(journal: Path, word: str, number: int) -> None:
    # One write to a file that is open for appending is never mixed with another one.
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word} {number} {os.getpid()}\n".encode())
    os.close(file)


def lines_of(journal: Path) -> Iterator[Line]:
    """What was written down so far."""
    for text in journal.read_text().splitlines() if journal.exists() else ():
        word, number, pid = text.split(" ")
        yield Line(word, int(number), int(pid))


if __name__ == "__main__":
    served, _ = counting(sys.argv[1], Path(sys.argv[2]))
    Runtime(served, RunSettings(threads=THREADS, lease=timedelta(seconds=float(sys.argv[3])))).run()
    served.close()
