"""A part of a worker process that owns one thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Protocol


class Part(Protocol):
    """A part that owns threads; the runtime stops when one of them has ended unexpectedly."""

    @property
    def alive(self) -> bool: ...


class OwnedThread(ABC):
    """The one thread of a part: it is started once, told to stop, and joined.

    Args:
        name: the name of the thread, after `flowfabric-`.
        needed: False if the part has nothing to do; it then starts no thread, and counts as alive.
    """

    def __init__(self, name: str, *, needed: bool = True) -> None:
        self._needed = needed
        self._thread = threading.Thread(target=self._work, name=f"flowfabric-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the part works: its thread runs, or it needs none."""
        return not self._needed or self._thread.is_alive()

    def start(self) -> None:
        """Start the thread, if it is needed."""
        if self._needed:
            self._thread.start()

    @abstractmethod
    def stop(self) -> None:
        """Tell the thread to end; return at once."""

    def join(self, timeout: float) -> bool:
        """Wait for the thread, at most `timeout` seconds; return True if it has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @abstractmethod
    def _work(self) -> None:
        """Run in the thread until the part is stopped."""
