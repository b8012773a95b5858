"""The application of the tests with forks: handlers that fork and start processes, and short tasks beside them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import attrs

from flowfabric_worker import Worker, codec, current

JOURNAL_VARIABLE: Final = "FORKING_JOURNAL"
LIMIT_MIB: Final = 400
# More than the worker may use.
MUCH: Final = 600 << 20
_PROCESS: Final = os.getpid()

worker = Worker("forking")


@attrs.frozen
class Sheet:
    """A value whose conversions fork in the worker."""

    number: int


def _number_of(sheet: Sheet) -> int:
    _fork_in_worker("encode")
    return sheet.number


def _sheet_of(number: int) -> Sheet:
    _fork_in_worker("decode")
    return Sheet(number)


codec.register(Sheet, _number_of, _sheet_of)


def note(what: object) -> None:
    """Write down that something began, in which process."""
    with Path(os.environ[JOURNAL_VARIABLE]).open("a") as journal:
        journal.write(f"{what} {os.getpid()}\n")


def _fork_in_worker(what: str) -> None:
    # A conversion in the forked process may start the next one.
    if JOURNAL_VARIABLE not in os.environ or os.getpid() != _PROCESS:
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        note(what)


@worker.task
def copy(sheet: Sheet) -> Sheet:
    """Take, keep in a step and return values whose conversions fork."""
    note("copy")
    return current().step("double", _doubled, sheet)


def _doubled(sheet: Sheet) -> Sheet:
    note("double")
    return Sheet(2 * sheet.number)


@worker.task
def count(number: int) -> int:
    note(number)
    time.sleep(0.005)
    return number


@worker.task
def fork(how: str) -> int:
    """Let a forked process leave this handler, and return its exit code."""
    note(f"fork-{how}")
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if how == "raises":
        raise ValueError("in the child")
    if how == "exits":
        sys.exit(3)
    return 1000


@worker.task
def fork_in_step() -> int:
    """Let a forked process leave a step, and return its exit code."""

    def charge() -> int:
        note("charge")
        pid = os.fork()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 1000

    code = current().step("charge", charge)
    note("after")
    return code


@worker.task
def pool() -> list[int]:
    """Use a pool of processes, which ends them by SIGTERM."""
    with multiprocessing.get_context("fork").Pool(2) as processes:
        return processes.map(abs, [-1, -2, -3])


def exit_code(process: BaseProcess) -> int | None:
    """Wait for a process, and return how it ended."""
    process.join(60)
    # A thread that starts another process may reap this one, and multiprocessing knows its exit code a moment later.
    deadline = time.monotonic() + 20
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.exitcode


@worker.task
def terminate() -> int | None:
    """Terminate a process at once, and return how it ended."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    return exit_code(process)


@worker.task
def take_much(way: str) -> int | None:
    """Run a process that takes more memory than this one may, and return how it ended."""
    if way == "subprocess":
        return subprocess.run([sys.executable, "-c", f"bytearray({MUCH})"], check=False).returncode
    if way == "system":
        return os.system(f"{sys.executable} -c 'bytearray({MUCH})'")
    process = multiprocessing.get_context(way).Process(target=bytearray, args=(MUCH,))
    process.start()
    return exit_code(process)


@worker.task
def take_much_here() -> str:
    try:
        bytearray(MUCH)
    except MemoryError:
        return "refused"
    return f"taken, of {resource.getrlimit(resource.RLIMIT_DATA)}"


@worker.task
def step_in_child() -> int:
    """Make a durable call in a forked process, and return its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        current().step("charge", int, "1")
    except RuntimeError:
        sys.exit(4)
    return 0
