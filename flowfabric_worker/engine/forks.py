"""What happens to connections, locks and threads after `os.fork()`.

A forked child shares connections with its parent, has none of the parent's threads, and inherits locks that those
threads may hold. If user code forks inside a worker's thread, the child ends where that code ends, so that it does not
become a second worker.
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
    """An object that has connections, threads or locks."""

    def reset_after_fork(self) -> None:
        """Reset the object in a forked child, where one thread runs and no inherited connection may be used."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()
# The number of forks between the process that imported this module and the present one.
_depth = 0

# Registers an object to be reset in forked children; only a weak reference to it is kept.
remember = _inherited.add


def depth() -> int:
    """Return a number that differs between a process and the processes that are forked from it."""
    return _depth


def confined(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function of the user; a process that the function forks ends when the function does, as a script would.

    The exit code of such a child is 0 after a return, the code of a SystemExit, or 1 after any other exception.
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
        # End with os._exit, because anything else would run code of the worker that the child was forked from.
        os._exit(code & 0xFF)


def _forget() -> None:
    global _depth
    _depth += 1
    for each in list(_inherited):
        each.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
