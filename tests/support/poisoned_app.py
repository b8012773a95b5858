"""The application of the tests with processes: short tasks that are counted, and handlers that do harm."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any, Final

from flowfabric_worker import RetryPolicy, Worker

JOURNAL_VARIABLE: Final = "POISONED_JOURNAL"
COUNT_SECONDS: Final = 0.02
# A task that kills its process is claimed again so often, isolated from the second time on.
MAX_RECLAIMS: Final = 2
ATTEMPTS: Final = 2
MEGABYTE: Final = 1 << 20

_retry = RetryPolicy(max_retries=ATTEMPTS - 1, backoff="fixed", initial=timedelta(milliseconds=50))
# A task that fails because another one takes all memory is retried until there is some.
_patient = RetryPolicy(max_retries=100, backoff="fixed", initial=timedelta(milliseconds=100))

worker = Worker("poisoned", defaults={"max_reclaims": MAX_RECLAIMS})
without_tasks = Worker("idle")

# `leak` keeps these objects for ever.
_leaked: list[bytearray] = []


def note(word: str, what: object) -> None:
    """Write down that something happens in this process."""
    # A single write to a file opened for appending is never interleaved with another.
    file = os.open(os.environ[JOURNAL_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word} {what} {os.getpid()}\n".encode())
    os.close(file)


def _without_letting_go(function: str, *arguments: int) -> None:
    """Call a function of the C library that keeps the interpreter for as long as it takes."""
    getattr(ctypes.PyDLL(None), function)(*arguments)


@worker.task(retry=_patient, max_reclaims=100)
def count(number: int) -> int:
    """Return `number` after a short time, and note when the task begins and ends."""
    note("begin", number)
    time.sleep(COUNT_SECONDS)
    note("end", number)
    return number


@worker.task(max_reclaims=100)
def last(number: int, seconds: float) -> int:
    """Return a task that takes its time."""
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return number


@worker.task
def hold_interpreter(microseconds: int) -> str:
    note("begin", "hold_interpreter")
    _without_letting_go("usleep", microseconds)
    return "let go"


@worker.task(timeout=timedelta(seconds=1), retry=_retry)
def never_end() -> None:
    note("begin", "never_end")
    while True:
        pass


@worker.task(timeout=timedelta(seconds=1), retry=_retry, interrupt=True)
def never_end_unless_interrupted() -> None:
    note("begin", "never_end_unless_interrupted")
    while True:
        pass


@worker.task
def exit_at_once() -> None:
    note("begin", "exit_at_once")
    os._exit(3)


@worker.task
def kill_itself() -> None:
    note("begin", "kill_itself")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@worker.task
def crash() -> None:
    note("begin", "crash")
    ctypes.string_at(0)


@worker.task(retry=_retry)
def allocate_without_end(at_a_time: int) -> None:
    note("begin", "allocate_without_end")
    taken = []
    while True:
        taken.append(bytearray(at_a_time))


@worker.task(retry=_patient, max_reclaims=100)
def leak(megabytes: int) -> int:
    _leaked.append(bytearray(megabytes * MEGABYTE))
    return megabytes


class Unspeakable(Exception):  # noqa: N818  it says what it is
    """An exception whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("not even that")


_RAISED: Final[dict[str, Any]] = {
    "SystemExit": lambda: SystemExit(0),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "Unspeakable": Unspeakable,
    "ValueError": lambda: ValueError("x" * (10 * MEGABYTE)),
}
EXCEPTIONS: Final = tuple(_RAISED)


@worker.task(retry=_retry)
def raise_something(name: str) -> None:
    note("begin", name)
    raise _RAISED[name]()


@worker.task(retry=_retry)
def close_every_file() -> str:
    note("begin", "close_every_file")
    os.closerange(3, 1024)
    return "closed"


@worker.task
def leave_a_thread_and_a_process_behind() -> int:
    """Return both would run for a minute; the thread is one that Python waits for at its end."""
    threading.Thread(target=time.sleep, args=(60,), daemon=False).start()
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]).pid
