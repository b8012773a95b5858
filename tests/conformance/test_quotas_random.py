"""Random calls under a quota, by callers that die or lose replies between any two of their steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import ConflictError, StateError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.quotas import SlotHold
from flowfabric_worker.engine.types.states import OwnershipState, PublicState
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import BOOM, created, info_of, request, upkeep_all
from tests.support.quotas import QUOTA, check, limited, running_now
from tests.support.stepped_store import Killed, kill, stepped

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=20)
RETRYING = ExecutionPolicy(
    quota_policy_id=QUOTA,
    max_reclaim_count=1000,
    retry=RetryPolicy(max_retries=1000, backoff="fixed", initial=SECOND, jitter=False),
)
ENDS: list[Callable[[Engine, Claimed], object]] = [
    lambda engine, held: engine.complete(held.handle, None),
    lambda engine, held: engine.fail(held.handle, BOOM, FailureClass.TRANSIENT),
    lambda engine, held: engine.delay(held.handle, 2 * SECOND),
    lambda engine, held: engine.release(held.handle),
    lambda engine, held: engine.revoke_lease(RevokeLeaseArgs(execution_id=held.execution_id)),
]


class Callers:
    """Callers of a store that do something random under a quota."""

    def __init__(self, engine: Engine, clock: Clock, draw: random.Random) -> None:
        self.engine, self.clock, self.draw = engine, clock, draw
        self.executions = [created(engine, policy=RETRYING, idempotency_key=str(number)) for number in range(6)]
        self._held: list[Claimed] = []

    def act(self) -> None:
        """Do one thing; the caller may die at any of its steps, or lose the first reply to each of its calls."""
        tried, store = stepped(self.engine)
        if self.draw.random() < 0.4:
            store.after(self.draw.randint(1, 12), kill)
        with store.losing() if self.draw.random() < 0.2 else nullcontext():
            try:
                self.draw.choice([self._claim, self._claim, self._end, self._end, self._pass, self._ask])(tried)
            except (Killed, StateError, ConflictError):
                # A holder that lost its lease, and one that asks by hand for what has ended, are refused.
                return

    def running(self) -> int:
        """Return how many executions are leased."""
        infos = [info_of(self.engine, each) for each in self.executions]
        leases = [each.current_lease for each in infos if each.state.ownership_state is OwnershipState.LEASED]
        return sum(each is not None and each.expires_at_ms > self.clock.ms for each in leases)

    def drain(self) -> None:
        """Let time pass until all executions have ended."""
        for _ in range(30):
            self.clock.move(3 * SECOND)
            upkeep_all(self.engine)
            for each in self.engine.claim_many(request(worker="last", limit=9, lease=LEASE)):
                self.engine.complete(each.handle, None)
        upkeep_all(self.engine)

    def _claim(self, tried: Engine) -> None:
        worker, limit = f"w{self.draw.randint(0, 3)}", self.draw.randint(1, 4)
        self._held += tried.claim_many(request(worker=worker, limit=limit, lease=LEASE))

    def _end(self, tried: Engine) -> None:
        if self._held:
            self.draw.choice(ENDS)(tried, self._held.pop(self.draw.randrange(len(self._held))))

    def _pass(self, tried: Engine) -> None:
        self.clock.move(timedelta(milliseconds=self.draw.choice([1, 500, 3000, 12000])))
        tried.run_upkeep()

    def _ask(self, tried: Engine) -> None:
        check(tried, self.draw.choice(self.executions), lease=LEASE)


def _ended(engine: Engine, executions: list[ExecutionId]) -> bool:
    return all(engine.read_execution_state(each) is PublicState.COMPLETED for each in executions)


@pytest.mark.parametrize("seed", range(3))
def test_random_callers_that_die_pass_no_limit_and_leave_no_slot(
    engine: Engine, clock: Clock, seed: int, dump: Dump
) -> None:
    draw = random.Random(seed)
    slots = draw.randint(1, 3)
    limited(
        engine,
        max_concurrent=slots,
        max_requests_per_window=draw.choice([None, 5]),
        window=10 * SECOND,
        hold=draw.choice(list(SlotHold)),
    )
    callers = Callers(engine, clock, draw)

    for _ in range(50):
        callers.act()
        assert callers.running() <= slots
    callers.drain()

    assert _ended(engine, callers.executions)
    assert running_now(engine) == 0
    assert not [key for key in dump() if ":owed" in key or ":admitted:" in key]
