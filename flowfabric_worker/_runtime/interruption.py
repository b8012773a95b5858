"""Raising `Interrupted` in the thread of a handler, and only while that thread runs the handler's own code.

Python can make another thread raise an exception at its next step. Aimed badly, it strikes the thread's own loop or
the next handler. So a lock says whether the handler's code runs: the exception is armed and disarmed under it, at most
once per run. A C function that blocks is not reached before it returns.
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
_NOTHING = ctypes.py_object()


class Interruption:
    """The interruption of one run."""

    __slots__ = ("_armed", "_lock", "_reached", "_shields", "_thread", "_wanted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = 0
        # Whether the handler's code runs, and an interruption may strike.
        self._reached = False
        self._armed = False
        self._wanted = False
        self._shields = 0

    def interrupt(self) -> None:
        """Make the handler raise `Interrupted`, now or when it leaves its shields. May be called again."""
        with self._lock:
            if not self._wanted:
                self._wanted = True
                self._arm()

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a handler's code in this thread; afterwards no interruption can come any more."""
        try:
            try:
                self._enter()
                return function(*args, **kwargs)
            finally:
                self._leave()
        except Interrupted:
            # It may have struck while this thread was leaving. It strikes once, so now it can leave for good.
            self._leave()
            raise

    @contextmanager
    def shield(self) -> Iterator[None]:
        """Hold an interruption back while the block runs; it is raised at the end of the block."""
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
                # Also where the block raises: who catches that shall not go on as if nothing had been wanted.
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
                # If it has not struck yet, it shall not any more.
                _raise_in(self._thread, _NOTHING)

    def _arm(self) -> None:
        """Once it is armed it strikes at the thread's next step, so it is never armed again."""
        if self._reached and not self._shields and not self._armed:
            self._armed = True
            _raise_in(self._thread, Interrupted)
