"""After `os.fork()`: what a process has of its parent, and must not use, is given up at once.

Connections are shared with the parent, threads are not there, and locks may have been held by them. A process that user
code forks inside a worker's thread ends where that user code does: it is not a second worker.
"""

from __future__ import annotations

import os
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import NoReturn, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Inherited(Protocol):
    """Something that has connections, threads or locks."""

    def reset_after_fork(self) -> None:
        """Start afresh in a process that was just forked: one thread runs, and no connection may be used."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()
# How many forks lie between this process and the one that imported the module.
_depth = 0

# Told to start afresh whenever this process is forked; by reference only, so that nothing lives longer for it.
remember = _inherited.add


def depth() -> int:
    """Return a number that differs between a process and the processes that are forked from it."""
    return _depth


def confined(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the user; a process that was forked inside of it ends here, as a script would.

    Its exit code is 0 when the function returned there, that of SystemExit, or 1 after any other exception.
    """
    before = _depth
    try:
        result = function(*args, **kwargs)
    except BaseException as error:
        if _depth != before:
            _end_child(error)
        raise
    if _depth != before:
        _end_child(None)
    return result


def _end_child(error: BaseException | None) -> NoReturn:
    code = 1
    try:
        if error is None:
            code = 0
        elif isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
        elif isinstance(error, SystemExit):
            sys.stderr.write(f"{error.code}\n")
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Nothing else ends a process without the loops of the worker that it was forked from.
        os._exit(code & 0xFF)


def _forget() -> None:
    global _depth
    _depth += 1
    for each in list(_inherited):
        each.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
