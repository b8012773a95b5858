"""A key that many executions share holds another type of value: it is named, and other partitions go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.library import lua_files
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from tests.support.executions import LANE, all_created, creation, ids_in, raw_client, raw_key, request, running
from tests.support.servers import ValkeyServer

LANE_KEY, CLASS_KEY = "7:default4:mail", "7:default4:mail4:send0:0:0:"
OF_LANES = (
    f"lane:{LANE_KEY}", f"of_lane:{LANE_KEY}", f"delays:{LANE_KEY}", f"ready:{CLASS_KEY}", "of_state:active:7:default",
)  # fmt: skip


def single_keys() -> list[str]:
    """Return the keys that the functions say a partition has once each."""
    text = dict(lua_files())["prelude_keys.lua"]
    return re.findall(r"':([a-z_:]+)'", text[text.index("SINGLE_KEYS") : text.index("MOST_CLASSES")])


@pytest.fixture(params=["memory", "server"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Provide an engine on a store of two partitions."""
    mark, url = uuid4().hex[:12], "memory://?partitions=2"
    if request.param == "server":
        server: ValkeyServer = request.getfixturevalue("valkey")
        url = f"{server.url}?prefix=k{mark}&partitions=2"
    engine = open_engine(url)
    engine.prepare(testing=True)
    yield engine
    engine.close()


def mistype(engine: Engine, name: str) -> str:
    """Put another type of value into a key of partition 0; return the key."""
    key = raw_key(engine, 0, name)
    client: Any = raw_client(engine)
    client.delete(key)
    client.rpush(key, "what is this?")
    return key


def complete(engine: Engine, claimed: list[Claimed]) -> list[EngineError | None]:
    return engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in claimed])


@pytest.mark.parametrize("name", [*single_keys(), *OF_LANES])
def test_a_mistyped_key_is_named_and_stops_no_other_partition(engine: Engine, name: str) -> None:
    held = running(engine, lane=LANE, execution_id=ids_in(engine, 0, 1)[0])
    key = mistype(engine, name)
    others = all_created(engine, [creation(execution_id=each) for each in ids_in(engine, 1, 3)])

    def set_aside() -> None:
        assert engine.list_damaged().executions == ()

    calls: list[Callable[[], object]] = [
        lambda: engine.create_execution(creation(execution_id=ids_in(engine, 0, 1)[0])),
        engine.run_upkeep,
        engine.list_executions,
        engine.list_lanes,
        lambda: engine.claim_many(request(limit=9)),
        set_aside,
    ]

    claimed = [each for _ in range(2) for each in engine.claim_many(request(limit=9))]

    mine = [each for each in claimed if each.execution_id in others]
    assert {each.execution_id for each in mine} == set(others)
    answers = complete(engine, [held, *mine])
    assert answers[1:] == [None] * 3
    for call in calls:
        try:
            call()
        except EngineError as error:
            answers.append(error)
    assert {(error.code, error.details["key"]) for error in answers if error is not None} <= {("key_damaged", key)}
    assert [key in warning for warning in _prepared(engine)] in ([True], [])


def _prepared(engine: Engine) -> tuple[str, ...]:
    """Return the warnings of a set-up; one that fails names the key as well."""
    try:
        return Engine(lambda: (engine.store, None), retry_for=0).prepare().warnings
    except EngineError as error:
        return (str(error),)


def test_work_goes_on_once_a_mistyped_key_is_deleted(engine: Engine) -> None:
    (execution,) = all_created(engine, [creation(execution_id=ids_in(engine, 0, 1)[0])])
    key = mistype(engine, "due")
    with pytest.raises(EngineError, match=re.escape(key)):
        engine.run_upkeep()

    raw_client(engine).delete(key)

    (claimed,) = engine.claim_many(request())
    assert claimed.execution_id == execution
    assert complete(engine, [claimed]) == [None]


@pytest.mark.parametrize("score", [-1e300, 1e300])
@pytest.mark.parametrize("whole", [False, True], ids=["an entry", "all entries"])
def test_upkeep_repairs_the_scores_of_the_index_of_classes(engine: Engine, score: float, whole: bool) -> None:
    client: Any = raw_client(engine)
    (execution,) = all_created(engine, [creation(execution_id=ids_in(engine, 0, 1)[0])])
    key = raw_key(engine, 0, "classes")
    client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1) if whole else [b"7:default"], score))
    created = all_created(engine, [creation(task="other", execution_id=ids_in(engine, 0, 1)[0])])

    engine.run_upkeep()

    another = Engine(lambda: (engine.store, None))
    assert {each.execution_id for each in another.claim_many(request(limit=9))} == {execution, *created}
