"""The exceptions that a handler may raise, and those that waiting for a result may raise.

An exception that ends an attempt on purpose is not an `Exception`, so `except Exception` in a handler lets it pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, overload

from flowfabric_worker._codecs import Mismatch
from flowfabric_worker.codec import register
from flowfabric_worker.engine.conditions import referenced_waitpoint_keys, validate
from flowfabric_worker.engine.errors import FlowFabricError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId, check_name
from flowfabric_worker.engine.limits import MAX_FLOW_ROWS
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.types.checks import word
from flowfabric_worker.engine.types.conditions import ResumeCondition
from flowfabric_worker.engine.types.suspension import (
    ResumePolicy,
    SuspendArgs,
    SuspensionReason,
    TimeoutBehavior,
    WaitpointBinding,
)


class HandlerExit(BaseException):
    """The root of the exceptions by which a handler chooses the outcome of its attempt."""


class Retry(HandlerExit):
    """Fail this attempt, and try again.

    Args:
        reason: the reason, for operators.
        after: how long to wait before the retry, which counts; None for the delay of the task's retry policy.

    Raises:
        ValidationError: `after` is not a valid duration.
    """

    def __init__(self, reason: object = "retry", *, after: timedelta | None = None) -> None:
        self.reason = str(reason)
        self.after = after
        if after is not None:
            milliseconds(after, "after")
        super().__init__(self.reason)


class Fail(HandlerExit):
    """Fail the execution for good; it is not retried.

    Args:
        reason: the reason, in one line.
        detail: a longer text, such as a traceback.
    """

    def __init__(self, reason: object, *, detail: object = "") -> None:
        self.reason = str(reason)
        self.detail = str(detail)
        super().__init__(self.reason)


class Delay(HandlerExit):
    """Run the handler again from its start, at a moment or after a duration; no retry is used.

    Raises:
        ValidationError: `until` is neither a moment nor a valid duration.
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
    """Return a moment in UTC, or a duration in whole milliseconds, as an instance of the plain class."""
    if isinstance(time, datetime):
        return datetime.fromtimestamp(time.timestamp(), UTC)
    return timedelta(milliseconds=milliseconds(time, "a duration"))


class Suspend(HandlerExit):
    """Suspend the execution until its condition is met; then the handler runs again from its start.

    `current().signals` and `current().resume_reason` tell what happened, until the next suspension. For most waits
    `current().wait_for(...)` is simpler.

    Args:
        condition: when signals resume the execution; its waitpoints are those of the execution with these names.
        timeout: how long it waits at most, on the store's clock; None to wait without a limit.
        on_timeout: what becomes of the execution when its time is over; `auto_resume_with_timeout_signal` runs the
            handler again.
        reason: why it waits, for operators.
        resume_delay: how long after its resume the handler runs again.

    Raises:
        ValidationError: `invalid_condition`, the condition can never be met; `invalid_input`.
    """

    def __init__(
        self,
        condition: ResumeCondition,
        *,
        timeout: timedelta | None = None,
        on_timeout: TimeoutBehavior | str = TimeoutBehavior.FAIL,
        reason: SuspensionReason | str = SuspensionReason.WAITING_FOR_SIGNAL,
        resume_delay: timedelta = timedelta(0),
    ) -> None:
        keys = referenced_waitpoint_keys(condition)
        validate(condition, keys, has_timeout=timeout is not None)
        self.request = SuspendArgs(
            condition=condition,
            waitpoints=[WaitpointBinding(waitpoint_key=key) for key in keys],
            timeout=None if timeout is None else plain_time(timeout),
            timeout_behavior=word(TimeoutBehavior, on_timeout, "on_timeout"),
            reason=word(SuspensionReason, reason, "reason"),
            resume_policy=ResumePolicy(resume_delay=plain_time(resume_delay)),
        )
        super().__init__(f"until {condition}")


class WaitChildren(HandlerExit):
    """Run the handler again when children of this execution have ended; `current().gather(...)` is simpler.

    Without such children the handler runs again at once. So a handler that raises it in every run never ends: first
    check what is outstanding.

    Args:
        names: the names of the children; None for all that are not detached.
        need: how many of them must succeed; None for all. The handler runs again as well when they can no longer.
        settle: True to wait until all of them have ended, in whatever way.

    Raises:
        ValidationError: `invalid_input`, a name is not valid, there are more than 1,000, or `need` is not at least 1.
    """

    def __init__(self, names: Iterable[str] | None = None, *, need: int | None = None, settle: bool = False) -> None:
        self.names = (
            None if names is None else tuple(dict.fromkeys(check_name(each, "a child's name") for each in names))
        )
        if self.names is not None and len(self.names) > MAX_FLOW_ROWS:
            raise ValidationError("invalid_input", f"One wait is for at most {MAX_FLOW_ROWS} children.")
        if need is not None and (type(need) is not int or need < 1):
            raise ValidationError("invalid_input", f"need= is a number of children from 1, not {need!r}.")
        self.need = need
        self.settle = settle
        super().__init__("for children" if self.names is None else f"for {', '.join(self.names)}")


class Cancel(HandlerExit):
    """End the execution as cancelled."""

    def __init__(self, reason: object = "") -> None:
        self.reason = str(reason)
        super().__init__(self.reason)


class Interrupted(HandlerExit):
    """Tell a handler that its result will not count, so that it cleans up and returns.

    `current().check()` raises it; in the handler of a task with `interrupt=True` any line may raise it.

    Attributes:
        reason: "cancelled or revoked", "timeout", "lease lost" or "stopping"; "interrupted" if it was raised between
            two lines of the handler.
    """

    def __init__(self, reason: str = "interrupted") -> None:
        super().__init__(reason)
        self.reason = reason


class DurableCallError(FlowFabricError, RuntimeError):
    """A durable call, such as `step` or `wait_for`, was made in a place or with arguments that are not allowed.

    It fails the execution for good, because a retry would make the same call again.
    """


class WaitTimedOut(FlowFabricError):  # noqa: N818  it says what happened
    """A `wait_for` ended before what it waited for had come.

    A handler that runs again gets it again, so it fails an execution for good.

    Attributes:
        names: the names that the handler waited for.
        received: the payloads that came in time, by name.
        reason: "timeout", or "operator" if an operator resumed the execution.
    """

    def __init__(self, names: Sequence[str], received: Mapping[str, Any], reason: str = "timeout") -> None:
        why = "its time was over" if reason == "timeout" else "an operator resumed the execution"
        came = f"; {', '.join(map(repr, received))} came" if received else ""
        super().__init__(f"The wait for {', '.join(map(repr, names))} ended because {why}{came}.")
        self.names = tuple(names)
        self.received = dict(received)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.names, self.received, self.reason)


class ChildFailed(FlowFabricError):  # noqa: N818  it says what happened
    """A child that `gather` waited for did not succeed.

    A handler that runs again gets it again, so it fails an execution for good.

    Attributes:
        name: the name of the child.
        failure: how it ended.
        results: the results of the children that had succeeded, by name.
        running: the names of the children that had not ended; they go on.
    """

    def __init__(
        self, name: str, failure: ResultError, results: Mapping[str, Any], running: Sequence[str] = ()
    ) -> None:
        going_on = f"; {', '.join(map(repr, running))} had not ended, and go on" if running else ""
        super().__init__(f"The child {name!r} did not succeed: {failure}{going_on}.")
        self.name = name
        self.failure = failure
        self.results = dict(results)
        self.running = tuple(running)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.failure, self.results, self.running)


class StepFailed(Exception):  # noqa: N818  it says what happened
    """Replaces the exception of a step from an earlier attempt if its class is not available in this process.

    Attributes:
        step: the name of the step.
        class_name: the class of the exception, with its module.
        text: the text of the exception.
    """

    def __init__(self, step: str, class_name: str, text: str) -> None:
        super().__init__(f"{step}: {class_name}: {text}")
        self.step = step
        self.class_name = class_name
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.class_name, self.text)


class ResultError(FlowFabricError):
    """The execution did not succeed, so it has no result.

    Attributes:
        execution_id: the id of the execution.
        reason: why it did not succeed, in one line.
        detail: a longer text, such as the traceback of the last attempt.
    """

    def __init__(self, execution_id: ExecutionId, reason: str, detail: str = "") -> None:
        super().__init__(f"{execution_id}: {reason}")
        self.execution_id = execution_id
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.execution_id, self.reason, self.detail)


def _error_to_plain(error: ResultError) -> list[str]:
    return [str(error.execution_id), error.reason, error.detail]


def _error_from_plain(plain: Any) -> ResultError:
    if not isinstance(plain, list) or [type(each) for each in plain] != [str, str, str]:
        raise Mismatch("expected the id, the reason and the detail of a ResultError")
    return ResultError(ExecutionId.parse(plain[0]), *plain[1:])


# A node that waits for the end of others may be annotated to take the errors of those that failed.
register(ResultError, _error_to_plain, _error_from_plain)


class ExecutionFailed(ResultError):  # noqa: N818  it says what happened
    """The execution failed, and no retry follows."""


class ExecutionCancelled(ResultError):  # noqa: N818  it says what happened
    """The execution was cancelled."""


class ExecutionExpired(ResultError):  # noqa: N818  it says what happened
    """The deadline of the execution passed before it ended."""


class ExecutionSkipped(ResultError):  # noqa: N818  it says what happened
    """The execution never ran, because an execution that it depends on did not succeed."""
