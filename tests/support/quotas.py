"""Short ways to make quota policies, and work under them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.quotas import (
    AdmissionOutcome,
    CheckAdmissionArgs,
    CheckAdmissionResult,
    CreateQuotaPolicyArgs,
    QuotaPolicy,
    QuotaPolicyStatus,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wire import pack
from tests.support.executions import created, ids_in, raw_client, raw_key

QUOTA = QuotaPolicyId("api")
UNDER_QUOTA = ExecutionPolicy(quota_policy_id=QUOTA)


def limited(engine: Engine, quota: str = QUOTA, **limits: Any) -> None:
    """Create a quota policy that must be new."""
    args = CreateQuotaPolicyArgs(quota_policy_id=QuotaPolicyId(quota), policy=QuotaPolicy(**limits))
    assert engine.create_quota_policy(args).created


_elsewhere: ContextVar[bool] = ContextVar("executions_are_elsewhere", default=False)


PLACES = ("beside", "elsewhere")


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Let executions under the quota be beside it, or elsewhere: in another partition if the store has several."""
    mark = _elsewhere.set(place == "elsewhere")
    try:
        yield
    finally:
        _elsewhere.reset(mark)


def away(engine: Engine, distance: int = 1) -> int:
    """Return a partition that is not the quota's, if there are several."""
    return (engine.home_of_quota(QUOTA) + distance) % engine.partitions


def queued(engine: Engine, count: int, **changes: Any) -> list[ExecutionId]:
    """Create executions under the quota, in their order, where `placed` says."""
    ids = ids_in(engine, away(engine), count) if _elsewhere.get() else [None] * count
    return [created(engine, **{"policy": UNDER_QUOTA, "execution_id": each, **changes}) for each in ids]


def hold(engine: Engine, holder: str, until: float) -> None:
    """Write a holder of a slot behind the engine: a uuid, or uuid@partition@claim if it is elsewhere."""
    home = engine.home_of_quota(QUOTA)
    uuid, _, place = holder.partition("@")
    quota = pack((engine.namespace, QUOTA))
    client: Any = raw_client(engine, home)
    if engine.backend_label() == "postgresql":
        client.rows(
            "INSERT INTO db.slots (p, quota, uuid, until) VALUES (%s, %s, %s, %s)",
            int(place.partition("@")[0] or home), quota, uuid, min(until, 2**63 - 1),
        )  # fmt: skip
    else:
        client.zadd(raw_key(engine, home, f"holders:{quota.decode()}"), {holder: until})


def status(engine: Engine, quota: str = QUOTA) -> QuotaPolicyStatus:
    """Return a quota policy that must exist."""
    found = engine.read_quota_policy(QuotaPolicyId(quota))
    assert found is not None
    return found


def running_now(engine: Engine) -> int:
    """Return how many slots of the quota are held."""
    return status(engine).running


def states(engine: Engine, executions: list[ExecutionId]) -> list[PublicState | None]:
    """Return the public states of some executions."""
    return [engine.read_execution_state(each) for each in executions]


def check(engine: Engine, execution: ExecutionId, **changes: Any) -> CheckAdmissionResult:
    """Ask for a slot of the quota by hand."""
    return engine.check_admission(CheckAdmissionArgs(quota_policy_id=QUOTA, execution_id=execution, **changes))


def admitted(engine: Engine, execution: ExecutionId, **changes: Any) -> bool:
    """Ask for a slot of the quota by hand, and return whether it was given."""
    return check(engine, execution, **changes).outcome is AdmissionOutcome.ADMITTED
