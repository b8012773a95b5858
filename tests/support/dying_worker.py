"""A worker whose task makes steps and waits; run as a module it is a process that kills itself at a chosen moment.

python -m tests.support.dying_worker URL JOURNAL MOMENT

A moment is "before" or "after", the name of an operation of the engine, and the number of the call; or the name of a
step.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from flowfabric_worker import Runtime, Task, Worker, WorkerSettings, current

LEASE = timedelta(seconds=1)


def ordering(url: str, journal: Path, dies_in: str = "") -> tuple[Worker, Task[[], str]]:
    """Return a worker with a task that mails, waits for an answer, and charges; it writes down what it does."""
    worker = Worker("ordering", url)

    def effect(name: str) -> None:
        write(journal, name)
        if dies_in == name:
            die()

    @worker.task
    def order() -> str:
        write(journal, f"token {current().waitpoint('answer')}")
        current().step("mail", effect, "mail")
        answer = current().wait_for("answer", type=str)
        current().step("charge", effect, "charge")
        return f"{answer} {current().resume_reason}"

    return worker, order


def write(journal: Path, line: str) -> None:
    # A single write to a file opened for appending is never interleaved with another.
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(worker: Worker, when: str, operation: str, number: int) -> None:
    """Let the process kill itself before or after a call of an operation of the worker's engine."""
    original, calls = getattr(worker.engine, operation), iter(range(1, 1000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        is_it = next(calls) == number
        if is_it and when == "before":
            die()
        result = original(*args, **kwargs)
        if is_it:
            die()
        return result

    setattr(worker.engine, operation, wrapped)


def main(url: str, journal: str, moment: str) -> None:
    words = moment.split()
    worker, _ = ordering(url, Path(journal), moment if len(words) == 1 else "")
    if len(words) == 3:
        kill_at(worker, words[0], words[1], int(words[2]))
    Runtime(worker, WorkerSettings(threads=2, lease=LEASE)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
