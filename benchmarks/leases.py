"""Leases: what renewing ten thousand of them costs, as a worker does it every third of their time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

import attrs

from benchmarks import work
from benchmarks.report import Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.claiming import Claimed

LEASES: Final = 10_000
_ROUNDS: Final = 5
_LONGEST_US: Final = 3000


@attrs.frozen(kw_only=True)
class Renewal:
    """One renewal of all leases.

    Attributes:
        seconds: from its beginning to its end.
        server_us: the server's time, microseconds.
        calls: calls of functions.
    """

    seconds: float
    server_us: float
    calls: int


def table() -> Table:
    """Measure on a server of its own."""
    with Server() as server:
        engine = open_engine(server.url)
        engine.prepare()
        work.fill(server.url, LEASES)
        claimed: list[Claimed] = []
        while len(claimed) < LEASES:
            claimed += work.claim_some(engine, min(MAX_BATCH_ITEMS, LEASES - len(claimed)))
        handles = [each.handle for each in claimed]
        renewals = []
        for _ in range(_ROUNDS):
            server.reset()
            began = time.perf_counter()
            for result in engine.renew_many(handles):
                if isinstance(result, EngineError):
                    raise result
            seconds = time.perf_counter() - began
            renewals.append(
                Renewal(seconds=seconds, server_us=server.function_microseconds(), calls=server.function_calls())
            )
        engine.close()
    return table_of(renewals)


def table_of(renewals: Sequence[Renewal]) -> Table:
    """Return the medians, and whether a call is short enough."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    average = median([each.server_us / each.calls for each in renewals])
    return Table(
        title=f"Renewal of {LEASES:,} leases",
        headings=["ms in all", "ms in the server", "us per lease", "calls", "us per call", "at most", "reached"],
        rows=[
            [
                number(median([each.seconds * 1000 for each in renewals])),
                number(median([each.server_us / 1000 for each in renewals])),
                number(median([each.server_us / LEASES for each in renewals])),
                number(median([each.calls for each in renewals])),
                number(average),
                number(_LONGEST_US),
                verdict([average <= _LONGEST_US]),
            ]
        ],
        notes=[f"Medians of {_ROUNDS} renewals, the average call of each; a worker has them renewed in 10 s."],
    )
