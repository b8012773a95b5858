"""The arguments and results of the area submission."""

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
        lane: the lane that it waits in; a lane exists from its first use.
        task: the kind of work; workers claim only tasks that they know.
        payload: its input; None and `b""` differ.
        codec: how the payload is encoded; the engine does not read it.
        execution_id: None to have one minted.
        priority: 0 to 9000, higher first; values outside are clamped.
        idempotency_key: a second creation of this task under the key returns the first execution, until that one has
            ended and the window of its policy is over. A failed or cancelled execution keeps its key; replay it.
        delay: how long it waits before it is ready; give at most one of `delay` and `delay_until`.
        delay_until: the moment at which it is ready; a past moment means now.
        deadline: the moment at which it ends as expired, in any phase.
        tags: values by key, to find it by.
        headers: texts for the handler, such as the context of a trace; reads show them, and no listing searches them.
        creator: who created it, for operators.
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
    """The execution was created."""

    execution_id: ExecutionId
    state: PublicState


@attrs.frozen(kw_only=True)
class Duplicate:
    """The execution was created before, under the same id or the same key.

    Attributes:
        execution_id: the execution that exists.
        same_request: whether it has the same task, payload and codec.
    """

    execution_id: ExecutionId
    same_request: bool


CreateExecutionResult = Created | Duplicate
