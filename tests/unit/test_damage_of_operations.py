"""Whatever key or field was damaged before it, an operation answers with a typed error, and other work goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.stores.base import Store
from flowfabric_worker.engine.types.attempts import Completion
from tests.support.engines import empty_engine
from tests.support.executions import LANE, creation, raw_client, raw_key, request
from tests.support.operations import OPERATIONS, START

TRIALS = 2
SET_UP = ("erase", "prepare", "prune_libraries", "set_clock", "shutdown_prepare", "pause_lane", "resume_lane")
# This case looks among what was claimed for a member that damage may have set aside.
CLAIMING = "complete: sets a member free"
CASES = [case for case in OPERATIONS if case.partition(":")[0] not in SET_UP and case != CLAIMING]
JUNK = (b"", b"x", b"\xff", b"-1", b"nan", b"1e400", b"9" * 20, b"3:ab", b"1:a1:b")
# What was found this way: operation, key's name up to an id, field or None for the whole key, and value or None for
# another type.
FOUND: tuple[tuple[str, str, bytes | None, bytes | None], ...] = (
    ("complete", "feed", None, None),
    ("list_quotas", "gate:", b"hold", b"x"),
    ("list_quotas", "gate:", b"created", b""),
    ("describe_edge", "edges:", None, b"x"),
    ("cancel_flow", "flow:", b"nodes", b"x"),
    ("stage_dependency_edge", "flow:", b"revision", b"x"),
    ("list_flows", "flow:", None, None),
    ("spawn", "x:", b"class", b"x"),
    ("deliver_signal", "s1:", b"delay", b"1e400"),
    ("ack_cancel_member", "flow:", b"keep", b"nan"),
    ("release_admission", "gate:", b"newest_count", b""),
    ("list_lanes", "lane:", b"waiting", b"x"),
    ("list_lanes", "lanes", None, b"\xff"),
    ("list_executions", "ids", None, b"\xff"),
    ("list_workers", "workers", None, b"\xff"),
    ("list_suspended", "suspended", None, b"\xff"),
    ("complete: with an open reservation", "x:", b"budgets", b"1:a1:b"),
)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    engine = open_engine("memory://")
    engine.prepare(testing=True)
    yield engine.store
    engine.close()


class Damage:
    """Damage to one key of a store, or to one of its fields or members.

    Args:
        engine: an engine on the store.
        key: the key.
    """

    def __init__(self, engine: Engine, key: bytes) -> None:
        self.client: Any = raw_client(engine)
        self.key = key
        self.kind = self.client.type(key)

    def mistype(self) -> None:
        self.client.delete(self.key)
        self.client.rpush(self.key, "what is this?")

    def set(self, field: bytes | None, value: bytes) -> None:
        """Set a field to a value, all fields if none is named; of a sorted set, add the value to each member."""
        if self.kind == b"hash":
            fields = self.client.hkeys(self.key) if field is None else [field]
            self.client.hset(self.key, mapping=dict.fromkeys(fields, value))
        elif self.kind == b"zset":
            for member, score in self.client.zrange(self.key, 0, -1, withscores=True):
                self.client.zadd(self.key, {member + value: score})
        elif self.kind == b"string":
            self.client.set(self.key, value)

    def at_random(self, draw: random.Random) -> None:
        if draw.random() < 0.2:
            draw.choice((self.mistype, lambda: self.client.delete(self.key)))()
            return
        fields = sorted(self.client.hkeys(self.key)) if self.kind == b"hash" else [None]
        self.set(draw.choice(fields), draw.choice(JUNK))


def keys_of(engine: Engine, beginning: str = "") -> list[bytes]:
    base = raw_key(engine, 0, "")
    client: Any = raw_client(engine)
    keys = client.scan_iter(base.replace("{", "[{]") + beginning + "*", count=1000)
    return sorted(key for key in keys if not key.endswith(b":meta"))


def typed(act: Callable[[], object]) -> object:
    """Return what a call returns, or the typed error that it may raise: any but a failed function, or nonsense."""
    answer: object
    try:
        answer = act()
        answer = list(answer) if isinstance(answer, Iterator) else answer
    except EngineError as error:
        answer = error
    if isinstance(answer, EngineError):
        assert answer.code not in ("function_failed", "protocol"), answer
        assert answer.code != "invalid_input" or answer.__cause__ is None, answer.__cause__
    return answer


def names_key(answer: object) -> bool:
    return isinstance(answer, EngineError) and answer.code == "key_damaged"


def _each(answer: object) -> list[Any]:
    """Return the answers of a call that takes many items."""
    return answer if isinstance(answer, list) else [answer]


def go_on(engine: Engine) -> None:
    """Run other work in the same partition, unless a key of the partition is named as damaged; read every listing."""
    # A revision that was lost begins at the present moment, which must not be that of the old one.
    engine.set_clock(START + timedelta(seconds=9))
    plain = [creation(task="plain", priority=9000), creation(task="plain", lane="elsewhere")]
    answers: list[object] = _each(typed(lambda: engine.create_executions(plain)))
    claimed: list[Any] = []
    for _ in range(4):
        claimed += _each(typed(lambda: engine.claim_many(request(LANE, "elsewhere", limit=10, worker="other"))))
    answers += claimed
    mine = [each for each in claimed if getattr(each, "task", "") == "plain"]
    ends = [Completion(handle=each.handle) for each in mine]
    answers += _each(typed(lambda: engine.complete_many(ends)))
    reads = [name for name in sorted(engine.capabilities().operations) if name.startswith("list_")]
    for name in reads:
        if name in ("list_suspended", "list_flows"):
            answers.append(typed(lambda name=name: getattr(engine, name)(0)))
        elif name not in ("list_pending_waitpoints", "list_edges", "list_flow_members"):
            answers.append(typed(getattr(engine, name)))
    engine.set_clock(START + timedelta(days=3))
    for _ in range(30):
        answer: Any = typed(engine.run_upkeep)
        answers.append(answer)
        if isinstance(answer, EngineError) or not answer.more:
            break
    else:
        pytest.fail("the upkeep does not come to an end")
    if not any(map(names_key, answers)):
        assert len(mine) == 2, answers
        assert [each for each in answers if isinstance(each, EngineError)] == []


@pytest.mark.parametrize("case", CASES)
def test_damage_before_an_operation_is_told_and_stops_no_other_work(store: Store, case: str) -> None:
    draw = random.Random(case)
    for _ in range(TRIALS):
        engine = empty_engine(store)
        act = OPERATIONS[case](engine)
        keys = keys_of(engine)
        if keys:
            Damage(engine, draw.choice(keys)).at_random(draw)
        typed(act)
        go_on(engine)


@pytest.mark.parametrize(("case", "beginning", "field", "value"), FOUND)
def test_damage_that_was_met_once_is_told(
    store: Store, case: str, beginning: str, field: bytes | None, value: bytes | None
) -> None:
    engine = empty_engine(store)
    act = OPERATIONS[case](engine)
    for key in keys_of(engine, beginning):
        damage = Damage(engine, key)
        damage.mistype() if value is None else damage.set(field, value)

    typed(act)
    go_on(engine)
