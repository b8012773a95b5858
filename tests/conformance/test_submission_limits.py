"""What a creation may contain: payloads, priorities, names and capabilities; and what is refused without a trace."""

from __future__ import annotations

from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import (
    MAX_CAPABILITIES,
    MAX_CAPABILITIES_BYTES,
    MAX_HEADER_VALUE_BYTES,
    MAX_HEADERS,
    MAX_NAME_BYTES,
    MAX_PRIORITY,
    MAX_TAG_VALUE_BYTES,
    MAX_TAGS,
    MIB,
    Limits,
)
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from tests.support.dumps import Dump
from tests.support.executions import claim_one, claimed_ids, created, creation, info_of, refused


def requiring(*capabilities: Any) -> ExecutionPolicy:
    return ExecutionPolicy(requires=frozenset(capabilities))


# Payloads


@pytest.mark.parametrize(
    "payload", [None, b"", b"\x00", bytes(range(256)), b"=", "ü".encode()], ids=lambda value: repr(value)[:12]
)
def test_a_payload_comes_back_as_it_was_given(engine: Engine, payload: bytes | None) -> None:
    created(engine, payload=payload)

    assert claim_one(engine).payload == payload


def test_a_payload_may_have_the_size_of_the_limit(engine: Engine) -> None:
    payload = bytes(range(256)) * (MIB // 256)
    created(engine, payload=payload)

    assert claim_one(engine).payload == payload


def test_a_payload_one_byte_over_the_limit_is_refused(engine: Engine, dump: Dump) -> None:
    before = dump()

    with refused("payload_too_large") as caught:
        engine.create_execution(creation(payload=b"x" * (MIB + 1)))

    assert str(MIB) in str(caught.value)
    assert dump() == before


def test_an_operator_sets_the_limit_of_payloads(engine: Engine) -> None:
    strict = Engine(lambda: (engine.store, None), limits=Limits(payload_bytes=3))

    created(strict, payload=b"abc")
    with refused("payload_too_large"):
        strict.create_execution(creation(payload=b"abcd"))


@pytest.mark.parametrize("payload", ["text", bytearray(b"x"), {"a": 1}, 5], ids=lambda value: type(value).__name__)
def test_a_payload_that_is_no_bytes_is_refused(engine: Engine, payload: Any) -> None:
    with refused("invalid_input"):
        engine.create_execution(creation(payload=payload))


# Priority


@pytest.mark.parametrize(
    ("given", "stored"), [(MAX_PRIORITY + 1000, MAX_PRIORITY), (MAX_PRIORITY, MAX_PRIORITY), (50, 50), (0, 0), (-5, 0)]
)
def test_a_priority_is_clamped(engine: Engine, given: int, stored: int) -> None:
    assert info_of(engine, created(engine, priority=given)).priority == stored


@pytest.mark.parametrize("priority", [1.5, "5", None, True], ids=repr)
def test_a_priority_that_is_no_whole_number_is_refused(engine: Engine, dump: Dump, priority: Any) -> None:
    before = dump()

    with refused("invalid_input"):
        engine.create_execution(creation(priority=priority))

    assert dump() == before


# Refusals


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"lane": ""}, "invalid_input"),
        ({"lane": "x" * 65}, "invalid_input"),
        ({"lane": "mäil"}, "invalid_input"),
        ({"lane": "a\n"}, "invalid_input"),
        ({"lane": None}, "invalid_input"),
        ({"task": ""}, "invalid_input"),
        ({"task": "x" * (MAX_NAME_BYTES + 1)}, "invalid_input"),
        ({"task": "a\0b"}, "invalid_input"),
        ({"idempotency_key": ""}, "invalid_input"),
        ({"idempotency_key": "ü" * 129}, "invalid_input"),
        ({"idempotency_key": "\ud800"}, "invalid_input"),
        ({"idempotency_key": 7}, "invalid_input"),
        ({"codec": "\t"}, "invalid_input"),
        ({"creator": "\x7f"}, "invalid_input"),
        ({"tags": {"": "v"}}, "invalid_tag_key"),
        ({"tags": {"a\nb": "v"}}, "invalid_tag_key"),
        ({"tags": {7: "v"}}, "invalid_tag_key"),
        ({"tags": {"k": 7}}, "invalid_input"),
        ({"tags": {"k": "a\0"}}, "invalid_input"),
        ({"tags": {"k": "\udfff"}}, "invalid_input"),
        ({"tags": ["k"]}, "invalid_input"),
        ({"tags": {"k": "v" * (MAX_TAG_VALUE_BYTES + 1)}}, "invalid_input"),
        ({"tags": {f"k{number}": "v" for number in range(MAX_TAGS + 1)}}, "invalid_input"),
        ({"headers": {"": "v"}}, "invalid_input"),
        ({"headers": {"k": 7}}, "invalid_input"),
        ({"headers": {"k": "a\0"}}, "invalid_input"),
        ({"headers": ["k"]}, "invalid_input"),
        ({"headers": {"k": "v" * (MAX_HEADER_VALUE_BYTES + 1)}}, "invalid_input"),
        ({"headers": {f"k{number}": "v" for number in range(MAX_HEADERS + 1)}}, "invalid_input"),
        ({"policy": ExecutionPolicy(budget_ids=("b1",))}, "budget_not_found"),
        ({"policy": ExecutionPolicy(quota_policy_id="q1")}, "quota_policy_not_found"),
        ({"execution_id": ExecutionId(0, "no uuid")}, "invalid_execution_id"),
        ({"execution_id": ExecutionId(0, "550E8400-E29B-41D4-A716-446655440000")}, "invalid_execution_id"),
        ({"execution_id": "550e8400-e29b-41d4-a716-446655440000"}, "invalid_execution_id"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode() if isinstance(value, dict) else "",
)
def test_what_is_not_valid_is_refused_without_a_trace(
    engine: Engine, dump: Dump, changes: dict[str, Any], code: str
) -> None:
    before = dump()

    with refused(code):
        engine.create_execution(creation(**changes))

    assert dump() == before


def test_one_wrong_item_refuses_the_whole_call(engine: Engine, dump: Dump) -> None:
    before = dump()

    with refused("invalid_capabilities"):
        engine.create_executions([creation(), creation(policy=requiring("a b"))])

    assert dump() == before


@pytest.mark.parametrize("naming", ["uuid", "key"])
def test_an_id_in_another_partition_than_its_own_is_refused(engine: Engine, dump: Dump, naming: str) -> None:
    key = {"idempotency_key": "k"} if naming == "key" else {}
    there = created(engine, **key)
    before = dump()

    with refused("partition_mismatch"):
        engine.create_execution(creation(execution_id=ExecutionId(there.partition_number + 1, there.uuid), **key))

    assert dump() == before


def test_names_may_have_the_size_of_their_limits(engine: Engine) -> None:
    longest = "ü" * (MAX_NAME_BYTES // 2)
    lane = "~" * 64
    tags = {f"{number:02}" + "k" * (MAX_NAME_BYTES - 2): "v" * MAX_TAG_VALUE_BYTES for number in range(MAX_TAGS)}
    headers = dict.fromkeys(list(tags)[:MAX_HEADERS], "v" * MAX_HEADER_VALUE_BYTES)
    texts = {"tags": tags, "headers": headers}
    execution_id = created(
        engine, lane=lane, task=longest, idempotency_key=longest, codec=longest, creator=longest, **texts
    )

    info = info_of(engine, execution_id)

    assert (info.lane, info.task, info.idempotency_key, info.codec, info.creator) == (lane, *[longest] * 4)
    assert (info.tags, info.headers) == (tags, headers)


# Capabilities


@pytest.mark.parametrize(
    "token", ["gpu,cuda", "", "a b", "a\tb", "a\x7fb", "a\u00a0b", "a\u2028b", None, 42, {"a": 1}, "\ud800"], ids=ascii
)
def test_a_wrong_capability_is_refused(engine: Engine, dump: Dump, token: Any) -> None:
    before = dump()

    with refused("invalid_capabilities"):
        engine.create_execution(creation(policy=ExecutionPolicy(requires=["gpu", token])))

    assert dump() == before


@pytest.mark.parametrize("tokens", ["gpu", b"gpu", 5, None], ids=repr)
def test_capabilities_that_are_no_collection_are_refused(tokens: Any) -> None:
    with refused("invalid_capabilities"):
        ExecutionPolicy(requires=tokens)


def test_capabilities_may_have_the_size_of_their_limit(engine: Engine) -> None:
    # 15 bytes and a comma each, but no comma behind the last one.
    tokens = [f"{number:015}" for number in range(MAX_CAPABILITIES_BYTES // 16 - 1)] + ["x" * 16]
    assert len(",".join(tokens)) == MAX_CAPABILITIES_BYTES
    execution_id = created(engine, policy=requiring(*tokens))

    assert claimed_ids(engine, capabilities=tokens) == [execution_id]


@pytest.mark.parametrize(
    "tokens",
    [
        [f"{number:015}" for number in range(MAX_CAPABILITIES_BYTES // 16 - 1)] + ["x" * 17],
        ["t" * 199 + chr(97 + number) for number in range(26)],
        [f"{number}" for number in range(MAX_CAPABILITIES + 1)],
    ],
    ids=["one byte", "many bytes", "one token"],
)
def test_capabilities_over_their_limit_are_refused(tokens: list[str]) -> None:
    with refused("invalid_capabilities"):
        requiring(*tokens)


def test_as_many_capabilities_as_the_limit_allows_are_accepted(engine: Engine) -> None:
    tokens = [f"{number:03}" for number in range(MAX_CAPABILITIES)]
    execution_id = created(engine, policy=requiring(*tokens))

    assert claimed_ids(engine, capabilities=tokens) == [execution_id]
