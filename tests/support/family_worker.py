"""A worker of flows whose nodes have children, which kills itself.

python -m tests.support.family_worker URL FILE LINE

Each beginning and each end of a handler is a line of FILE. The process is killed when it has written line number LINE;
0 lets it live.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

from flowfabric_worker import Flow, Runtime, Worker, WorkerSettings, chain, chord, current

# The lease of a worker that will be killed, so that its work is soon claimed again; others may be slow.
SHORT_LEASE, LONG_LEASE = timedelta(seconds=2), timedelta(seconds=30)
CHILDREN = 3
# The executions of a flow: its nodes, and the children of two of them.
EXECUTIONS = 7 + 2 * CHILDREN
# `piece` adds 1, and `family` sums what its children make of its number and of those after it.
RESULT = ((4 + 5 + 6) + (3 + 4 + 5) + 3) + 1


class Journal:
    """What the handlers of all processes wrote down; it kills its process after `last` lines of its own."""

    def __init__(self, path: Path, last: int = 0) -> None:
        self._path = path
        self._last = last
        self._numbers = itertools.count(1)

    def write(self, word: str) -> None:
        """Write a line about the present execution in one piece."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{word} {current().id}\n".encode())
        os.close(file)
        if next(self._numbers) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, word: str) -> Counter[str]:
        """Return how often a word was written down for each execution."""
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return Counter(line.partition(" ")[2] for line in lines if line.startswith(f"{word} "))


def family_of(url: str, journal: Journal) -> tuple[Worker, Flow]:
    """Return a worker, and a flow of all shapes whose result is RESULT."""
    worker = Worker("family", url)

    @worker.task
    def piece(number: int) -> int:
        journal.write("begin")
        time.sleep(0.02)
        journal.write("end")
        return number + 1

    @worker.task
    def family(number: int) -> int:
        journal.write("begin")
        children = [current().spawn(f"child {place}", piece, number + place) for place in range(CHILDREN)]
        results = current().gather(*children)
        journal.write("end")
        return sum(results)

    @worker.task
    def total(numbers: list[int]) -> int:
        journal.write("begin")
        journal.write("end")
        return sum(numbers)

    with worker.flow("family") as flow:
        flow.returns(chain(piece, chord([chain(piece, family), family, piece], total), piece).node(1))
    return worker, flow


if __name__ == "__main__":
    last = int(sys.argv[3])
    served, _ = family_of(sys.argv[1], Journal(Path(sys.argv[2]), last))
    Runtime(served, WorkerSettings(threads=4, lease=SHORT_LEASE if last else LONG_LEASE)).run()
    served.close()
