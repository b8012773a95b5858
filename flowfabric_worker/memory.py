"""The memory of a worker process: a limit that it cannot exceed, and a look at how close it is."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flowfabric_worker.held import now

LOOK_EVERY: Final = 1.0
# A process that stays above this part of its limit had better be replaced, before handlers fail for want of memory.
CLOSE: Final = 0.9
# For how many looks: what a handler lets go of is given back to the system a little later.
LOOKS: Final = 3

_STATM: Final = Path("/proc/self/statm")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MIB: Final = 1 << 20


def limit_memory(limit: int) -> None:
    """Makes allocations fail that would bring this process above `limit` bytes; Python raises MemoryError then.

    To be called when its threads run: what is only reserved by then, such as their stacks, does not count. Where the
    system knows no such limit nothing happens; `MemoryWatch` works everywhere.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit += max(0, _reserved_bytes() - resident_bytes())
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def resident_bytes() -> int:
    """How much memory this process has at this moment; where the system does not say, the most that it ever had."""
    pages = _statm()
    if pages is None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages[1] * _PAGE


def _left_bytes() -> float:
    """How much memory this process may still allocate: it may run out of what is allowed before it uses it all."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return math.inf if allowed == resource.RLIM_INFINITY else allowed - _reserved_bytes()


def _reserved_bytes() -> int:
    """How much memory this process may write to, whether it ever did or not."""
    pages = _statm()
    return 0 if pages is None else pages[5] * _PAGE


def _statm() -> list[int] | None:
    """What Linux says of this process's memory, in pages; None elsewhere."""
    try:
        return [int(number) for number in _STATM.read_text("ascii").split()]
    except OSError:
        return None


class MemoryWatch:
    """Looks how close the process is to its limit.

    Args:
        limit: in bytes.
        on_worn: called, with the reason, when the process has stayed close to it.
    """

    def __init__(self, limit: int, on_worn: Callable[[str], None]) -> None:
        self._limit = limit
        self._on_worn = on_worn
        self._next_look = now()
        self._close = 0

    def __call__(self) -> None:
        if now() < self._next_look:
            return
        self._next_look = now() + LOOK_EVERY
        used = max(resident_bytes(), self._limit - _left_bytes())
        self._close = self._close + 1 if used > CLOSE * self._limit else 0
        if self._close >= LOOKS:
            self._on_worn(f"it uses {used / _MIB:.0f} MiB of {self._limit / _MIB:.0f} MiB")
