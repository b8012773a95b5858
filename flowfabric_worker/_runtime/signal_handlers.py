"""The signal handlers of a worker process, and of that process alone.

A process that is forked from it, such as those of `multiprocessing`, has the handlers that were there before: it ends
by SIGTERM, as `Process.terminate` expects.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeAlias

from flowfabric_worker.engine import log_queue

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

# By signal: what was there before, and what the worker put in its place.
_before: dict[int, Any] = {}
_ours: dict[int, Any] = {}
_forking = threading.local()

CAN_AWAIT: Final = hasattr(signal, "sigtimedwait")


def handle(number: int, handler: Handler) -> Handler:
    """Set the handler of a signal, as `signal.signal` does, for this process alone; return the former one."""
    former: Handler = signal.signal(number, handler)
    _before.setdefault(number, former)
    _ours[number] = handler
    return former


@contextmanager
def awaited(numbers: Collection[int]) -> Iterator[Callable[[float], bool | None]]:
    """Receive signals in this thread, by waiting for them, while the block runs.

    The value is a function that waits for one, at most so many seconds, and returns None if none came. Else it returns
    True if this very process sent it. A signal that is sent to one other thread, or comes while this thread is not in
    the wait, still gets to its handler. Where the system knows no such wait, every signal does.
    """
    if not CAN_AWAIT:
        yield lambda timeout: time.sleep(timeout)
        return

    def wait(timeout: float) -> bool | None:
        received = signal.sigtimedwait(numbers, timeout)
        # After a wait that ended late because the process was stopped, Python returns a signal of no meaning.
        if received is None or received.si_signo not in numbers:
            return None
        return received.si_pid == os.getpid()

    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def print_threads(_: int, __: FrameType | None) -> None:
    """Print what every thread does.

    As an ordinary handler, which runs when the other threads stand still: read while they run, their frames may be
    gone in the middle, and the process with them. They would all stand still for as long as a pipe is full, so another
    thread does the printing.
    """
    try:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            text = file.read()
    except OSError as error:
        text = f"What the threads do cannot be told: {error}.\n"
    log_queue.print_text(text)


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
