"""The signal handlers of a worker process, which its forked children do not inherit.

A forked child, such as one of `multiprocessing`, has the handlers from before the worker set its own: SIGTERM ends it,
as `Process.terminate` expects.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, Final, Self, TypeAlias

from flowfabric_worker.engine import log_queue

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None

# The handler of each signal before the worker set its own.
_before: dict[int, Any] = {}
_ours: dict[int, Any] = {}
_forking = threading.local()
# The watch of the main thread while it waits for signals.
_watches: set[_Watch] = set()

CAN_AWAIT: Final = hasattr(signal, "sigwaitinfo")
# A thread that does not wait for this signal ignores it.
_WAKE: Final = signal.SIGURG
# Seconds after which the main thread waits for signals, after it has started another thread.
_WAITING_AFTER: Final = 0.05
# Seconds between two looks at whether a wait is over.
_CHECK_EVERY: Final = 0.25


def handle(number: int, handler: Handler) -> Handler:
    """Set the handler of a signal for this process but not for its forked children; return the former handler."""
    former: Handler = signal.signal(number, handler)
    _before.setdefault(number, former)
    _ours[number] = handler
    return former


def wait_for(numbers: Collection[int], is_over: Callable[[], bool], on_waiting: Callable[[], None]) -> bool | None:
    """Wait in the main thread for a signal and call its handler, or wait until `is_over` returns True.

    The wait has no timeout, because between two waits other threads receive the signals, and their sender is unknown.

    Args:
        numbers: the signals; each has a handler that was set by `handle`.
        is_over: called several times a second, in another thread.
        on_waiting: called in another thread when the main thread waits.

    Returns:
        True if this process sent the signal itself, False if another process sent it. None if the sender is unknown,
        or no signal came.
    """
    if not CAN_AWAIT:
        on_waiting()
        while not is_over():
            time.sleep(_CHECK_EVERY)
        return None
    awaited = {*numbers, _WAKE}
    former = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    try:
        with _Watch(numbers, is_over, on_waiting) as watch:
            while not is_over():
                received = signal.sigwaitinfo(awaited)
                # If the process was stopped during the wait, Python may return a signal number that was not asked for.
                if received.si_signo in numbers:
                    _ours[received.si_signo](received.si_signo, None)
                    return received.si_pid == os.getpid()
            return True if watch.missed else None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


class _Watch:
    """Wake the main thread from its wait for signals, from another thread.

    This happens if the wait is over, or if the main thread misses a signal: a signal that this process sent to one of
    its other threads does not end the wait, although its handler must run in the main thread.

    Attributes:
        missed: True if the main thread was woken for a signal to another thread.
    """

    def __init__(self, numbers: Collection[int], is_over: Callable[[], bool], on_waiting: Callable[[], None]) -> None:
        self.missed = False
        self._numbers = frozenset(numbers)
        self._is_over = is_over
        self._on_waiting = on_waiting
        self._ended = threading.Event()
        # Python writes the number of each signal that a thread receives into one end.
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, name="flowfabric-signal-watch", daemon=True).start()
        self._former = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        _watches.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._former)
        _watches.discard(self)
        self._writer.close()
        self._ended.set()

    def _work(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        received = False
        with self._reader:
            self._ended.wait(_WAITING_AFTER)
            self._on_waiting()
            while not self._ended.wait(_CHECK_EVERY):
                over = self._is_over()
                # A main thread that did not wait would have run the handler since the last look.
                self.missed = self.missed or (received and not over)
                if over or self.missed:
                    signal.pthread_kill(main, _WAKE)
                received = self._has_received()

    def _has_received(self) -> bool:
        try:
            return not self._numbers.isdisjoint(self._reader.recv(4096))
        except BlockingIOError:
            return False


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
    """Block signals while this thread forks, because Python drops those that the child receives before it runs."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ours)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _restore() -> None:
    """Restore the former handlers in a forked child."""
    for number, former in _before.items():
        if signal.getsignal(number) is _ours[number]:
            signal.signal(number, signal.SIG_DFL if former is None else former)
    if _watches:
        # The signals of the child are not signals to its parent, which reads the other end.
        signal.set_wakeup_fd(-1)
    _release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_restore)
