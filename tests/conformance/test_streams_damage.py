"""A damaged stream harms its own execution alone, and goes with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.streams import FrameAppend
from tests.support.dumps import Dump
from tests.support.executions import raw_client, raw_key, running
from tests.support.streams import append_all, frame, live, patch, payloads, read_all, tail

NONSENSE = [b"", b"x", b"1:a", b"5:ab", b"\xff\xfe", b"99999999999999999999", b"3:abc" * 14, b"0-0", b"1-"]
FIELDS = ["last", "a0", "s0", "live", "deltas", "calls", "readers", "0.1", "0~2"]
KEYS = ["stream", "frames", "deltas", "live"]
Operation = Callable[[Engine, Claimed], Any]
OPERATIONS: dict[str, Operation] = {
    "append": lambda engine, claimed: engine.append_frame(claimed.handle, frame("y")),
    "append again": lambda engine, claimed: engine.append_frame(claimed.handle, frame("a", seq=1)),
    "append live": lambda engine, claimed: engine.append_frame(claimed.handle, live("y")),
    "append to the summary": lambda engine, claimed: engine.append_frame(claimed.handle, patch("{}")),
    "read": lambda engine, claimed: read_all(engine, claimed.execution_id),
    "tail": lambda engine, claimed: tail(engine, claimed.execution_id, block=timedelta(milliseconds=5)),
    "read the summary": lambda engine, claimed: engine.read_summary(claimed.execution_id, 0),
}


def streamed(engine: Engine) -> Claimed:
    claimed = running(engine)
    append_all(engine, claimed.handle, [frame("a", seq=1), live("b", seq=2)])
    append_all(engine, claimed.handle, [frame("a"), live("b"), patch('{"a":1}')])
    return claimed


def key_of(engine: Engine, claimed: Claimed, name: str) -> str:
    return raw_key(engine, claimed.execution_id.partition_number, f"{name}:{claimed.execution_id.uuid}")


def codes_of(engine: Engine, claimed: Claimed, operation: Operation) -> set[str]:
    try:
        operation(engine, claimed)
    except EngineError as error:
        return {error.code}
    return set()


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_damaged_field_of_a_stream_is_told_as_such(engine: Engine, operation: Operation, field: str) -> None:
    codes = set[str]()
    for value in NONSENSE:
        claimed = streamed(engine)
        client = raw_client(engine, claimed.execution_id.partition_number)
        client.hset(key_of(engine, claimed, "stream"), field, value)
        codes |= codes_of(engine, claimed, operation)
    # A damaged memory cannot tell which frame a seq belongs to.
    assert codes <= {"corruption", "frame_conflict" if field.startswith("0") else "corruption"}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_stream_key_of_the_wrong_type_is_reported_as_corruption(
    engine: Engine, operation: Operation, name: str
) -> None:
    claimed = streamed(engine)
    client = raw_client(engine, claimed.execution_id.partition_number)
    client.delete(key_of(engine, claimed, name))
    client.set(key_of(engine, claimed, name), "nonsense")
    assert codes_of(engine, claimed, operation) <= {"corruption"}


@pytest.mark.parametrize("damage", [*((field, value) for field in FIELDS for value in NONSENSE[:3]), None])
def test_a_damaged_stream_prevents_no_end(engine: Engine, dump: Dump, damage: tuple[str, bytes] | None) -> None:
    claimed = streamed(engine)
    client = raw_client(engine, claimed.execution_id.partition_number)
    if damage is None:
        client.delete(key_of(engine, claimed, "stream"))
        client.set(key_of(engine, claimed, "stream"), "nonsense")
    else:
        client.hset(key_of(engine, claimed, "stream"), *damage)
    engine.complete(claimed.handle, b"5")
    assert engine.read_execution_state(claimed.execution_id) is PublicState.COMPLETED
    engine.purge(claimed.execution_id)
    assert [key for key in dump() if claimed.execution_id.uuid in key] == []


@pytest.mark.usefixtures("clock")
def test_a_damaged_stream_in_a_call_harms_no_other(engine: Engine) -> None:
    # The clock stands, so the id that follows the damaged one is taken.
    good, bad = streamed(engine), streamed(engine)
    raw_client(engine, bad.execution_id.partition_number).hset(key_of(engine, bad, "stream"), "last", "0-0")

    outcomes = engine.append_frames([FrameAppend(handle=each.handle, frame=frame("y")) for each in (bad, good)])

    assert getattr(outcomes[0], "code", None) == "corruption"
    assert payloads(read_all(engine, good.execution_id))[-1] == b"y"


def test_a_damaged_frame_is_named(engine: Engine) -> None:
    claimed = running(engine)
    first = engine.append_frame(claimed.handle, frame("a"))
    client = raw_client(engine, claimed.execution_id.partition_number)
    key = key_of(engine, claimed, "frames")
    client.delete(key)
    client.execute_command("XADD", key, first.frame_id, "frame", "nonsense", "payload", "a")
    with pytest.raises(EngineError) as caught:
        read_all(engine, claimed.execution_id)
    assert caught.value.code == "corruption"
    assert first.frame_id in str(caught.value)
