"""Listings: a page of few executions, found by lane or by state among very many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import attrs

from benchmarks import work
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.server import Server
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.attempts import Failure, FailureReason
from flowfabric_worker.engine.types.claiming import ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

QUEUED: Final = 200_000
FEW: Final = 100
_ROUNDS: Final = 5
_LONGEST_US: Final = 3000
_MOST_MS: Final = 20
_LANE = "few"
_FILTERS: Final = {
    "none": ExecutionFilter(),
    f"lane {_LANE}": ExecutionFilter(lane=_LANE),
    "state active": ExecutionFilter(state=PublicState.ACTIVE),
    "state failed": ExecutionFilter(state=PublicState.FAILED),
    f"lane {_LANE}, state failed": ExecutionFilter(lane=_LANE, state=PublicState.FAILED),
    "task, without an index": ExecutionFilter(task="another"),
}


@attrs.frozen(kw_only=True)
class Page:
    """What one page of a listing took.

    Attributes:
        found: the executions on it.
        looked_at: the executions that the server looked at.
        seconds: from its beginning to its end.
        server_us: the server's time, microseconds.
        calls: calls of functions.
        indexed: whether indexes answer the filter.
    """

    found: int
    looked_at: int
    seconds: float
    server_us: float
    calls: int
    indexed: bool


def table(queued: int = QUEUED) -> Table:
    """Measure on a server of its own, which holds `queued` waiting executions and few others."""
    with Server() as server:
        work.fill(server.url, queued // 2)
        engine = open_engine(server.url)
        _make_few(engine)
        work.fill(server.url, queued - queued // 2)
        pages = {name: [_page(engine, server, wanted) for _ in range(_ROUNDS)] for name, wanted in _FILTERS.items()}
        engine.close()
    return table_of(pages, queued)


def _make_few(engine: Engine) -> None:
    """Make executions of a lane that has no others: of each three, one fails, one stays active and one waits."""
    args = CreateExecutionArgs(lane=_LANE, task="noop", payload=b"[1]", codec="json")
    engine.create_executions([args] * 3 * FEW)
    policy = ClaimPolicy(worker_id="benchmark", worker_instance_id="benchmark", lease=timedelta(hours=1))
    request = ClaimRequest(lanes=(LaneRequest(lane=_LANE),), policy=policy, limit=2 * FEW)
    claimed = engine.claim_many(request)
    reason = FailureReason(message="no")
    failures = [Failure(handle=each.handle, reason=reason, classification=FailureClass.PERMANENT) for each in claimed]
    engine.fail_many(failures[::2])


def _page(engine: Engine, server: Server, wanted: ExecutionFilter) -> Page:
    server.reset()
    began = time.perf_counter()
    page = engine.list_executions(limit=FEW, filter=wanted)
    seconds = time.perf_counter() - began
    return Page(
        found=len(page.executions),
        looked_at=page.looked_at,
        seconds=seconds,
        server_us=server.function_microseconds(),
        calls=server.function_calls(),
        indexed=not page.unindexed,
    )


def table_of(pages: Mapping[str, Sequence[Page]], queued: int) -> Table:
    """Return the medians, whether a call is short enough, and whether an indexed page is fast enough."""

    def line(name: str, rounds: Sequence[Page]) -> list[str]:
        took = statistics.median(each.seconds * 1000 for each in rounds)
        call = statistics.median(each.server_us / each.calls for each in rounds)
        one = rounds[0]
        is_soon = took <= _MOST_MS or not one.indexed
        return [
            name,
            number(one.found),
            number(one.looked_at),
            number(one.calls),
            number(took),
            number(_MOST_MS) if one.indexed else NOTHING,
            number(call),
            number(_LONGEST_US),
            verdict([is_soon and call <= _LONGEST_US]),
        ]

    return Table(
        title=f"Listings over {queued:,} executions",
        headings=["filter", "found", "looked at", "calls", "ms a page", "at most", "us per call", "at most", "reached"],
        rows=[line(name, rounds) for name, rounds in pages.items()],
        notes=[
            f"Medians of {_ROUNDS} first pages of {FEW}; lane {_LANE} holds {FEW} active, failed and waiting ones.",
            "us per call: the server's time in the average call of a page.",
        ],
    )
