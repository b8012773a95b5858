"""Listings of executions: pages, cursors, filters, and damaged records."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_CALL_ROWS
from flowfabric_worker.engine.partitions import partition_key
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.reads import ExecutionFilter, ExecutionSummary
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created
from tests.conftest import Clock
from tests.support.executions import (
    LANE,
    TASK,
    claim_one,
    created,
    creation,
    damage,
    put_into_newer_phase,
    raw_client,
    raw_key,
    refused,
    request,
    tenant,
)
from tests.support.suspensions import signal, suspended

SECOND = timedelta(seconds=1)


def created_many(engine: Engine, count: int, **changes: Any) -> list[ExecutionId]:
    """Return many new executions, sorted by id."""
    ids: list[ExecutionId] = []
    for first in range(0, count, 500):
        results = engine.create_executions([creation(**changes) for _ in range(min(500, count - first))])
        ids += [result.execution_id for result in results if isinstance(result, Created)]
    assert len(ids) == count
    return sorted(ids)


def paged(engine: Engine, limit: int, **arguments: Any) -> list[list[ExecutionSummary]]:
    """Return every page of a listing, until there is no next one."""
    pages = []
    cursor = None
    while True:
        page = engine.list_executions(cursor=cursor, limit=limit, **arguments)
        pages.append(list(page.executions))
        cursor = page.next_cursor
        if cursor is None:
            return pages


def ids_of(pages: list[list[ExecutionSummary]]) -> list[ExecutionId]:
    return [row.execution_id for page in pages for row in page]


def test_an_empty_store_lists_nothing(engine: Engine) -> None:
    page = engine.list_executions()

    assert (page.executions, page.next_cursor) == ((), None)


def test_a_listed_execution_shows_what_it_is(engine: Engine, clock: Clock) -> None:
    execution = created(engine, priority=7, tags={"a": "b"})

    assert engine.list_executions().executions == (
        ExecutionSummary(
            execution_id=execution,
            lane=LANE,
            task=TASK,
            public_state=PublicState.WAITING,
            priority=7,
            created_at_ms=clock.ms,
            tags={"a": "b"},
        ),
    )


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 1000])
def test_pages_of_any_size_show_every_execution_once_by_partition_and_id(engine: Engine, limit: int) -> None:
    ids = created_many(engine, 7)

    pages = paged(engine, limit)

    assert ids_of(pages) == ids
    assert all(len(page) == limit for page in pages[:-1])


def test_a_partition_lists_its_own_executions_and_together_they_list_all(engine: Engine) -> None:
    ids = created_many(engine, 60)

    listed = []
    for number in range(engine.partitions):
        part = ids_of(paged(engine, 3, partition=partition_key(number)))
        assert {each.partition_number for each in part} <= {number}
        listed += part

    assert listed == ids


def test_a_page_of_nothing_has_no_next_one(engine: Engine) -> None:
    created(engine)

    page = engine.list_executions(limit=0)

    assert (page.executions, page.next_cursor) == ((), None)


def test_a_page_holds_a_thousand_and_not_one_more(engine: Engine) -> None:
    ids = created_many(engine, 1001)

    page = engine.list_executions(limit=1000)

    assert [row.execution_id for row in page.executions] == ids[:1000]
    assert page.next_cursor == ids[999]
    with pytest.raises(ValidationError, match="0 to 1000"):
        engine.list_executions(limit=1001)


@pytest.mark.parametrize("limit", [-1, True, 1.0, None])
def test_a_page_of_an_impossible_size_is_refused(engine: Engine, limit: Any) -> None:
    for listing in (engine.list_executions, engine.list_lanes, engine.list_expired_leases):
        with refused("invalid_input"):
            listing(limit=limit)


@pytest.mark.parametrize("partition", ["", "{fp:}", "{fp:01}", "fp:0", "{fp:-1}", 0, b"{fp:0}"])
def test_an_invalid_partition_key_is_refused(engine: Engine, partition: Any) -> None:
    for listing in (engine.list_executions, engine.list_expired_leases):
        with refused("invalid_partition_key"):
            listing(partition=partition)


def test_a_partition_that_the_store_lacks_is_refused(engine: Engine) -> None:
    with refused("partition_mismatch"):
        engine.list_executions(partition=partition_key(engine.partitions))


FOREIGN = ExecutionId(1023, "0192f3a4-0000-7000-8000-000000000001")


@pytest.mark.parametrize("cursor", ["{fp:0}:x", 5, ExecutionId(0, "x"), FOREIGN])
def test_an_invalid_cursor_of_a_listing_is_refused(engine: Engine, cursor: Any) -> None:
    with refused("invalid_cursor"):
        engine.list_executions(cursor=cursor)


def test_a_cursor_of_another_partition_is_refused(engine: Engine) -> None:
    cursor = ExecutionId(1, ExecutionId.mint().uuid)

    with refused("invalid_cursor"):
        engine.list_executions(partition=partition_key(0), cursor=cursor)


def test_a_listing_goes_on_behind_a_cursor_whose_execution_is_gone(engine: Engine) -> None:
    ids = created_many(engine, 3)
    engine.cancel_execution(CancelExecutionArgs(execution_id=ids[0]))
    engine.purge(ids[0])

    assert [row.execution_id for row in engine.list_executions(cursor=ids[0]).executions] == ids[1:]


def test_a_listing_is_stable_while_executions_come_and_go(engine: Engine) -> None:
    ids = created_many(engine, 10)
    seen: list[ExecutionId] = []
    cursor = None
    for turn in range(100):
        page = engine.list_executions(cursor=cursor, limit=1)
        seen += [row.execution_id for row in page.executions]
        if turn < 5:
            created(engine)
        if turn == 1:
            engine.cancel_execution(CancelExecutionArgs(execution_id=seen[0]))
            engine.purge(seen[0])
        cursor = page.next_cursor
        if cursor is None:
            break

    assert [each for each in seen if each in ids] == ids
    assert len(seen) == len(set(seen))


def test_filters_are_by_lane_state_task_and_tags_and_all_must_hold(engine: Engine) -> None:
    a = created(engine, lane="a", task="t", tags={"x": "1", "y": "1"})
    b = created(engine, lane="b", task="t", tags={"x": "1"})
    c = created(engine, lane="b", task="u", delay=SECOND)
    cases: list[tuple[dict[str, Any], set[ExecutionId]]] = [
        ({}, {a, b, c}),
        ({"lane": "b"}, {b, c}),
        ({"task": "t"}, {a, b}),
        ({"state": PublicState.DELAYED}, {c}),
        ({"state": "delayed"}, {c}),
        ({"tags": {"x": "1"}}, {a, b}),
        ({"tags": {"x": "1", "y": "1"}}, {a}),
        ({"tags": {"x": "2"}}, set()),
        ({"lane": "b", "task": "t", "state": PublicState.WAITING, "tags": {"x": "1"}}, {b}),
        ({"lane": "nowhere"}, set()),
    ]

    for conditions, expected in cases:
        pages = paged(engine, 1, filter=ExecutionFilter(**conditions))
        assert set(ids_of(pages)) == expected
        assert len(pages) == max(1, len(expected))


def test_a_filter_without_an_index_looks_at_ten_thousand_a_page(engine: Engine) -> None:
    needle = created(engine, tags={"needle": "yes"})
    created_many(engine, 10_500, payload=None)
    last = created(engine, tags={"needle": "yes"})
    wanted = ExecutionFilter(tags={"needle": "yes"})

    first = engine.list_executions(limit=5, filter=wanted)
    second = engine.list_executions(limit=5, filter=wanted, cursor=first.next_cursor)

    assert {row.execution_id for page in (first, second) for row in page.executions} == {needle, last}
    assert first.unindexed == ("tags",)
    assert 10_000 <= first.looked_at <= 10_000 + MAX_CALL_ROWS
    assert first.looked_at + second.looked_at == 10_502
    assert second.next_cursor is None


def test_a_filter_by_lane_or_state_looks_only_at_what_matches(engine: Engine) -> None:
    created_many(engine, 600)
    mine = created(engine, lane="mine")
    ids = created_many(engine, 5, lane="busy", delay=SECOND)
    for each in ids[1:3]:
        engine.cancel_execution(CancelExecutionArgs(execution_id=each))
    cases: list[tuple[dict[str, Any], list[ExecutionId]]] = [
        ({"lane": "mine"}, [mine]),
        ({"state": PublicState.CANCELLED}, ids[1:3]),
        ({"lane": "busy", "state": PublicState.DELAYED}, [ids[0], *ids[3:]]),
        ({"lane": LANE, "state": PublicState.CANCELLED}, []),
    ]

    for conditions, expected in cases:
        page = engine.list_executions(filter=ExecutionFilter(**conditions))
        assert [row.execution_id for row in page.executions] == expected
        assert (page.unindexed, page.next_cursor) == ((), None)
        assert page.looked_at <= 5


def test_a_condition_without_an_index_walks_the_index_of_another_one(engine: Engine) -> None:
    created_many(engine, 600)
    ids = created_many(engine, 3, lane="mine", task="other")
    wanted = ExecutionFilter(lane="mine", state=PublicState.WAITING, task="other", tags={"no": "such"})

    page = engine.list_executions(filter=wanted)

    assert (page.executions, page.looked_at, page.unindexed) == ((), len(ids), ("state", "task", "tags"))


def test_a_suspended_execution_is_listed_until_it_goes_on(engine: Engine) -> None:
    resumed, waitpoint = suspended(engine)
    kept, _ = suspended(engine)
    wanted = ExecutionFilter(state=PublicState.SUSPENDED)

    before = engine.list_executions(filter=wanted)
    signal(engine, resumed, waitpoint)
    after = engine.list_executions(filter=wanted)

    assert {row.execution_id for row in before.executions} == {resumed, kept}
    assert [row.execution_id for row in after.executions] == [kept]
    assert (before.looked_at, after.looked_at, after.unindexed) == (2, 1, ())


def test_large_indexes_with_few_common_executions_hide_nothing_behind(engine: Engine) -> None:
    created_many(engine, 450, lane="theirs", delay=SECOND)
    created_many(engine, 450, lane="mine")
    last = created(engine, lane="mine", delay=SECOND)

    pages = paged(engine, 1, filter=ExecutionFilter(lane="mine", state=PublicState.DELAYED))

    assert ids_of(pages) == [last]
    assert len(pages) == 1


def test_two_namespaces_list_their_own(engine: Engine) -> None:
    other = tenant(engine, "defaul")
    mine, theirs = created(engine), created(other)

    assert ids_of(paged(engine, 10)) == [mine]
    assert ids_of(paged(other, 10)) == [theirs]
    assert ids_of(paged(tenant(engine, "defaults"), 10)) == []


@pytest.mark.parametrize("field", ["state", "class", "priority", "created", "tags"])
def test_a_damaged_execution_is_marked_and_the_page_goes_on(engine: Engine, field: str) -> None:
    ids = created_many(engine, 3)
    damage(engine, ids[1], field, b"what is this?")

    rows = [row for page in paged(engine, 1) for row in page]

    assert [row.execution_id for row in rows] == ids
    assert [row.corruption is not None for row in rows] == [False, True, False]
    assert field in str(rows[1].corruption)
    assert (rows[1].lane, rows[1].public_state) == (None, None)


def test_an_execution_in_a_newer_releases_phase_is_listed_without_a_state(engine: Engine) -> None:
    newer = created(engine, lane="mail")
    put_into_newer_phase(engine, newer)

    (row,) = engine.list_executions(limit=10).executions

    assert (row.execution_id, row.lane, row.public_state, row.corruption) == (newer, "mail", None, None)


def test_a_damaged_execution_is_shown_by_a_filter_without_an_index(engine: Engine) -> None:
    execution = created(engine)
    damage(engine, execution, "class", b"what is this?")

    assert ids_of(paged(engine, 10, filter=ExecutionFilter(tags={"no": "such"}))) == [execution]


def test_an_execution_that_was_set_aside_is_shown_whatever_is_asked_for(engine: Engine) -> None:
    ids = created_many(engine, 3)
    damage(engine, ids[1], "class", b"what is this?")
    first, last = claim_one(engine), claim_one(engine)
    # Only a claim that finds no other work has looked in each partition.
    assert engine.claim_many(request()) == []

    assert sorted((first.execution_id, last.execution_id)) == [ids[0], ids[2]]
    assert ids_of(paged(engine, 1, filter=ExecutionFilter(lane="elsewhere"))) == [ids[1]]
    assert ids_of(paged(engine, 1, filter=ExecutionFilter(state=PublicState.ACTIVE))) == ids
    assert ids_of(paged(engine, 1, filter=ExecutionFilter(lane=LANE, state=PublicState.ACTIVE))) == ids
    assert ids_of(paged(tenant(engine, "defaul"), 1, filter=ExecutionFilter(lane=LANE))) == []


def test_an_index_entry_without_a_record_is_not_shown(engine: Engine) -> None:
    ids = created_many(engine, 3)
    client: Any = raw_client(engine, ids[1].partition_number)
    client.delete(raw_key(engine, ids[1].partition_number, f"x:{ids[1].uuid}"))

    assert ids_of(paged(engine, 1, filter=ExecutionFilter(lane=LANE))) == [ids[0], ids[2]]
    assert ids_of(paged(engine, 1)) == [ids[0], ids[2]]
