"""The memory limit of a worker process, and a check of how close the process is to it."""

from __future__ import annotations

import _posixsubprocess
import functools
import math
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker.engine import forks

CHECK_EVERY: Final = 1.0
# Restart a process that stays above this share of its limit, before handlers run out of memory.
CLOSE: Final = 0.9
# The number of checks in a row above that share, because freed memory returns to the system later.
CHECKS: Final = 3

# The functions that start a program without `os.fork()`, as modules and names that the standard library uses.
_STARTERS: Final = (
    (subprocess, "_fork_exec"),
    (_posixsubprocess, "fork_exec"),
    (os, "posix_spawn"),
    (os, "posix_spawnp"),
    (os, "system"),
)

_STATM: Final = Path("/proc/self/statm")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MIB: Final = 1 << 20
# The bytes that a process may allocate beyond its limit while it stops.
TO_STOP: Final = 128 * _MIB


class MemoryLimit:
    """Make allocations beyond a limit fail, for which Python raises MemoryError.

    Create it after the threads have started: memory that is only reserved by then, such as their stacks, does not
    count. It does nothing on a system without such a limit; `MemoryWatch` works everywhere.

    Programs that handlers start get the limits that this process was started with: the limit is lifted while a program
    is being started, because a new process inherits it.

    Args:
        limit: the limit in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._starting = 0
        self._lock = threading.Lock()
        self._former, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit += max(0, _reserved_bytes() - resident_bytes())
        self._limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        for module, name in _STARTERS:
            setattr(module, name, self._lifting(getattr(module, name)))
        _set_limit(self._limit)
        forks.remember(self)

    def reset_after_fork(self) -> None:
        """Remove the limit in a forked child for good."""
        self._lock = threading.Lock()
        self._limit = self._former
        _set_limit(self._limit)

    def raise_by(self, more: int = TO_STOP) -> None:
        """Raise the limit by `more` bytes: a stop starts threads, and each reserves its stack."""
        with self._lock:
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            self._limit += more
            if hard != resource.RLIM_INFINITY:
                self._limit = min(self._limit, hard)
            _set_limit(self._former if self._starting else self._limit)

    def _lifting(self, start: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function that starts a process, so that the limit is lifted during the call."""

        @functools.wraps(start)
        def start_unlimited(*args: Any, **kwargs: Any) -> Any:
            self._count(1)
            try:
                return start(*args, **kwargs)
            finally:
                self._count(-1)

        return start_unlimited

    def _count(self, change: int) -> None:
        with self._lock:
            self._starting += change
            _set_limit(self._former if self._starting else self._limit)


def _set_limit(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or its maximum so far if the system tells only that."""
    pages = _statm()
    if pages is None:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages[1] * _PAGE


def _left_bytes() -> float:
    """Return how many bytes this process may still allocate; memory counts as soon as it is reserved."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return math.inf if allowed == resource.RLIM_INFINITY else allowed - _reserved_bytes()


def _reserved_bytes() -> int:
    """Return how many bytes of memory this process has reserved for writing."""
    pages = _statm()
    return 0 if pages is None else pages[5] * _PAGE


def _statm() -> list[int] | None:
    """Return the memory figures of Linux for this process, in pages; None on other systems."""
    try:
        return [int(number) for number in _STATM.read_text("ascii").split()]
    except OSError:
        return None


class MemoryWatch:
    """Check how close the process is to its memory limit.

    Args:
        limit: the limit in bytes.
        on_restart_required: called with the reason when the process has stayed close to its limit.
    """

    def __init__(self, limit: int, on_restart_required: Callable[[str], None]) -> None:
        self._limit = limit
        self._on_restart_required = on_restart_required
        self._next_check = now()
        self._close = 0

    @property
    def is_close(self) -> bool:
        """Whether the process was close to its limit at the last check."""
        return self._close > 0

    def __call__(self) -> None:
        if now() < self._next_check:
            return
        self._next_check = now() + CHECK_EVERY
        used = max(resident_bytes(), self._limit - _left_bytes())
        self._close = self._close + 1 if used > CLOSE * self._limit else 0
        if self._close >= CHECKS:
            self._on_restart_required(f"it uses {used / _MIB:.0f} MiB of {self._limit / _MIB:.0f} MiB")
