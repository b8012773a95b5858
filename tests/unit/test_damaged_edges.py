"""Damaged edges of a flow stop their own member alone; only the stores of Lua functions hold edges as texts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.executions import claimed_ids, queue, raw_client, raw_key
from tests.support.flows import Run, graph_of


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = open_engine("memory://")
    engine.prepare(testing=True)
    yield engine
    engine.close()


@pytest.mark.parametrize("key", ["edges", "groups", "links"])
@pytest.mark.parametrize("is_text", [False, True], ids=["values", "type"])
def test_damaged_edges_of_a_member_stop_no_other_work(engine: Engine, key: str, is_text: bool) -> None:
    run = Run(engine, graph_of(("a", "b", "x")))
    run.claim()
    run.complete("a")
    (other,) = queue(engine, 1)
    client, name = raw_client(engine, 0), raw_key(engine, 0, f"{key}:{run.flow_id}")
    if is_text:
        client.delete(name)
        client.set(name, "junk")
    elif key == "links":
        client.zadd(name, {f"d{run.ids['b'].partition(':')[2][-36:]}:junk": 0})
    else:
        client.hset(name, mapping=dict.fromkeys(client.hkeys(name), "junk"))

    assert other in claimed_ids(engine)
    assert not engine.run_upkeep().more
