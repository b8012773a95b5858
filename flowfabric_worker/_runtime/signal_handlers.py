"""The signal handlers of a worker process, which its forked children do not inherit.

A forked child, such as one of `multiprocessing`, has the handlers from before the worker set its own: SIGTERM ends it,
as `Process.terminate` expects.
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

# The former handler of each signal, and the worker's handler.
_before: dict[int, Any] = {}
_ours: dict[int, Any] = {}
_forking = threading.local()

CAN_AWAIT: Final = hasattr(signal, "sigtimedwait")


def handle(number: int, handler: Handler) -> Handler:
    """Set the handler of a signal for this process but not for its forked children; return the former handler."""
    former: Handler = signal.signal(number, handler)
    _before.setdefault(number, former)
    _ours[number] = handler
    return former


@contextmanager
def awaited(numbers: Collection[int]) -> Iterator[Callable[[float], bool | None]]:
    """Receive signals in this thread, by waiting for them, while the block runs.

    The value is a function that waits at most the given seconds for a signal. It returns None if none came, True if
    this process sent the signal itself, else False. A signal to another thread, or outside of the wait, is still
    handled by its handler; on systems without such a wait, every signal is.
    """
    if not CAN_AWAIT:
        yield lambda timeout: time.sleep(timeout)
        return

    def wait(timeout: float) -> bool | None:
        received = signal.sigtimedwait(numbers, timeout)
        # If the process was stopped during the wait, Python may return a signal number that was not asked for.
        if received is None or received.si_signo not in numbers:
            return None
        return received.si_pid == os.getpid()

    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield wait
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def print_threads(_: int, __: FrameType | None) -> None:
    """Print the stack of every thread.

    This runs as a Python signal handler, while the other threads do not run: reading frames of running threads may
    crash the process. Another thread prints the text, because a full pipe would block all threads here.
    """
    try:
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            text = file.read()
    except OSError as error:
        text = f"The stacks of the threads cannot be written: {error}.\n"
    log_queue.print_text(text)


def _hold() -> None:
    """Block signals while this thread forks, because Python drops those that a child gets before it runs."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore() -> None:
    """Restore the former handlers in a forked child."""
    for number, former in _before.items():
        if signal.getsignal(number) is _ours[number]:
            signal.signal(number, signal.SIG_DFL if former is None else former)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_restore)
