"""Raises `Interrupted` in the thread of a handler, and only while that thread runs the handler's own code.

Python can make another thread raise an exception at its next bytecode instruction. At the wrong time, the exception
would be raised in the loop of the thread, or in the next handler. A lock therefore guards whether the handler's code
runs: the exception is armed and disarmed under the lock, at most once per run. A C function that blocks is not
interrupted before it returns.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from flowfabric_worker.outcomes import Interrupted

P = ParamSpec("P")
R = TypeVar("R")

_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)


class _DisarmedError(BaseException):
    """Replaces an interruption that was not raised yet."""


def _disarm() -> None:
    """Disarm the exception that is armed for this thread, by arming another one and catching it.

    Arming nothing is shorter, but leaves CPython 3.11 in a state in which it hangs as soon as a debugger traces it.
    """
    try:
        _raise_in(threading.get_ident(), _DisarmedError)
        while True:
            pass
    except _DisarmedError:
        pass


class Interruption:
    """The interruption of one attempt."""

    __slots__ = ("_armed", "_lock", "_reached", "_shields", "_thread", "_wanted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = 0
        # Whether the handler's code runs, so that an interruption may be raised.
        self._reached = False
        self._armed = False
        self._wanted = False
        self._shields = 0

    def interrupt(self) -> None:
        """Raise `Interrupted` in the handler, once, now or when it leaves its last shield."""
        with self._lock:
            if not self._wanted:
                self._wanted = True
                self._arm()

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a handler's code in this thread; after that, no interruption can be raised."""
        try:
            try:
                self._enter()
                return function(*args, **kwargs)
            finally:
                self._leave()
        except Interrupted:
            # The exception may have been raised inside _leave(): call it again, which is safe after that.
            self._leave()
            raise

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Defer an interruption to the end of the block."""
        with self._lock:
            self._shields += 1
        try:
            yield
        finally:
            with self._lock:
                self._shields -= 1
                due = self._wanted and self._reached and not self._shields and not self._armed
                self._armed = self._armed or due
            if due:
                # Replace an exception of the block, which the handler might catch.
                raise Interrupted

    def _enter(self) -> None:
        with self._lock:
            self._thread = threading.get_ident()
            self._reached = True
            if self._wanted:
                self._arm()

    def _leave(self) -> None:
        with self._lock:
            self._reached = False
            if self._armed:
                _disarm()

    def _arm(self) -> None:
        """Arm the exception, once: it is raised at the thread's next instruction."""
        if self._reached and not self._shields and not self._armed:
            self._armed = True
            _raise_in(self._thread, Interrupted)
