"""Calls of many threads on the members of the same flows, on a Postgres server."""

from __future__ import annotations

import contextlib
from uuid import uuid4

from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.edges import AllEnded, AnyOf, EdgeDependencyPolicy, OnSatisfied
from flowfabric_worker.engine.types.flows import FlowState
from tests.support.executions import request
from tests.support.flows import graph_of
from tests.support.postgres import PostgresServer
from tests.support.threads import together

PARENTS = [f"p{number}" for number in range(8)]
ENDED = (FlowState.COMPLETED, FlowState.FAILED)
POLICIES: dict[str, EdgeDependencyPolicy] = {
    "x": AnyOf(OnSatisfied.CANCEL_REMAINING),
    "y": AllEnded(),
    "z": AnyOf(OnSatisfied.LET_RUN),
}


def deadlocks(server: PostgresServer) -> int:
    return (server.folder / "log").read_text().count("deadlock detected")


def test_ends_and_cancellations_of_many_members_never_deadlock(postgres: PostgresServer) -> None:
    engine = open_engine(f"{postgres.url}&schema=t{uuid4().hex[:12]}")
    engine.prepare()
    pairs = [(parent, child) for parent in PARENTS for child in POLICIES]
    submitted = [engine.submit_flow(graph_of(*pairs, policies=POLICIES)) for _ in range(8)]
    before = deadlocks(postgres)

    def have_ended() -> bool:
        snapshots = [engine.describe_flow(each.flow_id) for each in submitted]
        return all(each is not None and each.state in ENDED for each in snapshots)

    def work(thread: int) -> None:
        for each in submitted if thread < 3 else ():
            with contextlib.suppress(StateError):
                engine.cancel_execution(CancelExecutionArgs(execution_id=each.execution_ids["xyz"[thread]]))
        while not have_ended():
            held = [each.handle for each in engine.claim_many(request(worker=f"w{thread}", limit=24))]
            engine.renew_many(held)
            engine.complete_many([Completion(handle=each, payload=b"") for each in reversed(held)])

    together(6, work)
    engine.close()
    assert deadlocks(postgres) == before
