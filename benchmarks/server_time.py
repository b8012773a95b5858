"""Time in the server: what each function takes there per execution, beside the bare commands that it needs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from benchmarks import work
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.claiming import Claimed

T = TypeVar("T")

BATCH: Final = 100
LARGE: Final = 500
_ROUNDS = 40
_MOST_TIMES = 2.5
_LONGEST_US = 3000
_OPERATIONS = ("create", "claim", "complete")
_BARE = Path(__file__).with_name("bare_commands.lua")


@attrs.define
class Times:
    """Microseconds in the server, by what was run: of one execution, and of one call."""

    each: dict[str, list[float]] = attrs.field(factory=dict)
    calls: dict[str, list[float]] = attrs.field(factory=dict)

    def note(self, what: str, microseconds: float, calls: int, items: int) -> None:
        self.each.setdefault(what, []).append(microseconds / items)
        self.calls.setdefault(what, []).append(microseconds / calls)

    def median(self, what: str) -> float:
        return statistics.median(self.each[what])

    def longest(self, what: str) -> float:
        """Return the time of a call that only one in twenty exceeds: the longest of all tells of the machine, not of
        us.
        """
        ordered = sorted(self.calls[what])
        return ordered[len(ordered) * 19 // 20]


def tables() -> list[Table]:
    """Measure on a server of its own, the functions and the bare commands in turns."""
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        server.load(_BARE.read_text())
        # The first use of a lane registers it: that is no cost of later ones.
        work.complete(engine, work.claim(engine, _created(engine, 1)))
        times, large = Times(), Times()
        for turn in range(_ROUNDS):
            _ours(engine, server, times, BATCH)
            _bare(server, times, turn)
            _ours(engine, server, large, LARGE)
        memory = _memory(engine, server)
        engine.close()
    return [_times_table(times, large), _memory_table(memory)]


def _ours(engine: Engine, server: Server, times: Times, size: int) -> None:
    _timed(server, times, "create", size, lambda: _created(engine, size))
    claimed = _timed(server, times, "claim", size, lambda: _claimed(engine, size))
    _timed(server, times, "complete", size, lambda: work.complete(engine, claimed))


def _bare(server: Server, times: Times, turn: int) -> None:
    for name in _OPERATIONS:
        _timed(server, times, f"bare {name}", BATCH, lambda name=name: server.run(f"bare_{name}", turn * BATCH, BATCH))


def _created(engine: Engine, size: int) -> int:
    work.create(engine, size)
    return size


def _claimed(engine: Engine, size: int) -> list[Claimed]:
    """Return as many as that, in as many calls as the store wants."""
    claimed: list[Claimed] = []
    while len(claimed) < size:
        some = work.claim_some(engine, size - len(claimed))
        if not some:
            raise RuntimeError(f"claimed {len(claimed)} executions instead of {size}")
        claimed += some
    return claimed


def _timed(server: Server, times: Times, what: str, size: int, operation: Callable[[], T]) -> T:
    server.reset()
    result = operation()
    times.note(what, server.function_microseconds(), server.function_calls(), size)
    return result


def _memory(engine: Engine, server: Server) -> dict[str, float]:
    """Bytes that a queued, a running and an ended execution take."""
    sizes: dict[str, float] = {}
    count = 20 * LARGE
    empty = server.memory()
    for _ in range(20):
        _created(engine, LARGE)
    sizes["queued"] = (server.memory() - empty) / count
    claimed = _claimed(engine, count)
    sizes["running"] = (server.memory() - empty) / count
    for first in range(0, count, LARGE):
        work.complete(engine, claimed[first : first + LARGE])
    sizes["ended"] = (server.memory() - empty) / count
    return sizes


def _times_table(times: Times, large: Times) -> Table:
    rows = []
    totals = [0.0, 0.0]
    for name in _OPERATIONS:
        ours, bare = times.median(name), times.median(f"bare {name}")
        longest = max(times.longest(name), large.longest(name))
        if name != "create":
            totals = [totals[0] + ours, totals[1] + bare]
        rows.append(_line(name, ours, bare, longest if name == "create" else None, number(longest)))
    rows.append(_line("claim + complete", *totals, max(large.longest("claim"), large.longest("complete")), NOTHING))
    return Table(
        title="Time in the server",
        headings=[
            "operation",
            "per execution, us",
            "bare commands, us",
            "times",
            "at most",
            "longest call, us",
            "reached",
        ],
        rows=rows,
        notes=[
            f"commandstats, medians of {_ROUNDS} batches of {BATCH}, in turns with the bare commands in one function;",
            f"longest call: the 95th percentile, also of requests for {LARGE} at once; at most {_LONGEST_US:,} us.",
        ],
    )


def _line(name: str, ours: float, bare: float, longest: float | None, shown: str) -> list[str]:
    times = ours / bare
    judged = longest is not None
    reached = verdict([times <= _MOST_TIMES, longest is not None and longest <= _LONGEST_US]) if judged else NOTHING
    return [
        name,
        number(ours),
        number(bare),
        number(times),
        f"{_MOST_TIMES:g} x" if judged else NOTHING,
        shown,
        reached,
    ]


def _memory_table(sizes: dict[str, Any]) -> Table:
    return Table(
        title="Memory of an execution",
        headings=["state", "bytes in the server"],
        rows=[[state, number(size)] for state, size in sizes.items()],
        notes=["A payload of 3 bytes, no tags, all indexes and the feed with it."],
    )
