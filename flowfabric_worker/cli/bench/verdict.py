"""The figures of a benchmark, and the verdict about what limits the store."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import attrs

# If writes take longer than reads by more than this, in ms, they wait for a disk.
_DISK_MS: Final = 0.1


class Bound(StrEnum):
    """What limits the throughput."""

    PYTHON = "python"
    SERVER = "server"
    DISK = "disk"
    ROUND_TRIP = "round_trip"


_WHAT_TO_DO: Final = {
    Bound.PYTHON: "this machine's Python; more worker processes make it faster while there are free cores.",
    Bound.SERVER: "the server's own time per call; a faster server, or a cluster, makes it faster.",
    Bound.DISK: "the server's disk; appendfsync everysec, or synchronous_commit off on Postgres, makes it faster, and "
    "may lose the last second in a crash.",
    Bound.ROUND_TRIP: "the network round trip; more threads, or a server that is nearer, make it faster.",
}
_LONGEST_PART: Final = {
    Bound.PYTHON: "this machine's Python",
    Bound.SERVER: "the server's own time",
    Bound.DISK: "waiting for the server's disk",
    Bound.ROUND_TRIP: "the network round trip",
}


@attrs.frozen(kw_only=True)
class Spread:
    """The distribution of durations, in ms."""

    p50_ms: float
    p99_ms: float
    count: int


def spread_of(seconds: Sequence[float]) -> Spread:
    """Return the spread of at least one duration, in seconds."""
    ordered = sorted(seconds)
    middle, high = (ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.99))
    return Spread(p50_ms=middle * 1000, p99_ms=high * 1000, count=len(ordered))


@attrs.frozen(kw_only=True)
class Pace:
    """The rate of an operation, and the time that it took.

    Attributes:
        count: the number of operations.
        seconds: the time that all of them took.
        python_seconds: the processor time of this process.
        server_seconds: the time that the servers ran functions; None if they do not report it.
    """

    count: int
    seconds: float
    python_seconds: float
    server_seconds: float | None = None

    @property
    def per_second(self) -> float:
        """The operations per second."""
        return self.count / self.seconds

    @property
    def python_share(self) -> float:
        """The share of the time in which this process computed; 1 means that it kept one core busy."""
        return self.python_seconds / self.seconds

    @property
    def server_share(self) -> float:
        """The share of the time in which the servers ran functions."""
        return (self.server_seconds or 0.0) / self.seconds

    @property
    def waited_ms(self) -> float:
        """The time of one operation in ms in which neither side computed: the round trip and the disk."""
        rest = self.seconds - self.python_seconds - (self.server_seconds or 0.0)
        return max(0.0, rest) / self.count * 1000


@attrs.frozen(kw_only=True)
class Figures:
    """Everything that a benchmark measured.

    Attributes:
        ping: the durations of a command that does nothing.
        call: the durations of a stored function that does nothing.
        calls: the rate of those calls, and what they cost.
        start: the durations from a submission to the first line of its handler, while the store is idle.
        result: the durations from a submission to its result, while the store is idle.
    """

    ping: Spread
    call: Spread
    calls: Pace
    submit: Pace
    submit_bulk: Pace
    drain: Pace
    start: Spread
    result: Spread


def bound_of_one(figures: Figures) -> tuple[Bound, float]:
    """Return what takes the largest share of one submission, and that share, from 0 to 1."""
    one = figures.submit
    disk_ms = _disk_ms(figures)
    total_ms = one.seconds / one.count * 1000
    parts = {
        Bound.PYTHON: one.python_share,
        Bound.SERVER: one.server_share,
        Bound.DISK: disk_ms / total_ms,
        Bound.ROUND_TRIP: (one.waited_ms - disk_ms) / total_ms,
    }
    largest = max(parts, key=lambda bound: parts[bound])
    return largest, parts[largest]


def bound_of_all(figures: Figures) -> Bound:
    """Return what limits the drain."""
    drain = figures.drain
    waiting = Bound.DISK if _disk_ms(figures) else Bound.ROUND_TRIP
    shares = {Bound.PYTHON: drain.python_share, Bound.SERVER: drain.server_share}
    # The rest may be small or negative, because both sides may compute at the same time.
    shares[waiting] = 1 - sum(shares.values())
    return max(shares, key=lambda bound: shares[bound])


def verdict(figures: Figures) -> str:
    """Describe what limits a single submission, and what limits the drain."""
    part, share = bound_of_one(figures)
    one_ms = figures.submit.seconds / figures.submit.count * 1000
    drain = figures.drain
    server = "" if drain.server_seconds is None else f", the server for {drain.server_share:.0%}"
    return (
        f"A submission takes {one_ms:.2g} ms; the largest part of it is {_LONGEST_PART[part]} ({share:.0%}). "
        f"Draining is limited by {_WHAT_TO_DO[bound_of_all(figures)]} "
        f"(This process computed for {drain.python_share:.0%} of the time{server}.)"
    )


def _disk_ms(figures: Figures) -> float:
    """Return by how many ms a call that writes is slower than one that does not; 0 if it is less than `_DISK_MS`."""
    longer = figures.submit.waited_ms - figures.calls.waited_ms
    return longer if longer >= _DISK_MS and longer >= figures.calls.waited_ms else 0.0
