"""damage: random damage to random fields, between random operations, never stops the rest of the work."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from tests.conftest import Clock
from tests.support.executions import BOOM, RETRYING, creation, raw_client, raw_key, request

STEPS = 300
JUNK = (b"", b"x", b"\xff", b"-1", b"1.5", b"9" * 20, b"9:a", b"|", b"0" * 70, b"tunnsz", b"alnnnr", b"ruewnf")
POLICIES = (
    ExecutionPolicy(),
    RETRYING,
    ExecutionPolicy(
        attempt_timeout=timedelta(seconds=20),
        execution_deadline=timedelta(seconds=90),
        retention=timedelta(seconds=30),
        max_reclaim_count=1,
    ),
)


class Attack:
    """Random steps on one store; what a caller may be refused is passed over, anything else fails the test."""

    def __init__(self, engine: Engine, clock: Clock, seed: int) -> None:
        self.engine, self.clock, self.draw = engine, clock, random.Random(seed)
        self.held: list[Claimed] = []

    def step(self) -> None:
        steps = (self.create, self.create, self.claim, self.hold, self.damage, self.wait, self.operate)
        try:
            self.draw.choice(steps)()
        except TransportError:
            raise
        except EngineError:
            pass

    def create(self) -> None:
        draw = self.draw.random
        changes: dict[str, Any] = {"policy": self.draw.choice(POLICIES)}
        if draw() < 0.3:
            changes["tags"] = {"a": "b"}
        if draw() < 0.2:
            changes["delay"] = timedelta(seconds=3)
        if draw() < 0.2:
            changes["idempotency_key"] = f"k{self.draw.randrange(9)}"
        self.engine.create_execution(creation(**changes))

    def claim(self) -> None:
        self.held += self.engine.claim_many(request(limit=self.draw.randrange(1, 9)))

    def hold(self) -> None:
        some = [self.held.pop(self.draw.randrange(len(self.held))) for _ in range(min(3, len(self.held)))]
        handles = [each.handle for each in some]
        ways: list[Callable[[], Any]] = [
            lambda: self.engine.complete_many([Completion(handle=each) for each in handles]),
            lambda: self.engine.fail_many(
                [Failure(handle=each, reason=BOOM, classification=FailureClass.TRANSIENT) for each in handles]
            ),
            lambda: self.engine.release_many(handles),
            lambda: (self.engine.renew_many(handles), self.held.extend(some)),
        ]
        self.draw.choice(ways)()

    def damage(self) -> None:
        client: Any = raw_client(self.engine)
        keys = sorted(client.scan_iter(raw_key(self.engine, 0, "x:*").replace("{", "[{]")))
        if not keys:
            return
        key = self.draw.choice(keys)
        try:
            field, value = self.draw.choice(sorted(client.hgetall(key).items()))
        except redis.ResponseError:
            return
        if self.draw.random() < 0.1:
            client.delete(key)
            client.set(key, "a text")
        elif self.draw.random() < 0.2:
            client.hdel(key, field)
        else:
            client.hset(key, field, self.draw.choice((*JUNK, value[:-1], value + b"x")))

    def wait(self) -> None:
        self.clock.move(timedelta(seconds=self.draw.choice((1, 5, 31, 60))))
        self.engine.run_upkeep()

    def operate(self) -> None:
        rows = self.engine.list_executions(limit=100).executions
        if not rows:
            return
        of, engine = self.draw.choice(rows).execution_id, self.engine
        ways: list[Callable[[], Any]] = [
            lambda: engine.cancel_execution(CancelExecutionArgs(execution_id=of)),
            lambda: engine.replay_execution(ReplayExecutionArgs(execution_id=of)),
            lambda: engine.change_priority(ChangePriorityArgs(execution_id=of, priority=5)),
            lambda: engine.revoke_lease(RevokeLeaseArgs(execution_id=of)),
            lambda: engine.set_tags(of, {"x": "y"}),
            lambda: engine.purge(of),
            lambda: engine.read_execution_info(of),
            lambda: engine.explain_execution(of),
            lambda: engine.read_outcome(of),
            engine.list_damaged,
        ]
        self.draw.choice(ways)()


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 21, 59])
def test_random_damage_stops_no_other_work(engine: Engine, clock: Clock, seed: int) -> None:
    attack = Attack(engine, clock, seed)
    for _ in range(STEPS):
        attack.step()

    engine.create_execution(creation(payload=b"whole", priority=9000))
    claimed = engine.claim_many(request(limit=500))
    assert b"whole" in [each.payload for each in claimed]
