"""The journal that tasks write while their workers are killed or stopped, and conclusions from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import attrs

# An end this short before a kill may not have reached the store: to run such a task again is right.
UNSETTLED_SECONDS: Final = 0.1


@attrs.frozen(kw_only=True)
class Line:
    """A line of the journal: a task began or ended.

    Attributes:
        word: "begin" or "end".
        at: seconds since the epoch.
    """

    word: str
    number: int
    pid: int
    at: float


@attrs.frozen(kw_only=True)
class Killed:
    """What became of the tasks after a worker was killed, by their numbers.

    Attributes:
        interrupted: the killed worker had begun them, and not ended them.
        unsettled: it had ended them, but only just.
        missing: no worker ended them while the benchmark watched.
        again: begun more than once.
        twice: ended more than once.
        whole_after: seconds from the kill until nothing was missing; None if something still is.
    """

    interrupted: frozenset[int]
    unsettled: frozenset[int]
    missing: frozenset[int]
    again: frozenset[int]
    twice: frozenset[int]
    whole_after: float | None

    def reaches(self, within: float) -> bool:
        """Return True if nothing is missing within so many seconds, and nothing ran again but what was in flight."""
        return (
            self.whole_after is not None
            and self.whole_after <= within
            and self.interrupted <= self.again <= self.interrupted | self.unsettled
            and self.twice <= self.unsettled
        )


@attrs.frozen(kw_only=True)
class Stopped:
    """What became of the tasks after a worker was told to stop.

    Attributes:
        lost: no worker ended them.
        twice: ended more than once.
        seconds: how long the worker took to end.
    """

    lost: frozenset[int]
    twice: frozenset[int]
    seconds: float

    def reaches(self) -> bool:
        """Return True if nothing was lost and nothing ran twice."""
        return not self.lost and not self.twice


def read(text: str) -> list[Line]:
    """Return the lines of a journal, without one that a kill cut off."""
    return [_line(*line.split()) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _line(word: str, number: str, pid: str, nanoseconds: str) -> Line:
    return Line(word=word, number=int(number), pid=int(pid), at=int(nanoseconds) / 1e9)


def ended(lines: Iterable[Line]) -> frozenset[int]:
    """Return the tasks that ran to their end."""
    return frozenset(line.number for line in lines if line.word == "end")


def killed(lines: Sequence[Line], count: int, *, at: float, survivors: Collection[int] = ()) -> Killed:
    """Return what a kill did.

    Args:
        lines: everything that was written down.
        count: how many tasks there were, numbered from 0.
        at: when the kill was over, in seconds since the epoch.
        survivors: processes that were not killed.
    """
    by_victim = [line for line in lines if line.at <= at and line.pid not in survivors]
    missing = frozenset(range(count)) - ended(lines)
    return Killed(
        interrupted=_numbers(by_victim, "begin") - ended(by_victim),
        unsettled=ended(line for line in by_victim if line.at >= at - UNSETTLED_SECONDS),
        missing=missing,
        again=_repeated(lines, "begin"),
        twice=_repeated(lines, "end"),
        whole_after=None if missing else _last_first_end(lines) - at,
    )


def stopped(lines: Sequence[Line], count: int, seconds: float) -> Stopped:
    """Return what a stop did that took so many seconds."""
    lost = frozenset(range(count)) - ended(lines)
    return Stopped(lost=lost, twice=_repeated(lines, "end"), seconds=seconds)


def _numbers(lines: Iterable[Line], word: str) -> frozenset[int]:
    return frozenset(line.number for line in lines if line.word == word)


def _repeated(lines: Iterable[Line], word: str) -> frozenset[int]:
    times = Counter(line.number for line in lines if line.word == word)
    return frozenset(number for number, count in times.items() if count > 1)


def _last_first_end(lines: Sequence[Line]) -> float:
    """Return when the last of the tasks had ended for the first time."""
    first: dict[int, float] = {}
    for line in lines:
        if line.word == "end":
            first.setdefault(line.number, line.at)
    return max(first.values())
