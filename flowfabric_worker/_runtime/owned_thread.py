"""A part of a worker process that owns one thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Protocol


class Part(Protocol):
    """What owns threads: the runtime stops when one of them has ended by itself."""

    @property
    def alive(self) -> bool: ...


class OwnedThread(ABC):
    """The one thread of a part: it is started once, told to stop, and joined.

    Args:
        name: what the thread is called, behind `flowfabric-`.
        needed: False for a part that has nothing to do: then no thread starts, and the part counts as alive.
    """

    def __init__(self, name: str, *, needed: bool = True) -> None:
        self._needed = needed
        self._thread = threading.Thread(target=self._work, name=f"flowfabric-{name}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the part does what it is there for: its thread runs, or it needs none."""
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
