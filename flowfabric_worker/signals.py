"""The signal handlers of a worker process, and of that process alone.

A process that is forked from it, such as those of `multiprocessing`, has the handlers that were there before: it ends
by SIGTERM, as `Process.terminate` expects.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

# By signal: what was there before, and what the worker put in its place.
_before: dict[int, Any] = {}
_ours: dict[int, Any] = {}
_forking = threading.local()


def handle(number: int, handler: Handler) -> Handler:
    """Set the handler of a signal, as `signal.signal` does, for this process alone; return the former one."""
    former: Handler = signal.signal(number, handler)
    _before.setdefault(number, former)
    _ours[number] = handler
    return former


def _hold() -> None:
    """Hold signals back while this thread forks: Python forgets those that a child gets before it runs."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore() -> None:
    """Set the handlers in a child that were there before those of the worker."""
    for number, former in _before.items():
        if signal.getsignal(number) is _ours[number]:
            signal.signal(number, signal.SIG_DFL if former is None else former)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_restore)
