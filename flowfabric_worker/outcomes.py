"""What a handler may raise, and what waiting for a result may raise.

What a handler raises to end its run is no `Exception`, so that an `except Exception` of its own does not catch it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from flowfabric_worker.engine.ids import ExecutionId


class HandlerExit(BaseException):
    """The root of what a handler raises to say how its run ends."""


class Retry(HandlerExit):
    """This attempt failed; try again.

    Args:
        reason: why, for operators.
        after: how long to wait; None for what the task's policy says. The retry counts.
    """

    def __init__(self, reason: str = "retry", *, after: timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after = after


class Fail(HandlerExit):
    """The execution failed for good; no retry would help.

    Args:
        reason: why.
        detail: more of it, as text.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class Delay(HandlerExit):
    """Run again from the start at a moment, or after a time; no retry is used."""

    def __init__(self, until: datetime | timedelta) -> None:
        super().__init__(f"until {until}")
        self.until = until


class WaitChildren(HandlerExit):
    """Run again when the children of this execution have ended."""


class Cancel(HandlerExit):
    """End the execution as cancelled."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Interrupted(HandlerExit):
    """Raised by `current().check()`: whatever this run returns will not count. Clean up and leave.

    Attributes:
        reason: "cancelled or revoked", "timeout", "lease lost" or "stopping".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


class ExecutionFailed(ResultError):
    """It failed, and is not tried again."""


class ExecutionCancelled(ResultError):
    """It was cancelled."""


class ExecutionExpired(ResultError):
    """Its deadline passed before it ended."""


class ExecutionSkipped(ResultError):
    """What it depended on did not succeed, so it never ran."""
