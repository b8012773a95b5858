"""Short ways to make, claim and complete work, straight at the engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_BATCH_ITEMS
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.submission import CreateExecutionArgs

_POLICY = ClaimPolicy(worker_id="benchmark", worker_instance_id="benchmark", lease=timedelta(minutes=10))


_DEFAULT = ExecutionPolicy()


def create(engine: Engine, count: int, delay: timedelta | None = None, policy: ExecutionPolicy = _DEFAULT) -> None:
    """Make this many executions in one call, at most 500."""
    args = CreateExecutionArgs(lane="default", task="noop", payload=b"[1]", codec="json", delay=delay, policy=policy)
    _checked(engine.create_executions([args] * count))


def fill(url: str, count: int, delay: timedelta | None = None) -> None:
    """Make any number of executions in a store; a function of its own, since another process may run it."""
    engine = open_engine(url)
    for done in range(0, count, MAX_BATCH_ITEMS):
        create(engine, min(MAX_BATCH_ITEMS, count - done), delay)
    engine.close()


def claim_some(engine: Engine, count: int) -> list[Claimed]:
    """Claim up to this many executions in one call, at most 500."""
    limit = min(count, MAX_BATCH_ITEMS)
    return engine.claim_many(ClaimRequest(lanes=(LaneRequest(lane="default"),), policy=_POLICY, limit=limit))


def claim(engine: Engine, count: int) -> list[Claimed]:
    """Claim this many executions in one call, at most 500; they must be there."""
    claimed = claim_some(engine, count)
    if len(claimed) != count:
        raise RuntimeError(f"claimed {len(claimed)} executions instead of {count}")
    return claimed


def complete(engine: Engine, claimed: Sequence[Claimed]) -> None:
    """Complete executions in one call, at most 500."""
    _checked(engine.complete_many([Completion(handle=each.handle, payload=b"1") for each in claimed]))


def _checked(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, EngineError):
            raise result
