"""The bytes that an execution adds to the append-only file and to the stream of a replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

import attrs

from benchmarks import work
from benchmarks.report import Table, number
from benchmarks.server import Server
from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.attempts import Failure, FailureReason
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

COUNT: Final = 2000
_BATCH: Final = 100
_AT_ONCE: Final = RetryPolicy(max_retries=3, initial=timedelta(milliseconds=1), jitter=False)


@attrs.frozen(kw_only=True)
class Written:
    """Bytes that one execution of a kind made the server write.

    Attributes:
        to_file: to the append-only file.
        to_replica: to each replica.
    """

    kind: str
    to_file: float
    to_replica: float


def table() -> Table:
    """Measure on a server that has a replica."""
    with Server() as server, Server() as replica:
        replica.follow(server)
        engine = open_engine(server.url)
        engine.prepare()
        kinds = {
            "plain: created, claimed, completed": _plain,
            "mixed: key, tags, a renewal, a step, progress, a failure, a retry": _mixed,
        }
        # The first batch registers lanes and classes.
        for run in kinds.values():
            run(engine, _BATCH)
        written = [_measure(server, engine, kind, run) for kind, run in kinds.items()]
        engine.close()
    return table_of(written)


def _measure(server: Server, engine: Engine, kind: str, run: Callable[[Engine, int], None]) -> Written:
    file, replicas = server.file_bytes(), server.replication_bytes()
    for _ in range(COUNT // _BATCH):
        run(engine, _BATCH)
    return Written(
        kind=kind,
        to_file=(server.file_bytes() - file) / COUNT,
        to_replica=(server.replication_bytes() - replicas) / COUNT,
    )


def _plain(engine: Engine, count: int) -> None:
    work.create(engine, count)
    work.complete(engine, _claimed(engine, count))


_number = iter(range(10**9))


def _mixed(engine: Engine, count: int) -> None:
    args = [
        CreateExecutionArgs(
            lane="default",
            task="noop",
            payload=b'[[7], {"to": "a@b.c"}]',
            codec="json",
            idempotency_key=f"order-{next(_number)}",
            tags={"customer": "c-1234", "color": "red"},
            policy=ExecutionPolicy(retry=_AT_ONCE),
        )
        for _ in range(count)
    ]
    _check(engine.create_executions(args))
    claimed = _claimed(engine, count)
    _check(engine.renew_many([each.handle for each in claimed]))
    for each in claimed:
        engine.record_step(each.handle, "charge", b'{"paid": true}')
        engine.progress(each.handle, 50, "half")
    reason = FailureReason(message="ValueError: boom", detail=b"Traceback (most recent call last): ..." * 20)
    _check(
        engine.fail_many(
            [Failure(handle=each.handle, reason=reason, classification=FailureClass.TRANSIENT) for each in claimed]
        )
    )
    work.complete(engine, _claimed(engine, count))


def _claimed(engine: Engine, count: int) -> list[Claimed]:
    """Return as many as that, in as many calls as the store wants; a retry may need a moment to become ready."""
    claimed: list[Claimed] = []
    while len(claimed) < count:
        claimed += work.claim_some(engine, count - len(claimed))
    return claimed


def _check(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, EngineError):
            raise result


def table_of(written: Sequence[Written]) -> Table:
    """Return what was measured; nothing is asked of it."""
    return Table(
        title="Bytes written by an execution",
        headings=["execution", "to the append-only file", "to each replica"],
        rows=[[each.kind, number(each.to_file), number(each.to_replica)] for each in written],
        notes=[f"Averages of {COUNT:,} of each kind, in batches of {_BATCH}."],
    )
