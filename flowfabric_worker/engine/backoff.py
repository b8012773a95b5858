"""Back-off: pauses that double after each failure."""

from __future__ import annotations


class Backoff:
    """Pauses that double after each failure, up to a limit, and start over after a success.

    Args:
        first: the first pause, in seconds.
        longest: the longest pause, in seconds.
    """

    __slots__ = ("_longest", "_pause", "first")

    def __init__(self, first: float, longest: float) -> None:
        self.first = first
        self._longest = longest
        self._pause = first

    def next(self) -> float:
        """Return the pause after one more failure, in seconds."""
        pause, self._pause = self._pause, min(self._longest, 2 * self._pause)
        return pause

    def reset(self) -> None:
        """Start over with the first pause, after a success."""
        self._pause = self.first
