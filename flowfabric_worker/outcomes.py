"""What a handler may raise, and what waiting for a result may raise.

What a handler raises to end its run is no `Exception`, so that an `except Exception` of its own does not catch it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, overload

from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.policies import milliseconds


class HandlerExit(BaseException):
    """The root of what a handler raises to say how its run ends."""


class Retry(HandlerExit):
    """This attempt failed; try again.

    Args:
        reason: why, for operators.
        after: how long to wait; None for what the task's policy says. The retry counts.

    Raises:
        ValidationError: `after` is no duration.
    """

    def __init__(self, reason: object = "retry", *, after: timedelta | None = None) -> None:
        self.reason = str(reason)
        self.after = after
        if after is not None:
            milliseconds(after, "after")
        super().__init__(self.reason)


class Fail(HandlerExit):
    """The execution failed for good; no retry would help.

    Args:
        reason: why.
        detail: more of it.
    """

    def __init__(self, reason: object, *, detail: object = "") -> None:
        self.reason = str(reason)
        self.detail = str(detail)
        super().__init__(self.reason)


class Delay(HandlerExit):
    """Run again from the start at a moment, or after a time; no retry is used.

    Raises:
        ValidationError: the time is no duration.
        ValueError: the moment has no time zone.
    """

    def __init__(self, until: datetime | timedelta) -> None:
        if not isinstance(until, datetime):
            milliseconds(until, "until")
        elif until.utcoffset() is None:
            raise ValueError(f"Delay needs a moment with a time zone, such as datetime.now(UTC), not {until!r}.")
        self.until = until
        super().__init__(f"until {until}")


@overload
def plain_time(time: timedelta) -> timedelta: ...


@overload
def plain_time(time: datetime | timedelta) -> datetime | timedelta: ...


def plain_time(time: datetime | timedelta) -> datetime | timedelta:
    """Return a moment in UTC, or a duration in whole milliseconds, without classes of the user."""
    if isinstance(time, datetime):
        return datetime.fromtimestamp(time.timestamp(), UTC)
    return timedelta(milliseconds=milliseconds(time, "a duration"))


class WaitChildren(HandlerExit):
    """Run again when the children of this execution have ended."""


class Cancel(HandlerExit):
    """End the execution as cancelled."""

    def __init__(self, reason: object = "") -> None:
        self.reason = str(reason)
        super().__init__(self.reason)


class Interrupted(HandlerExit):
    """Raised by `current().check()`, and anywhere in the handler of a task with `interrupt=True`.

    Whatever this run returns will not count. Clean up and leave.

    Attributes:
        reason: "cancelled or revoked", "timeout", "lease lost", "stopping", or "interrupted" where Python raised it.
    """

    def __init__(self, reason: str = "interrupted") -> None:
        super().__init__(reason)
        self.reason = reason


class DurableCallError(RuntimeError):
    """A durable call, such as `step` or `sleep`, that cannot be made in this place or under this name.

    It fails the execution for good: the same code would make the same call again.
    """


class StepFailed(Exception):  # noqa: N818  it says what happened
    """Stands for the exception of a step in an earlier run, whose class cannot be had in this one.

    Attributes:
        step: the name of the step.
        class_name: the class of the exception, with its module.
        text: its text.
    """

    def __init__(self, step: str, class_name: str, text: str) -> None:
        super().__init__(f"{step}: {class_name}: {text}")
        self.step = step
        self.class_name = class_name
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.class_name, self.text)


class ResultError(Exception):
    """The execution that was waited for did not succeed.

    Attributes:
        execution_id: which one.
        reason: what is known of why.
        detail: more of it, such as the traceback of the last attempt.
    """

    def __init__(self, execution_id: ExecutionId, reason: str, detail: str = "") -> None:
        super().__init__(f"{execution_id}: {reason}")
        self.execution_id = execution_id
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.execution_id, self.reason, self.detail)


class ExecutionFailed(ResultError):  # noqa: N818  it says what happened
    """It failed, and is not tried again."""


class ExecutionCancelled(ResultError):  # noqa: N818  it says what happened
    """It was cancelled."""


class ExecutionExpired(ResultError):  # noqa: N818  it says what happened
    """Its deadline passed before it ended."""


class ExecutionSkipped(ResultError):  # noqa: N818  it says what happened
    """What it depended on did not succeed, so it never ran."""
