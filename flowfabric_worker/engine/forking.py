"""After `os.fork()`: what a process has of its parent, and must not use, is given up at once.

Connections are shared with the parent, threads are not there, and locks may have been held by them.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that has connections, threads or locks."""

    def forget_parent(self) -> None:
        """Begins anew, in a process that was just forked: one thread runs, and nothing may be said to anybody."""


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()

# Told to begin anew whenever this process is forked; by reference only, so that nothing lives longer for it.
remember = _inherited.add


def _forget() -> None:
    for each in list(_inherited):
        each.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
