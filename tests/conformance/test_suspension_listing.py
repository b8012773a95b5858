"""Lists of what waits: in the order of the moments, whole over pages, of one namespace, and without tokens."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.conditions import AllOf, SignalMatcher, Single
from flowfabric_worker.engine.types.suspension import SuspendedExecutionEntry, TimeoutBehavior, WaitpointState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    LANE,
    claim_one,
    queue,
    refused,
    request,
    running,
    tenant,
)
from tests.support.suspensions import MINUTE, SECOND, signal, suspend, waiting_for


def listed(engine: Engine, partition: int, limit: int = 100) -> list[SuspendedExecutionEntry]:
    """Return every row of a partition, read in pages."""
    rows, cursor = [], None
    while True:
        page = engine.list_suspended(partition, cursor, limit)
        assert len(page.executions) <= limit
        rows += [row for row in page.executions if isinstance(row, SuspendedExecutionEntry)]
        cursor = page.next_cursor
        if cursor is None:
            return rows


def all_suspended(engine: Engine, clock: Clock, count: int) -> list[ExecutionId]:
    """Suspend so many executions of one partition, of three lanes, three at each moment; return them in their order."""
    suspended = []
    for number in range(count):
        lane = f"lane-{number % 3}"
        (execution,) = queue(engine, 1, lane=lane) if not suspended else [_beside(engine, suspended[0], lane)]
        engine.suspend(claim_one(engine, lane).handle, waiting_for("go", timeout=MINUTE if number % 2 else None))
        suspended.append(execution)
        if number % 3 == 2:
            clock.move(SECOND)
    return suspended


def _beside(engine: Engine, other: ExecutionId, lane: str) -> ExecutionId:
    while True:
        (execution,) = queue(engine, 1, lane=lane)
        if execution.partition_number == other.partition_number:
            return execution
        for claimed in engine.claim_many(request(lane, limit=9)):
            engine.complete(claimed.handle)


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
def test_suspended_executions_are_listed_by_moment_and_id(engine: Engine, clock: Clock, limit: int) -> None:
    executions = all_suspended(engine, clock, 10)

    rows = listed(engine, executions[0].partition_number, limit)

    assert [row.execution_id for row in rows] == executions
    assert [row.suspended_at_ms for row in rows] == sorted(row.suspended_at_ms for row in rows)
    assert {row.timeout_at_ms is None for row in rows} == {True, False}
    assert {row.timeout_behavior for row in rows} == {TimeoutBehavior.FAIL}


def test_a_page_goes_on_behind_an_execution_that_was_resumed_meanwhile(engine: Engine, clock: Clock) -> None:
    executions = all_suspended(engine, clock, 6)
    partition = executions[0].partition_number
    first = engine.list_suspended(partition, limit=2)

    for execution in executions[:2]:
        engine.resume_execution(execution)

    second = engine.list_suspended(partition, first.next_cursor, 100)
    assert [getattr(row, "execution_id", None) for row in second.executions] == executions[2:]


def test_another_namespace_sees_nothing_of_what_waits(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    (waitpoint,) = suspend(engine, claimed, "go")
    other = tenant(engine, "other")
    before = dump()

    assert other.list_suspended(claimed.execution_id.partition_number).executions == ()
    with refused("execution_not_found"):
        signal(other, claimed.execution_id, waitpoint)
    with refused("execution_not_found"):
        other.list_pending_waitpoints(claimed.execution_id)
    with refused("execution_not_found"):
        other.resume_execution(claimed.execution_id)
    with refused("execution_not_found"):
        other.observe_signals(claimed.handle)
    assert dump() == before


def test_a_waitpoint_keeps_the_document_that_it_showed_first(engine: Engine, dump: Dump) -> None:
    claimed = running(engine)
    first = engine.create_waitpoint(claimed.handle, "deploy", MINUTE, b'{"amount": 5}')
    (row,) = engine.list_pending_waitpoints(claimed.execution_id).waitpoints
    assert (getattr(row, "shown", None), "amount" in repr(row)) == (b'{"amount": 5}', False)
    before = dump()

    with refused("document_mismatch") as caught:
        engine.create_waitpoint(claimed.handle, "deploy", MINUTE, b'{"amount": 6}')
    with refused("document_mismatch"):
        engine.suspend(claimed.handle, waiting_for("deploy", shown=b'{"amount": 6}'))

    assert caught.value.details["waitpoint_key"] == "deploy"
    assert dump() == before
    assert engine.create_waitpoint(claimed.handle, "deploy", MINUTE, b'{"amount": 5}') == first
    (waitpoint,) = suspend(engine, claimed, "deploy", shown=b'{"amount": 5}')
    signal(engine, claimed.execution_id, waitpoint)
    with refused("document_mismatch"):
        engine.create_waitpoint(claim_one(engine, claimed.handle.lane).handle, "deploy", MINUTE, b"other")


def test_large_documents_are_listed_in_bounded_calls(engine: Engine) -> None:
    claimed = running(engine, lease=timedelta(minutes=5))
    for number in range(60):
        engine.create_waitpoint(claimed.handle, f"w{number}", MINUTE, bytes([number]) * 64 * 1024)

    rows = engine.list_pending_waitpoints(claimed.execution_id).waitpoints

    assert sorted(getattr(row, "shown", b"")[0] for row in rows) == list(range(60))


def test_the_waitpoints_of_a_suspension_are_listed_with_what_they_wait_for(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "later", MINUTE)
    condition = AllOf([Single("a", SignalMatcher("yes")), Single("b"), Single("a", SignalMatcher("also"))])
    clock.move(SECOND)
    a, b = suspend(engine, claimed, "a", "b", condition=condition, timeout=MINUTE)

    listed = {each.waitpoint_id: each for each in engine.list_pending_waitpoints(claimed.execution_id).waitpoints}

    assert list(listed) == sorted([pending.waitpoint_id, a.waitpoint_id, b.waitpoint_id])
    first, second, third = (listed[each.waitpoint_id] for each in (pending, a, b))
    assert (first.state, first.activated_at_ms, first.required_signal_names) == (WaitpointState.PENDING, None, ())
    assert (second.state, second.required_signal_names) == (WaitpointState.ACTIVE, ("also", "yes"))
    assert (third.required_signal_names, third.expires_at_ms) == ((), clock.ms + 60_000)
    assert (second.activated_at_ms, second.created_at_ms, second.token_kid) == (clock.ms, clock.ms, "k1")
    assert second.token_fingerprint == a.token.partition(":")[2][:16]
