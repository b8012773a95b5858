"""Calls of the area suspension that must be refused, each with the code that it is refused with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import attrs

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.handle import HandleKind
from flowfabric_worker.engine.ids import ExecutionId, SignalId, WaitpointId
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.conditions import (
    AllOf,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    Single,
    TimeoutOnly,
)
from flowfabric_worker.engine.types.suspension import IssuedWaitpoint, PendingWaitpoint, SuspendArgs, WaitpointBinding
from tests.support.executions import LANE, LEASE, claim_one, running
from tests.support.operations import START
from tests.support.refusals import Case, held, plain
from tests.support.suspension_operations import NO_WAITPOINT, ROTATION, SUSPENSION_BY_ID, Act, approval
from tests.support.suspensions import MINUTE, signal, suspend, suspended, waiting_for


def waiting(code: str, act: Callable[[Engine, ExecutionId, IssuedWaitpoint], Any], **changes: Any) -> Case:
    """Return a call on an execution that is suspended."""

    def arrange(engine: Engine) -> Act:
        execution, waitpoint = suspended(engine, **changes)
        return lambda: act(engine, execution, waitpoint)

    return code, arrange


def suspending(code: str, condition: ResumeCondition, *keys: str, **changes: Any) -> Case:
    """Return a suspension with a condition that does not fit."""
    return held(code, lambda engine, handle: engine.suspend(handle, waiting_for(*keys, condition=condition, **changes)))


def taking_over(code: str, pending: Callable[[Engine, Claimed], str]) -> Case:
    """Return a suspension that takes over a waitpoint which it may not have."""

    def arrange(engine: Engine) -> Act:
        claimed = running(engine, lane=LANE, lease=10 * LEASE)
        binding = WaitpointBinding(waitpoint_key="go", pending=WaitpointId(pending(engine, claimed)))
        return lambda: engine.suspend(claimed.handle, SuspendArgs(condition=Single("go"), waitpoints=[binding]))

    return code, arrange


def _of_another(engine: Engine, _claimed: Claimed) -> str:
    return engine.create_waitpoint(running(engine).handle, "go", MINUTE).waitpoint_id


def _of_another_name(engine: Engine, claimed: Claimed) -> str:
    return engine.create_waitpoint(claimed.handle, "other", MINUTE).waitpoint_id


def _expired(engine: Engine, claimed: Claimed) -> str:
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    engine.set_clock(START + MINUTE)
    return pending.waitpoint_id


def with_tokens(why: str) -> Case:
    """Return a signal with a token that opens nothing."""

    def arrange(engine: Engine) -> Act:
        execution, waitpoint = suspended(engine)
        kid, _, digits = waitpoint.token.partition(":")
        _, other = suspended(engine)
        changed: dict[str, dict[str, Any]] = {
            "a digit changed": {"token": f"{kid}:{'0' if digits[0] != '0' else '1'}{digits[1:]}"},
            "cut short": {"token": waitpoint.token[:-1]},
            "in capitals": {"token": f"{kid}:{digits.upper()}"},
            "another kid": {"token": f"k9:{digits}"},
            "no kid": {"token": digits},
            "nothing": {"token": ""},
            "no text": {"token": None},
            "that of another waitpoint": {"token": other.token},
            "that of another execution": {"token": other.token, "waitpoint_id": other.waitpoint_id},
            "its own, at no waitpoint": {"waitpoint_id": NO_WAITPOINT},
            "its own, at something else": {"waitpoint_id": WaitpointId("w")},
        }
        return lambda: signal(engine, execution, waitpoint, **changed[why])

    return "invalid_token", arrange


TOKENS = (
    "a digit changed", "cut short", "in capitals", "another kid", "no kid", "nothing", "no text",
    "that of another waitpoint", "that of another execution", "its own, at no waitpoint", "its own, at something else",
)  # fmt: skip


def _closed(
    act: Callable[[Engine, ExecutionId, IssuedWaitpoint | PendingWaitpoint], Any] = signal,
) -> Callable[[Engine], Act]:
    def arrange(engine: Engine) -> Act:
        execution, waitpoint = suspended(engine)
        signal(engine, execution, waitpoint)
        return lambda: act(engine, execution, waitpoint)

    return arrange


def _consumed(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    signal(engine, claimed.execution_id, suspend(engine, claimed, "go")[0])
    handle = claim_one(engine).handle
    return lambda: engine.suspend(handle, waiting_for("go"))


def _decided(engine: Engine) -> Act:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    issued = IssuedWaitpoint(waitpoint_id=pending.waitpoint_id, waitpoint_key="go", token=pending.token)
    engine.deliver_approval_signal(approval(claimed.execution_id, issued))
    return lambda: engine.deliver_approval_signal(approval(claimed.execution_id, issued, name="rejected"))


def _after_ready(engine: Engine) -> Act:
    execution, _ = suspended(engine)
    engine.resume_execution(execution)
    return lambda: engine.resume_execution(execution)


def observing(code: str, **arguments: Any) -> Case:
    return held(code, lambda engine, handle: engine.observe_signals(handle, **arguments))


def rotating(**changes: Any) -> Callable[[Engine], Any]:
    return lambda engine: engine.rotate_waitpoint_hmac_secret_all(attrs.evolve(ROTATION, **changes))


SINGLE = Single("go")
DEEP = AllOf([AllOf([AllOf([AllOf([AllOf([SINGLE])])])])])
SUSPENSION_REFUSALS: dict[str, Case] = {
    "create_waitpoint: without a name": held("invalid_input", lambda e, handle: e.create_waitpoint(handle, "", MINUTE)),
    "create_waitpoint: for no time": held(
        "invalid_input", lambda engine, handle: engine.create_waitpoint(handle, "go", timedelta())
    ),
    "suspend: twice": held(
        "already_suspended",
        lambda engine, handle: engine.suspend(attrs.evolve(handle, kind=HandleKind.SUSPENDED), waiting_for("go")),
    ),
    "suspend: with something else": held("invalid_input", lambda engine, handle: engine.suspend(handle, None)),
    "suspend: nested too deep": suspending("invalid_condition", DEEP, "go"),
    "suspend: on no member": suspending("invalid_condition", AllOf([])),
    "suspend: on a name that is not bound": suspending("invalid_condition", Single("other"), "go"),
    "suspend: with a waitpoint that does not count": suspending("invalid_condition", SINGLE, "go", "idle"),
    "suspend: one name twice": suspending("invalid_condition", SINGLE, "go", "go"),
    "suspend: on an operator among others": suspending("invalid_condition", AllOf([SINGLE, OperatorOnly()]), "go"),
    "suspend: on time without a timeout": suspending("invalid_condition", TimeoutOnly()),
    "suspend: on more waitpoints than there are": suspending(
        "invalid_condition", Count(n=2, kind=CountKind.WAITPOINTS, waitpoint_keys=["go", "go"]), "go"
    ),
    "suspend: on none": suspending(
        "invalid_condition", Count(n=0, kind=CountKind.SIGNALS, waitpoint_keys=["go"]), "go"
    ),
    "suspend: on too much text": suspending(
        "invalid_condition", AllOf([Single("x" * 250) for _ in range(33)]), "x" * 250
    ),
    "suspend: with an unknown behavior": suspending("invalid_input", SINGLE, "go", timeout_behavior="explode"),
    "suspend: with the waitpoint of another execution": taking_over("invalid_waitpoint_for_execution", _of_another),
    "suspend: with the waitpoint of another name": taking_over("waitpoint_not_found", _of_another_name),
    "suspend: with no waitpoint's id": taking_over("waitpoint_not_found", lambda *_: str(uuid4())),
    "suspend: with an expired waitpoint": taking_over("pending_waitpoint_expired", _expired),
    "suspend: on what is answered": ("waitpoint_not_pending", _consumed),
    **{f"deliver_signal: with a token, {why}": with_tokens(why) for why in TOKENS},
    "deliver_signal: of something else": plain("invalid_input", lambda engine: engine.deliver_signal(None)),
    "deliver_signal: from no source": waiting(
        "invalid_input", lambda engine, execution, waitpoint: signal(engine, execution, waitpoint, source="jane")
    ),
    "deliver_signal: to a closed waitpoint": ("waitpoint_closed", _closed()),
    "deliver_signal: too large": waiting(
        "payload_too_large",
        lambda engine, execution, waitpoint: signal(engine, execution, waitpoint, payload=b"x" * (64 * 1024 + 1)),
    ),
    "deliver_signal: under no id": waiting(
        "invalid_input",
        lambda engine, execution, waitpoint: signal(engine, execution, waitpoint, signal_id=SignalId("")),
    ),
    "deliver_approval_signal: of another lane": waiting(
        "lane_mismatch",
        lambda engine, execution, waitpoint: engine.deliver_approval_signal(
            approval(execution, waitpoint, lane="elsewhere")
        ),
    ),
    "deliver_approval_signal: to an unknown waitpoint": waiting(
        "waitpoint_not_found",
        lambda engine, execution, _: SUSPENSION_BY_ID["deliver_approval_signal"](engine, execution),
    ),
    "deliver_approval_signal: to a closed waitpoint": (
        "waitpoint_closed",
        _closed(lambda engine, *where: engine.deliver_approval_signal(approval(*where))),  # type: ignore[arg-type]
    ),
    "deliver_approval_signal: when it is decided": ("waitpoint_closed", _decided),
    "resume_execution: that runs": held(
        "execution_not_suspended", lambda engine, handle: engine.resume_execution(handle.execution_id)
    ),
    "resume_execution: twice": ("execution_not_suspended", _after_ready),
    "resume_execution: at a negative time": waiting(
        "invalid_input", lambda engine, execution, _: engine.resume_execution(execution, -MINUTE)
    ),
    "observe_signals: of no execution": held(
        "execution_not_found",
        lambda engine, handle: engine.observe_signals(
            attrs.evolve(handle, execution_id=ExecutionId.mint(engine.partitions))
        ),
    ),
    "observe_signals: behind nothing": observing("invalid_cursor", cursor="x"),
    "observe_signals: none": observing("invalid_input", limit=0),
    "list_suspended: behind nothing": plain("invalid_cursor", lambda engine: engine.list_suspended(0, "x")),
    "list_suspended: none": plain("invalid_input", lambda engine: engine.list_suspended(0, limit=0)),
    "list_suspended: in no partition": plain("partition_mismatch", lambda engine: engine.list_suspended(999)),
    "list_pending_waitpoints: behind nothing": waiting(
        "invalid_cursor", lambda engine, execution, _: engine.list_pending_waitpoints(execution, "x")
    ),
    "list_pending_waitpoints: none": waiting(
        "invalid_input", lambda engine, execution, _: engine.list_pending_waitpoints(execution, limit=0)
    ),
    "rotate_waitpoint_hmac_secret_all: under a kid with a colon": plain("invalid_kid", rotating(new_kid="a:b")),
    "rotate_waitpoint_hmac_secret_all: to nothing": plain("invalid_secret", rotating(new_secret=b"")),
    "rotate_waitpoint_hmac_secret_all: with too long a grace": plain(
        "invalid_input", rotating(grace=timedelta(days=366))
    ),
    "rotate_waitpoint_hmac_secret_all: of something else": plain(
        "invalid_input", lambda engine: engine.rotate_waitpoint_hmac_secret_all(None)
    ),
}
