"""A damaged memory of claims forgets those, and none that follows; only stores of Lua functions hold it as a text."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.wire import pack, unpack
from tests.support.executions import queue, raw_client, raw_key, request


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine("memory://")
    engine.prepare(testing=True)
    yield engine
    engine.close()


@pytest.mark.parametrize("damage", [b"", b"junk", b"36:cut short", b"\xff" * 100])
def test_a_claim_after_a_damaged_memory_is_answered_again(engine: Engine, damage: bytes) -> None:
    queue(engine, 3)
    engine.claim_many(request(claim_id=str(uuid4())))
    client, name = raw_client(engine, 0), raw_key(engine, 0, "claims")
    (field,) = (each for each in client.hkeys(name) if b"\0" not in each)
    kept, _, worker = unpack(client.hget(name, field) or b"")
    client.hset(name, field, pack((kept, damage, worker)))

    claim = request(claim_id=str(uuid4()))
    first = engine.claim_many(claim)

    assert len(first) == 1
    assert engine.claim_many(claim) == first
