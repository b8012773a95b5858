"""submission: arguments and results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

import attrs

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState

DEFAULT_POLICY = ExecutionPolicy()


@attrs.frozen(kw_only=True)
class CreateExecutionArgs:
    """A new execution.

    Attributes:
        lane: the queue it waits in; a lane exists from its first use.
        task: the kind of work; workers claim only tasks that they know.
        payload: its input; None and `b""` differ.
        codec: how the payload is encoded; the engine does not look inside.
        execution_id: None to have one minted.
        priority: 0 to 9000, higher first; others are clamped.
        idempotency_key: a second creation of this task under it answers with the first execution, until that one
            has ended and the window of the policy is over. What failed or was cancelled keeps its key too: replay it.
        delay: begin not before this long from now; at most one of `delay` and `delay_until`.
        delay_until: begin not before this moment; a past one means now.
        deadline: it ends `expired` at this moment, whatever it is doing.
        tags: names to find it by.
        headers: carried to the handler and shown by reads, but not searched: a trace's context, an origin.
        creator: who made it, for operators.
    """

    lane: str
    task: str
    payload: bytes | None = attrs.field(default=None, repr=False)
    codec: str = ""
    execution_id: ExecutionId | None = None
    priority: int = 0
    idempotency_key: str | None = None
    delay: timedelta | None = None
    delay_until: datetime | None = None
    deadline: datetime | None = None
    policy: ExecutionPolicy = DEFAULT_POLICY
    tags: Mapping[str, str] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)
    creator: str = ""


@attrs.frozen(kw_only=True)
class Created:
    """The execution was made."""

    execution_id: ExecutionId
    state: PublicState


@attrs.frozen(kw_only=True)
class Duplicate:
    """It had been made before, under the same id or the same key.

    Attributes:
        execution_id: the one that exists.
        same_request: whether task, payload and codec are those of the first request.
    """

    execution_id: ExecutionId
    same_request: bool


CreateExecutionResult = Created | Duplicate
