"""The operations of the area suspension: what must be there before each, and the call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import Handle
from flowfabric_worker.engine.ids import ExecutionId, WaitpointId, uuid7
from flowfabric_worker.engine.types.conditions import SignalMatcher, Single, TimeoutOnly
from flowfabric_worker.engine.types.suspension import (
    DeliverApprovalSignalArgs,
    DeliverSignalArgs,
    IssuedWaitpoint,
    ResumePolicy,
    SuspendArgs,
    TimeoutBehavior,
)
from flowfabric_worker.engine.types.waitpoint_secrets import RotateWaitpointHmacSecretAllArgs
from tests.support.executions import LANE, claim_one, running
from tests.support.suspensions import JANE, MINUTE, SECOND, signal, suspended, waiting_for
from tests.support.tickers import START

Act: TypeAlias = Callable[[], Any]
ROTATION = RotateWaitpointHmacSecretAllArgs(new_kid="k2", new_secret=b"2" * 32)
SLEEP = SuspendArgs(
    condition=TimeoutOnly(), timeout=SECOND, timeout_behavior=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
)


def approval(execution_id: ExecutionId, waitpoint: IssuedWaitpoint, **changes: Any) -> DeliverApprovalSignalArgs:
    """Return the decision of an operator on a waitpoint."""
    return DeliverApprovalSignalArgs(
        **{
            "execution_id": execution_id,
            "waitpoint_id": waitpoint.waitpoint_id,
            "name": "approved",
            "operator": "ann",
            "decision_key": "1",
            **changes,
        }
    )


NO_WAITPOINT = WaitpointId(str(uuid7()))
NO_TOKEN = "k1:" + "0" * 64


def arbitrary(execution_id: Any, **changes: Any) -> DeliverSignalArgs:
    """Return a signal to a waitpoint that there is not."""
    return DeliverSignalArgs(
        **{
            "execution_id": execution_id,
            "waitpoint_id": NO_WAITPOINT,
            "token": NO_TOKEN,
            "name": "go",
            "source": JANE,
            **changes,
        }
    )


SUSPENSION_HOLDING: dict[str, Callable[[Engine, Handle], Any]] = {
    "create_waitpoint": lambda engine, handle: engine.create_waitpoint(handle, "go", MINUTE),
    "suspend": lambda engine, handle: engine.suspend(handle, waiting_for("go", timeout=MINUTE)),
    "try_satisfy": lambda engine, handle: engine.try_satisfy(handle, waiting_for("go", timeout=MINUTE)),
}
SUSPENSION_BY_ID: dict[str, Callable[[Engine, Any], Any]] = {
    "deliver_signal": lambda engine, target: engine.deliver_signal(arbitrary(target)),
    "deliver_approval_signal": lambda engine, target: engine.deliver_approval_signal(
        approval(target, IssuedWaitpoint(waitpoint_id=NO_WAITPOINT, waitpoint_key="go", token=""))
    ),
    "resume_execution": lambda engine, target: engine.resume_execution(target),
    "list_pending_waitpoints": lambda engine, target: engine.list_pending_waitpoints(target),
}


def _held(act: Callable[[Engine, Handle], Any]) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        handle = running(engine, lane=LANE).handle
        return lambda: act(engine, handle)

    return arrange


def _suspended(
    act: Callable[[Engine, ExecutionId, IssuedWaitpoint], Any], *keys: str, **changes: Any
) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        execution, waitpoint = suspended(engine, *keys, **changes)
        return lambda: act(engine, execution, waitpoint)

    return arrange


def _satisfied(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    signal(engine, claimed.execution_id, engine.create_waitpoint(claimed.handle, "go", MINUTE))
    return lambda: engine.suspend(claimed.handle, waiting_for("go"))


def _satisfied_at_once(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    signal(engine, claimed.execution_id, engine.create_waitpoint(claimed.handle, "go", MINUTE))
    return lambda: engine.try_satisfy(claimed.handle, waiting_for("go"))


def _after_another(pause: timedelta, shown: bytes | None = None) -> Callable[[Engine], Act]:
    """Return how to ask for a waitpoint that was created for a second, after a pause."""

    def arrange(engine: Engine) -> Act:
        handle = running(engine, lane=LANE).handle
        engine.create_waitpoint(handle, "go", SECOND)
        engine.set_clock(START + pause)
        return lambda: engine.create_waitpoint(handle, "go", MINUTE, shown)

    return arrange


def _satisfied_by_many(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    waitpoint = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    for number in range(101):
        signal(engine, claimed.execution_id, waitpoint, f"n{number}")
    condition = Single("go", SignalMatcher("n100"))
    return lambda: engine.suspend(claimed.handle, waiting_for("go", condition=condition))


def _buffered(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    waitpoint = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    return lambda: signal(engine, claimed.execution_id, waitpoint, payload=b"x")


def _resumed(engine: Engine) -> Act:
    signal(engine, *suspended(engine))
    handle = claim_one(engine).handle
    return lambda: engine.observe_signals(handle)


SUSPENSION_OPERATIONS: dict[str, Callable[[Engine], Act]] = {
    "create_waitpoint": _held(lambda engine, handle: engine.create_waitpoint(handle, "go", MINUTE)),
    "create_waitpoint: of one that closed": _after_another(2 * SECOND),
    "create_waitpoint: that shows a document later": _after_another(0 * SECOND, b"{}"),
    "suspend": _held(lambda engine, handle: engine.suspend(handle, waiting_for("go", "other", timeout=MINUTE))),
    "suspend: to sleep": _held(lambda engine, handle: engine.suspend(handle, SLEEP)),
    "suspend: with signals that came before": _satisfied,
    "suspend: with more of them than one call counts": _satisfied_by_many,
    "try_satisfy": _held(lambda engine, handle: engine.try_satisfy(handle, waiting_for("go", timeout=MINUTE))),
    "try_satisfy: with signals that came before": _satisfied_at_once,
    "deliver_signal": _suspended(signal),
    "deliver_signal: that matches nothing": _suspended(
        lambda engine, execution, waitpoint: signal(engine, execution, waitpoint, "no"),
        condition=Single("go", SignalMatcher("yes")),
    ),
    "deliver_signal: with a key": _suspended(
        lambda engine, execution, waitpoint: signal(engine, execution, waitpoint, idempotency_key="k")
    ),
    "deliver_signal: to be buffered": _buffered,
    "deliver_signal: that resumes later": _suspended(signal, resume_policy=ResumePolicy(resume_delay=SECOND)),
    "deliver_approval_signal": _suspended(
        lambda engine, execution, waitpoint: engine.deliver_approval_signal(approval(execution, waitpoint))
    ),
    "observe_signals": _resumed,
    "resume_execution": _suspended(lambda engine, execution, _: engine.resume_execution(execution, SECOND)),
    "list_suspended": _suspended(lambda engine, execution, _: engine.list_suspended(execution.partition_number)),
    "list_pending_waitpoints": _suspended(lambda engine, execution, _: engine.list_pending_waitpoints(execution)),
    "rotate_waitpoint_hmac_secret_all": lambda engine: lambda: engine.rotate_waitpoint_hmac_secret_all(ROTATION),
}
