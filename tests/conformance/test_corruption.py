"""reads: a damaged record is named, field by field, and never taken for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from tests.support.executions import damage, raw_client, raw_key, refused, running

DAMAGES: dict[str, tuple[bytes | None, ...]] = {
    "state": (b"runnable", b"", b"runnable unowned eligible_now waiting_for_worker none nonsense", b"\xff"),
    "class": (None, b"garbage", b"1:a"),
    "priority": (None, b"high", b"1.5"),
    "created": (None, b"yesterday"),
    "mutated": (b"never",),
    "tags": (b"1:a", b"9:a", b"1:\xff1:b"),
    "policy": (b"|", b"a|b|c|||||||||||", b"1|fixed|x|||||||||||", b"1|sometimes|1|1|1.0|0||||||||"),
    "attempt": (b"x", b"0|initial|fresh|soon|"),
    "retry_count": (b"many",),
    "fence": (None, b"a:b", b"a:b:c"),
    "holder": (None, b"2:w1", b"garbage"),
    "expires": (None, b"soon"),
    "timeout_at": (b"soon",),
    "deadline": (b"soon",),
    "attempts": (b"3:abc", b"garbage"),
    "progress_percent": (b"half",),
    "progress_message": (b"\xff",),
    "idempotency_key": (b"\xff", b"1:a"),
    "codec": (b"\xff",),
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in DAMAGES.items() for value in values])
def test_a_damaged_field_is_named(engine: Engine, field: str, value: bytes | None) -> None:
    claimed = running(engine, tags={"a": "b"})
    damage(engine, claimed.execution_id, field, value)

    with refused("corruption") as caught:
        engine.read_execution_info(claimed.execution_id)

    assert caught.value.details == {"execution_id": str(claimed.execution_id), "field": field}
    assert f"{claimed.execution_id}: {field}:" in str(caught.value)


def test_a_damaged_state_stops_every_read(engine: Engine) -> None:
    claimed = running(engine)
    damage(engine, claimed.execution_id, "state", b"what is this?")

    reads: list[Callable[[ExecutionId], object]] = [
        engine.describe_execution,
        engine.read_execution_info,
        engine.read_execution_state,
        engine.get_execution_result,
        engine.explain_execution,
        engine.read_outcome,
    ]
    for read in reads:
        with refused("corruption") as caught:
            read(claimed.execution_id)
        assert caught.value.details["field"] == "state"


def test_a_damaged_result_is_named(engine: Engine) -> None:
    claimed = running(engine)
    engine.complete(claimed.handle, b"5")
    damage(engine, claimed.execution_id, "result", b"5")

    for read in (engine.get_execution_result, engine.read_outcome):
        with refused("corruption") as caught:
            read(claimed.execution_id)
        assert caught.value.details["field"] == "result"


def test_a_write_to_a_damaged_execution_is_refused_and_names_the_field(engine: Engine) -> None:
    claimed = running(engine)
    damage(engine, claimed.execution_id, "state", b"what is this?")
    key = raw_key(engine, claimed.execution_id.partition_number, f"x:{claimed.execution_id.uuid}")
    client: Any = raw_client(engine, claimed.execution_id.partition_number)
    before = client.hgetall(key)

    with refused("corruption") as caught:
        engine.complete(claimed.handle)
    with refused("corruption"):
        engine.cancel_execution(CancelExecutionArgs(execution_id=claimed.execution_id))

    assert caught.value.details["field"] == "state"
    assert client.hgetall(key) == before
