"""Short ways to make and claim work, for the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import CODES, EngineError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.claiming import Claimed, ClaimPolicy, ClaimRequest, LaneRequest
from flowfabric_worker.engine.types.policies import ExecutionPolicy, RetryPolicy
from flowfabric_worker.engine.types.reads import ExecutionInfo
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs

LANE = "mail"
TASK = "send"
LEASE = timedelta(seconds=30)
BOOM = FailureReason(message="boom")
RETRYING = ExecutionPolicy(
    retry=RetryPolicy(max_retries=5, backoff="fixed", initial=timedelta(seconds=1), jitter=False)
)


def creation(**changes: Any) -> CreateExecutionArgs:
    """Return the arguments of a plain execution, with changes."""
    return CreateExecutionArgs(**{"lane": LANE, "task": TASK, "payload": b"{}", **changes})


def created(engine: Engine, **changes: Any) -> ExecutionId:
    """Return a new execution."""
    result = engine.create_execution(creation(**changes))
    assert isinstance(result, Created)
    return result.execution_id


def request(*lanes: str, worker: str = "w1", **changes: Any) -> ClaimRequest:
    """Return a claim by a worker whose id and instance id are the same."""
    policy = ClaimPolicy(
        worker_id=worker,
        worker_instance_id=worker,
        lease=changes.pop("lease", LEASE),
        max_wait=changes.pop("max_wait", None),
    )
    wanted = tuple(LaneRequest(lane=lane) for lane in lanes or (LANE,))
    return ClaimRequest(**{"lanes": wanted, "policy": policy, "limit": 1, **changes})


def claim_one(engine: Engine, *lanes: str, **changes: Any) -> Claimed:
    """Return the one execution that a claim hands out."""
    (claimed,) = engine.claim_many(request(*lanes, **changes))
    return claimed


def running(engine: Engine, **changes: Any) -> Claimed:
    """Return a new execution that a worker holds."""
    lease = changes.pop("lease", LEASE)
    worker = changes.pop("worker", "w1")
    lane = changes.setdefault("lane", f"lane-{uuid4().hex[:8]}")
    created(engine, **changes)
    return claim_one(engine, lane, lease=lease, worker=worker)


def same_partition_ids(engine: Engine, count: int) -> list[ExecutionId]:
    """Mint ids of one partition, in ascending order."""
    ids: list[ExecutionId] = []
    while len(ids) < count:
        minted = ExecutionId.mint(engine.partitions)
        if not ids or minted.partition_number == ids[0].partition_number:
            ids.append(minted)
    return ids


def ids_in(engine: Engine, partition: int, count: int) -> list[ExecutionId]:
    """Mint ids of a partition, in ascending order."""
    ids: list[ExecutionId] = []
    while len(ids) < count:
        minted = ExecutionId.mint(engine.partitions)
        if minted.partition_number == partition:
            ids.append(minted)
    return ids


def all_created(engine: Engine, args: Sequence[CreateExecutionArgs]) -> list[ExecutionId]:
    """Return many executions, each of which must be new."""
    results = engine.create_executions(args)
    assert all(isinstance(result, Created) for result in results), results
    return [result.execution_id for result in results if isinstance(result, Created)]


def queue(engine: Engine, count: int, **changes: Any) -> list[ExecutionId]:
    """Create work in one partition, in the order of its ids."""
    ids = same_partition_ids(engine, count)
    return all_created(engine, [creation(execution_id=each, **changes) for each in ids])


def claimed_ids(engine: Engine, *lanes: str, **changes: Any) -> list[ExecutionId]:
    """Return what one large claim hands out, in its order."""
    return [each.execution_id for each in engine.claim_many(request(*lanes, **{"limit": 500, **changes}))]


def info_of(engine: Engine, execution_id: ExecutionId) -> ExecutionInfo:
    """Return everything about an execution that must exist."""
    info = engine.read_execution_info(execution_id)
    assert info is not None
    return info


@contextmanager
def refused(code: str) -> Iterator[pytest.ExceptionInfo[EngineError]]:
    """Provide what happens inside is refused with this code, by the class that the code stands for."""
    with pytest.raises(EngineError) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    assert type(caught.value) is CODES[code].error


def depths(engine: Engine, lane: str) -> dict[PublicState, int]:
    """Return how many executions a lane holds in each state, without those in which there are none."""
    (info,) = [each for each in engine.list_lanes(limit=1000).lanes if each.lane == lane]
    return {state: depth for state, depth in info.depths.items() if depth}


def upkeep_all(engine: Engine) -> int:
    """Handle everything that is due; return how many entries that were."""
    handled = 0
    while True:
        result = engine.run_upkeep(500)
        handled += result.handled
        if not result.more:
            return handled


def tenant(engine: Engine, namespace: str) -> Engine:
    """Return an engine that works with another namespace of the same store."""
    return Engine(lambda: (engine.store, None), namespace=namespace)


def raw_client(engine: Engine, partition: int = 0) -> Redis:
    """Return a plain client of the server that holds a partition, for looking behind the engine."""
    if engine.backend_label() == "postgresql":
        from tests.support.postgres_view import PostgresView

        view: Any = PostgresView(engine)
        return view  # type: ignore[no-any-return]
    assert isinstance(engine.store, ValkeyStore)
    return Redis(connection_pool=engine.store.pool_of(partition))


def put_into_newer_phase(engine: Engine, execution_id: ExecutionId) -> None:
    """Put an execution into a phase that only a newer release knows."""
    client = raw_client(engine, execution_id.partition_number)
    key = raw_key(engine, execution_id.partition_number, f"x:{execution_id.uuid}")
    client.hset(key, "state", b"d" + client.hget(key, "state")[1:])


def raw_key(engine: Engine, partition: int, rest: str) -> str:
    """Return the name of a key in a partition."""
    store: Any = engine.store
    prefix = store.schema if engine.backend_label() == "postgresql" else store.prefix
    return f"{prefix}:{{fp:{partition}}}:{rest}"


def damage(engine: Engine, execution_id: ExecutionId, field: str, value: bytes | None) -> None:
    """Write nonsense into a field of a stored execution, or take the field away."""
    client = raw_client(engine, execution_id.partition_number)
    key = raw_key(engine, execution_id.partition_number, f"x:{execution_id.uuid}")
    if value is None:
        client.hdel(key, field)
    else:
        client.hset(key, field, value)
