"""On Postgres: this library beside its peers, waits, a drain beside an open snapshot, and sizes after many ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from benchmarks import comparison, waits
from benchmarks.comparison import Tell
from benchmarks.environments import Script
from benchmarks.postgres_server import PostgresBench
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.rows import POSTGRES_ROWS
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

_BATCH: Final = 500
_LEAST_SHARE: Final = 0.5
_SIZES = """
SELECT c.relname, pg_relation_size(c.oid), pg_indexes_size(c.oid) FROM pg_class AS c
WHERE c.relnamespace = 'ff'::regnamespace AND c.relkind = 'r' ORDER BY pg_total_relation_size(c.oid) DESC LIMIT 3
"""


def versions(chosen: Sequence[Script], cache: Path, tell: Tell) -> dict[str, str]:
    """Return the measured versions by peer, and that of the server."""
    with PostgresBench() as server:
        return {"Postgres": server.version, **comparison.versions(server, chosen, cache, tell)}


def tables(chosen: Sequence[Script], *, tasks: int, rounds: int, cache: Path, tell: Tell) -> list[Table]:
    """Measure everything; each table has a server of its own."""
    with PostgresBench() as server:
        figures = comparison.compare(server, chosen, POSTGRES_ROWS, tasks=tasks, rounds=rounds, cache=cache, tell=tell)
    tell("Measuring waits on Postgres")
    with PostgresBench() as server:
        waited = waits.measure(server.url)
    tell("Draining beside an open snapshot")
    with PostgresBench() as server:
        drained = _beside_a_snapshot(server, tasks)
    tell("Removing what ended")
    with PostgresBench("autovacuum_naptime=1s") as server:
        sizes = _after_many_ends(server, tasks)
    return [
        comparison.table(figures, chosen, POSTGRES_ROWS, tasks=tasks, rounds=rounds, title="Beside its peers"),
        waits.table_of(waited, title="Waits on Postgres"),
        drained,
        sizes,
    ]


def _engine(server: PostgresBench) -> Engine:
    engine = open_engine(server.url)
    engine.prepare()
    return engine


def _create(engine: Engine, count: int, policy: ExecutionPolicy | None = None) -> None:
    for first in range(0, count, _BATCH):
        engine.create_executions(
            [
                CreateExecutionArgs(lane="default", task="noop", payload=b"1", policy=policy or ExecutionPolicy())
                for _ in range(min(_BATCH, count - first))
            ]
        )


def _drain(engine: Engine) -> int:
    """Claim and complete what is ready; return how many."""
    drained = 0
    request = ClaimRequest(
        lanes=(LaneRequest(lane="default"),),
        limit=100,
        policy=ClaimPolicy(worker_id="benchmark", worker_instance_id="benchmark"),
    )
    while claimed := engine.claim_many(request):
        engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in claimed])
        drained += len(claimed)
    return drained


def _beside_a_snapshot(server: PostgresBench, tasks: int) -> Table:
    """Drain with and without another session that holds a snapshot open, as a dump or a report does."""
    rates = []
    for is_open in (False, True):
        server.clear()
        engine = _engine(server)
        _create(engine, tasks)
        with server.session() as session:
            if is_open:
                session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                session.execute("SELECT count(*) FROM ff.executions")
            began = time.perf_counter()
            drained = _drain(engine)
            rates.append(drained / (time.perf_counter() - began))
        engine.close()
    share = rates[1] / rates[0]
    return Table(
        title="A drain beside an open snapshot",
        headings=["what", "per s", "share", "must reach", "reached"],
        rows=[
            ["no other session", number(rates[0]), NOTHING, NOTHING, NOTHING],
            [
                "another session holds a snapshot", number(rates[1]), number(share), number(_LEAST_SHARE),
                verdict([share >= _LEAST_SHARE]),
            ],
        ],
        notes=[f"One thread claims and completes {tasks:,} executions, 100 at a time, without a handler."],
    )  # fmt: skip


def _after_many_ends(server: PostgresBench, tasks: int) -> Table:
    """Return the sizes of the largest tables after many executions ended that are kept for a second."""
    engine = _engine(server)
    kept = ExecutionPolicy(retention=timedelta(seconds=1))
    rows = []
    for part in range(1, 6):
        _create(engine, tasks, kept)
        _drain(engine)
        rows += [
            [f"{part * tasks:,} ended", name, f"{table / 1e6:.1f} MB", f"{indexes / 1e6:.1f} MB"]
            for name, table, indexes in server.rows(_SIZES)
        ]
    engine.close()
    return Table(
        title="Sizes with retention on Postgres",
        headings=["when", "table", "rows", "indexes"],
        rows=rows,
        notes=[
            "Executions are kept for one second after their end; their ends stay in the feed for a day.",
            "The measurement is short, so the server looks every second for tables to vacuum (autovacuum_naptime).",
        ],
    )
