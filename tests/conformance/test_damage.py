"""damage: a damaged record harms itself alone; it is set aside, listed, and can be purged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import pack
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import (
    BOOM,
    LANE,
    all_created,
    claimed_ids,
    created,
    creation,
    damage,
    depths,
    ids_in,
    queue,
    raw_client,
    raw_key,
    refused,
    request,
    tenant,
    upkeep_all,
)

# Of work that waits to run, and of work that runs.
QUEUED: dict[str, tuple[bytes | None, ...]] = {
    "state": (None, b"", b"ready?", b"\xff"),
    "class": (None, b"garbage", b"7:default4:mail1:t0:0:0:", b"\xff"),
    "priority": (None, b"", b"high", b"1.5"),
    "place": (None, b"", b"soon"),
    "created": (None, b"yesterday"),
    "policy": (b"|", b"x", b"1|fixed|x|1|1.0|0||||||||", b"1|sometimes|1|1|1.0|0||||||||", b"\xff|"),
    "codec": (b"\xff",),
    "payload": (b"no mark",),
    "tags": (b"1:a", b"9:a", b"1:\xff1:b"),
    "fence": (b"a:b", b"garbage"),
    "attempt": (b"x", b"0|initial|fresh|1|"),
}
RUNNING: dict[str, tuple[bytes | None, ...]] = {
    "state": (None, b"", b"ready?"),
    "class": (None, b"garbage"),
    "priority": (None, b"high"),
    "place": (None, b"soon"),
    "fence": (None, b"garbage"),
    "expires": (None, b"", b"soon"),
    "policy": (b"|",),
    "attempt": (None, b"", b"x", b"0|initial|fresh|soon|"),
    "timeout_at": (b"soon",),
}
MORE: dict[str, tuple[bytes | None, ...]] = {
    "deadline": (b"soon",),
    "delay_until": (b"soon",),
    "dedup_until": (b"soon",),
    "timeout_at": (b"soon",),
    "reserved_until": (b"soon",),
    "retry_count": (b"many", b""),
    "reclaim_count": (b"many", b"", b"-1"),
    "watchers": (b"9:x",),
    "tags": (b"9:a",),
}


def cases(table: dict[str, tuple[bytes | None, ...]]) -> list[tuple[str, bytes | None]]:
    return [(field, value) for field, values in table.items() for value in values]


def listed(engine: Engine) -> list[str]:
    return [row.row_id for row in engine.list_damaged().executions]


def indexed(engine: Engine, execution_id: ExecutionId) -> list[bytes]:
    """Return the keys of sorted sets, other than the lists of everything and of what is damaged, that name an
    execution.
    """
    client: Any = raw_client(engine, execution_id.partition_number)
    base = raw_key(engine, execution_id.partition_number, "")
    aside = {raw_key(engine, execution_id.partition_number, name).encode() for name in ("ids", "damaged")}
    return [
        key
        for key in client.scan_iter(base + "*", _type="zset")
        if key not in aside and any(execution_id.uuid.encode() in member for member in client.zrange(key, 0, 9999))
    ]


@pytest.mark.parametrize(("field", "value"), cases(QUEUED))
def test_damaged_queued_work_is_set_aside_and_the_rest_is_claimed(
    engine: Engine, dump: Dump, field: str, value: bytes | None
) -> None:
    before = dump()
    ids = queue(engine, 5, tags={"a": "b"})
    damage(engine, ids[2], field, value)

    assert claimed_ids(engine) == [*ids[:2], *ids[3:]]
    assert claimed_ids(engine) == []
    assert listed(engine) == [str(ids[2])]
    assert indexed(engine, ids[2]) == []
    counted = depths(engine, LANE)
    assert counted[PublicState.ACTIVE] in (4, 5)
    assert sum(counted.values()) == 5

    engine.purge(ids[2])
    assert listed(engine) == []
    assert engine.read_execution_state(ids[2]) is None
    assert not any(ids[2].uuid in str(key) for key in dump().keys() - before.keys())
    if field not in ("state", "class"):
        assert depths(engine, LANE) == {PublicState.ACTIVE: 4}


def unmet(engine: Engine) -> None:
    """Let no function meet what is damaged."""


@pytest.mark.parametrize("field", ["state", "class", "priority"])
@pytest.mark.parametrize("before", [unmet, claimed_ids])
def test_a_purged_damaged_execution_leaves_no_index_entry(
    engine: Engine, field: str, before: Callable[[Engine], object]
) -> None:
    for lane in ("a", "b"):
        created(tenant(engine, "other"), lane=lane)
    (execution,) = queue(engine, 1)
    claimed_ids(engine)
    other = created(engine, lane="a", delay=timedelta(seconds=1))
    for each in (execution, other):
        damage(engine, each, field, b"what is this?")
        before(engine)

        engine.purge(each)

        assert indexed(engine, each) == []
    assert engine.list_executions().executions == ()


def test_damage_that_a_holder_meets_first_leaves_no_index_entry(engine: Engine) -> None:
    (execution,) = queue(engine, 1)
    (claimed,) = engine.claim_many(request(limit=1))
    damage(engine, execution, "class", b"what is this?")

    with refused("corruption"):
        engine.renew(claimed.handle)

    assert indexed(engine, execution) == []
    assert [row.execution_id for row in engine.list_executions().executions] == [execution]


def renewed(engine: Engine, held: Sequence[Claimed]) -> Sequence[object]:
    return engine.renew_many([each.handle for each in held])


def completed(engine: Engine, held: Sequence[Claimed]) -> Sequence[object]:
    return engine.complete_many([Completion(handle=each.handle) for each in held])


def failed(engine: Engine, held: Sequence[Claimed]) -> Sequence[object]:
    return engine.fail_many(
        [Failure(handle=each.handle, reason=BOOM, classification=FailureClass.PERMANENT) for each in held]
    )


def released(engine: Engine, held: Sequence[Claimed]) -> Sequence[object]:
    return engine.release_many([each.handle for each in held])


@pytest.mark.parametrize("operation", [renewed, completed, failed, released])
@pytest.mark.parametrize(("field", "value"), cases(RUNNING))
def test_a_damaged_item_is_answered_alone(
    engine: Engine, operation: Callable[[Engine, Sequence[Claimed]], Sequence[object]], field: str, value: bytes | None
) -> None:
    queue(engine, 5)
    held = engine.claim_many(request(limit=5))
    damage(engine, held[2].execution_id, field, value)

    answers = operation(engine, held)

    codes = [answer.code if isinstance(answer, EngineError) else None for answer in answers]
    assert codes == [None, None, "corruption", None, None]
    assert listed(engine) == [str(held[2].execution_id)]
    assert indexed(engine, held[2].execution_id) == []
    assert sum(depths(engine, LANE).values()) == 5


# What a claim reads only of work that had an attempt before.
AGAIN: dict[str, bytes] = {
    "steps": b"3",
    "attempts": b"3:abc",
    "attempt": b"0|initial",
    "started": b"x",
    "holder": b"1:a",
}


@pytest.mark.parametrize(("field", "value"), AGAIN.items())
def test_damaged_work_of_a_second_attempt_is_set_aside(engine: Engine, field: str, value: bytes) -> None:
    ids = queue(engine, 3)
    engine.release_many([each.handle for each in engine.claim_many(request(limit=3))])
    damage(engine, ids[1], field, value)

    assert claimed_ids(engine) == [ids[0], ids[2]]
    assert listed(engine) == [str(ids[1])]
    assert indexed(engine, ids[1]) == []


@pytest.mark.parametrize(("field", "value"), cases(MORE))
def test_a_damaged_record_that_is_due_stops_no_upkeep(
    engine: Engine, clock: Clock, field: str, value: bytes | None
) -> None:
    ids = queue(engine, 5, delay=timedelta(seconds=1))
    damage(engine, ids[2], field, value)
    damage(engine, ids[2], "more", b"1")

    clock.move(timedelta(seconds=2))
    upkeep_all(engine)

    assert claimed_ids(engine) == [*ids[:2], *ids[3:]]
    assert listed(engine) == [str(ids[2])]
    assert indexed(engine, ids[2]) == []


STRANGE_ENTRIES = (
    b"", b"x", b"xnothing", b"?", b"zsomething", b"q\xff", b"w1:a", b"cgarbage", b"k", b"b", b"g\xff", b"h", b"h1:a",
    b"h1:a1:b", b"jended:a:b", b"l1:a", b"t", b"u1:a", b"yflow",
)  # fmt: skip


@pytest.mark.parametrize("entry", STRANGE_ENTRIES)
def test_a_strange_due_entry_stops_no_claim_and_no_upkeep(engine: Engine, entry: bytes) -> None:
    (execution,) = queue(engine, 1)
    client: Any = raw_client(engine, execution.partition_number)
    client.zadd(raw_key(engine, execution.partition_number, "due"), {entry: 1})

    assert claimed_ids(engine) == [execution]
    assert not engine.run_upkeep().more


def test_another_kind_of_value_in_a_records_place_is_damage(engine: Engine) -> None:
    ids = queue(engine, 3)
    client: Any = raw_client(engine, ids[0].partition_number)
    key = raw_key(engine, ids[0].partition_number, f"x:{ids[1].uuid}")
    client.delete(key)
    client.set(key, "a text")

    assert claimed_ids(engine) == [ids[0], ids[2]]
    assert listed(engine) == [str(ids[1])]
    with refused("corruption"):
        engine.describe_execution(ids[1])
    assert [row.execution_id for row in engine.list_executions().executions] == ids
    engine.purge(ids[1])
    assert client.exists(key) == 0


def test_a_damaged_class_in_the_registry_stops_no_claim(engine: Engine) -> None:
    (execution,) = queue(engine, 1)
    client: Any = raw_client(engine, execution.partition_number)
    damaged = engine.packed_lane(LANE)
    client.zadd(
        raw_key(engine, execution.partition_number, "classes"), {damaged + b"9:x": 0, damaged + b"1:\xff0:0:0:": 0}
    )

    assert claimed_ids(engine) == [execution]


def test_a_damaged_holder_of_a_key_is_named_and_keeps_it(engine: Engine) -> None:
    first = engine.create_execution(creation(idempotency_key="k")).execution_id
    damage(engine, first, "dedup_until", b"soon")

    with refused("corruption") as caught:
        engine.create_execution(creation(idempotency_key="k"))

    assert caught.value.details == {"execution_id": str(first), "field": "dedup_until"}
    assert listed(engine) == [str(first)]


def test_damaged_executions_of_another_namespace_are_not_shown(engine: Engine) -> None:
    ids = queue(engine, 2)
    damage(engine, ids[0], "place", b"soon")
    claimed_ids(engine)

    assert engine.list_damaged().executions[0].corruption == f"{ids[0]}: place is damaged."
    assert tenant(engine, "other").list_damaged().executions == ()


def test_damaged_executions_are_listed_page_by_page(engine: Engine) -> None:
    ids = sorted((each for number in range(engine.partitions) for each in ids_in(engine, number, 3)), key=_order)
    all_created(engine, [creation(execution_id=each) for each in ids])
    for each in ids:
        damage(engine, each, "place", b"soon")
    while engine.claim_many(request(limit=500)):
        pass

    seen: list[str] = []
    cursor = None
    while True:
        page = engine.list_damaged(cursor=cursor, limit=2)
        seen += [row.row_id for row in page.executions]
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(page.executions) == 2
    assert seen == [str(each) for each in ids]


def _order(execution_id: ExecutionId) -> tuple[int, str]:
    return execution_id.partition_number, execution_id.uuid


def test_the_list_of_damaged_executions_has_a_bound(engine: Engine) -> None:
    ids = queue(engine, 2)
    client: Any = raw_client(engine, ids[0].partition_number)
    listing = raw_key(engine, ids[0].partition_number, "damaged")
    client.zadd(listing, {f"u{number}": 0 for number in range(1000)})
    damage(engine, ids[0], "place", b"soon")

    assert claimed_ids(engine) == [ids[1]]
    assert indexed(engine, ids[0]) == []
    assert client.zcard(listing) == 1000


def test_a_bad_entry_in_the_list_of_damaged_executions_hides_none(engine: Engine) -> None:
    ids = queue(engine, 2)
    partition = ids[0].partition_number
    raw_client(engine, partition).zadd(raw_key(engine, partition, "damaged"), {"no id": 0})
    damage(engine, ids[0], "place", b"soon")
    engine.claim_many(request())

    listed = engine.list_executions(filter=ExecutionFilter(lane=LANE)).executions
    assert {row.execution_id for row in listed} == set(ids)


def test_the_further_keys_that_a_record_names_go_with_it(engine: Engine) -> None:
    ids = queue(engine, 2)
    client: Any = raw_client(engine, ids[0].partition_number)
    names = [raw_key(engine, ids[0].partition_number, name) for name in ("frames:1", "frames:2")]
    for each, name in zip(ids, names, strict=True):
        client.set(name, "of a newer release")
        damage(engine, each, "keys", pack((name.split("}")[1],)))
    damage(engine, ids[1], "place", b"soon")
    claimed = engine.claim_many(request(limit=2))
    engine.complete(claimed[0].handle)

    for each in ids:
        engine.purge(each)

    assert client.exists(*names) == 0
