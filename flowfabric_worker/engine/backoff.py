"""Back-off: pauses that double after each failure."""

from __future__ import annotations

import math


class Backoff:
    """Pauses that double after each failure, up to a limit, and start over after a success.

    Args:
        first: the first pause, in seconds.
        longest: the longest pause, in seconds.
        steady_after: seconds of work that count as a success, for `settle`.
    """

    __slots__ = ("_longest", "_pause", "_steady_after", "first")

    def __init__(self, first: float, longest: float, steady_after: float = math.inf) -> None:
        self.first = first
        self._longest = longest
        self._steady_after = steady_after
        self._pause = first

    def next(self) -> float:
        """Return the pause after one more failure, in seconds."""
        pause, self._pause = self._pause, min(self._longest, 2 * self._pause)
        return pause

    def settle(self, worked: float) -> None:
        """Start over if the seconds of work before a failure count as a success."""
        if worked > self._steady_after:
            self.reset()

    def reset(self) -> None:
        """Start over with the first pause, after a success."""
        self._pause = self.first
