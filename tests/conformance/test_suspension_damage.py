"""Damage to what a suspension keeps harms its own execution alone, and leaves nothing behind when that is purged."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError, TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.conditions import Count, CountKind
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.suspension import (
    IssuedWaitpoint,
    ResumeReason,
    SignalAccepted,
    Suspended,
    TimeoutBehavior,
)
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, claim_one, creation, damage, raw_client, raw_key, refused, request, running
from tests.support.suspension_operations import approval
from tests.support.suspensions import MINUTE, SECOND, signal, suspend, suspended, waiting_for

STEPS = 250
KINDS = ("x", "w", "o", "g", "s0", "s1")
JUNK = (b"", b"x", b"\xff", b"-1", b"9" * 20, b"9:a", b"1:x", b"3:all", b"4:fail4:fail", b"0" * 70)


class Attack:
    """Random steps on executions that wait; what a caller may be refused is passed over, anything else is a failure."""

    def __init__(self, engine: Engine, clock: Clock, seed: int) -> None:
        self.engine, self.clock, self.draw = engine, clock, random.Random(seed)
        self.held: list[Claimed] = []
        self.open: list[tuple[ExecutionId, IssuedWaitpoint]] = []

    def step(self) -> None:
        steps = (self.create, self.claim, self.suspend, self.suspend, self.send, self.send, self.damage, self.damage)
        try:
            self.draw.choice((*steps, self.wait, self.operate))()
        except TransportError:
            raise
        except EngineError:
            pass

    def create(self) -> None:
        self.engine.create_execution(creation())

    def claim(self) -> None:
        self.held += self.engine.claim_many(request(limit=5))

    def suspend(self) -> None:
        if not self.held:
            return
        claimed = self.held.pop(self.draw.randrange(len(self.held)))
        key = self.draw.choice("abc")
        if self.draw.random() < 0.5:
            pending = self.engine.create_waitpoint(claimed.handle, key, MINUTE)
            signal(self.engine, claimed.execution_id, pending, self.draw.choice("xy"))
        self.engine.observe_signals(claimed.handle)
        kind = self.draw.choice(list(CountKind))
        condition = Count(n=self.draw.randrange(1, 4), kind=kind, waitpoint_keys=["a", key])
        behavior = self.draw.choice(list(TimeoutBehavior))
        keys = sorted({"a", key})
        if condition.kind is CountKind.WAITPOINTS and condition.n > len(keys):
            return
        outcome = self.engine.suspend(
            claimed.handle, waiting_for(*keys, condition=condition, timeout=30 * SECOND, timeout_behavior=behavior)
        )
        if isinstance(outcome, Suspended):
            self.open += [(claimed.execution_id, each) for each in outcome.details.waitpoints]

    def send(self) -> None:
        if self.open:
            execution, waitpoint = self.draw.choice(self.open)
            if self.draw.random() < 0.2:
                self.engine.deliver_approval_signal(approval(execution, waitpoint))
            signal(self.engine, execution, waitpoint, idempotency_key=self.draw.choice((None, "k")))

    def damage(self) -> None:
        client: Any = raw_client(self.engine)
        pattern = raw_key(self.engine, 0, f"{self.draw.choice(KINDS)}:*").replace("{", "[{]")
        keys = sorted(client.scan_iter(pattern))
        if not keys:
            return
        key = self.draw.choice(keys)
        if self.draw.random() < 0.2:
            client.delete(key)
            client.set(key, "a text")
            return
        try:
            field, value = self.draw.choice(sorted(client.hgetall(key).items()))
        except redis.ResponseError:
            return
        if self.draw.random() < 0.2:
            client.hdel(key, field)
        else:
            client.hset(key, field, self.draw.choice((*JUNK, value[:-1], value + b"x")))

    def wait(self) -> None:
        self.clock.move(timedelta(seconds=self.draw.choice((1, 5, 31))))
        self.engine.run_upkeep()

    def operate(self) -> None:
        rows, engine = self.engine.list_executions(limit=100).executions, self.engine
        if not rows:
            return
        of = self.draw.choice(rows).execution_id
        ways: list[Callable[[], Any]] = [
            lambda: engine.cancel_execution(CancelExecutionArgs(execution_id=of)),
            lambda: engine.resume_execution(of),
            lambda: engine.list_pending_waitpoints(of),
            lambda: engine.list_suspended(0),
            lambda: engine.read_execution_info(of),
            lambda: engine.explain_execution(of),
            lambda: engine.purge(of),
            lambda: engine.fail(self.held[-1].handle, BOOM, FailureClass.TRANSIENT) if self.held else None,
        ]
        self.draw.choice(ways)()


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_to_what_waits_stops_no_other_work(engine: Engine, clock: Clock, seed: int) -> None:
    attack = Attack(engine, clock, seed)
    for _ in range(STEPS):
        attack.step()

    claimed = running(engine)
    (waitpoint,) = suspend(engine, claimed, "go")
    assert isinstance(signal(engine, claimed.execution_id, waitpoint), SignalAccepted)
    again = claim_one(engine, claimed.handle.lane)
    assert engine.observe_signals(again.handle).reason is ResumeReason.SIGNAL
    engine.complete(again.handle)


@pytest.mark.parametrize("kind", ["w", "g", "s0", "s1", "o"])
def test_what_is_damaged_is_purged_with_every_key(engine: Engine, dump: Dump, kind: str) -> None:
    execution, waitpoint = suspended(engine)
    signal(engine, execution, waitpoint, "go", idempotency_key="k")
    suspend(engine, claim_one(engine), "next", timeout=MINUTE)
    key = raw_key(engine, execution.partition_number, f"{kind}:{execution.uuid}")
    raw_client(engine, execution.partition_number).delete(key)
    raw_client(engine, execution.partition_number).set(key, b"a text")
    # Of the last suspension but one nothing is read any more.
    with refused("corruption") if kind != "s1" else contextlib.nullcontext():
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution))

    engine.purge(execution)

    assert [key for key in dump() if execution.uuid in key] == []
    assert engine.list_suspended(execution.partition_number).executions == ()


def test_a_suspension_that_cannot_be_read_is_a_row_of_its_page(engine: Engine) -> None:
    claimed = [running(engine) for _ in range(9)]
    for each in claimed:
        suspend(engine, each, "go")
    broken = claimed[4].execution_id
    raw_client(engine, broken.partition_number).hset(
        raw_key(engine, broken.partition_number, f"s1:{broken.uuid}"), "reason", b"x"
    )

    rows = [row for number in range(engine.partitions) for row in engine.list_suspended(number).executions]

    assert len(rows) == 9
    assert [row.row_id for row in rows if isinstance(row, DamagedRow)] == [str(broken)]
    damage(engine, broken, "suspended_at", b"x")
    with refused("corruption"):
        engine.cancel_execution(CancelExecutionArgs(execution_id=broken))
