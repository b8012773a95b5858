"""Executions that wait for signals, and the signals that they wait for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.conditions import AllOf, ResumeCondition, Single
from flowfabric_worker.engine.types.suspension import (
    DeliverSignalArgs,
    DeliverSignalResult,
    IssuedWaitpoint,
    PendingWaitpoint,
    SignalAccepted,
    SignalEffect,
    SignalSource,
    SuspendArgs,
    Suspended,
    WaitpointBinding,
)
from tests.support.executions import LANE, running

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
JANE = SignalSource("user", "jane")


def waiting_for(
    *keys: str, condition: ResumeCondition | None = None, shown: bytes | None = None, **changes: Any
) -> SuspendArgs:
    """Return a suspension on new waitpoints; by default a signal at each of them is needed."""
    bindings = [WaitpointBinding(waitpoint_key=key, shown=shown) for key in keys]
    everything = AllOf([Single(key) for key in keys])
    return SuspendArgs(condition=condition or everything, waitpoints=bindings, **changes)


def suspend(engine: Engine, claimed: Claimed, *keys: str, **changes: Any) -> tuple[IssuedWaitpoint, ...]:
    """Suspend a claimed execution; return its waitpoints."""
    outcome = engine.suspend(claimed.handle, waiting_for(*keys or ("go",), **changes))
    assert isinstance(outcome, Suspended)
    return outcome.details.waitpoints


def suspended(engine: Engine, *keys: str, **changes: Any) -> tuple[ExecutionId, IssuedWaitpoint]:
    """Return a new execution that waits, and its first waitpoint."""
    claimed = running(engine, lane=LANE)
    return claimed.execution_id, suspend(engine, claimed, *keys, **changes)[0]


def signal_to(
    execution_id: ExecutionId, waitpoint: IssuedWaitpoint | PendingWaitpoint, name: str = "go", **changes: Any
) -> DeliverSignalArgs:
    """Return a signal to a waitpoint, with its token."""
    return DeliverSignalArgs(
        **{
            "execution_id": execution_id,
            "waitpoint_id": waitpoint.waitpoint_id,
            "token": waitpoint.token,
            "name": name,
            "source": JANE,
            **changes,
        }
    )


def signal(
    engine: Engine,
    execution_id: ExecutionId,
    waitpoint: IssuedWaitpoint | PendingWaitpoint,
    name: str = "go",
    **changes: Any,
) -> DeliverSignalResult:
    """Deliver a signal to a waitpoint, with its token."""
    return engine.deliver_signal(signal_to(execution_id, waitpoint, name, **changes))


def effect_of(answer: DeliverSignalResult) -> SignalEffect:
    """Return what a signal did, which must have been accepted."""
    assert isinstance(answer, SignalAccepted)
    return answer.effect
