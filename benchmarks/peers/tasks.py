"""The tasks that every peer has; each takes one number.

Runs in the environment of the peer, so it needs nothing but the standard library.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

STAMPS: Final = "BENCHMARK_STAMPS"
JOURNAL: Final = "BENCHMARK_JOURNAL"
SLOW_SECONDS: Final = 0.1

_begun = False


def noop(number: int) -> int:
    """Return its argument, and say when the first task of this process began."""
    global _begun
    if not _begun:
        _begun = True
        if folder := os.environ.get(STAMPS):
            Path(folder, f"{time.time_ns()}.{os.getpid()}").touch()
    return number


def stamp(_number: int) -> float:
    """Return the time at its first line."""
    return time.time()


def slow(number: int) -> int:
    """Take 100 ms, and write down that it began and that it ended."""
    _note("begin", number)
    time.sleep(SLOW_SECONDS)
    _note("end", number)
    return number


def failing(number: int) -> int:
    """Raise an error."""
    raise ValueError(f"number {number} does not please")


ALL: Final[tuple[Callable[[int], float], ...]] = (noop, stamp, slow, failing)


def _note(word: str, number: int) -> None:
    # A single write to a file opened for appending is never interleaved with another.
    with Path(os.environ[JOURNAL]).open("ab", buffering=0) as journal:
        journal.write(b"%s %d %d %d\n" % (word.encode(), number, os.getpid(), time.time_ns()))
