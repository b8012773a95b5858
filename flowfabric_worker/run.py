"""`Run`, the handle of a submitted execution, and the errors of executions that did not succeed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar, overload

from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.context import inside_handler
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import CancelExecutionArgs, ReplayExecutionArgs
from flowfabric_worker.engine.types.feed import ExecutionOutcome
from flowfabric_worker.engine.types.states import PublicState, TerminalOutcome
from flowfabric_worker.outcomes import (
    ExecutionCancelled,
    ExecutionExpired,
    ExecutionFailed,
    ExecutionSkipped,
    ResultError,
)
from flowfabric_worker.stream import RunStream, RunSummary, read_summary

R = TypeVar("R")
T = TypeVar("T")


class Owner(Protocol):
    """The worker or client that a task belongs to."""

    @property
    def name(self) -> str: ...

    @property
    def namespace(self) -> str: ...

    @property
    def engine(self) -> EngineBackend: ...


class SubmittedTask(Protocol):
    """The task of a run."""

    @property
    def owner(self) -> Owner: ...

    @property
    def codec(self) -> TaskCodec: ...


class Run(Generic[R]):
    """The handle of a submitted execution.

    Attributes:
        id: the execution's id.
        created: False if an earlier submission with the same key had created the execution.
    """

    __slots__ = ("_codec", "_engine", "_task", "created", "id")

    def __init__(self, execution_id: ExecutionId, task: SubmittedTask, created: bool) -> None:
        self.id = execution_id
        self.created = created
        self._task = task
        self._engine = task.owner.engine
        self._codec = task.codec

    def __reduce__(self) -> tuple[Callable[..., Run[Any]], tuple[object, ExecutionId, bool]]:
        # Restore the run through the client if the task belongs to one: such a task cannot be imported.
        owner = self._task.owner
        return _restore_run, (owner if hasattr(owner, "submit") else self._task, self.id, self.created)

    def __repr__(self) -> str:
        return f"Run({str(self.id)!r})"

    @overload
    def result(self: Run[Generator[Any, Any, T]], timeout: float | timedelta | None = None) -> T: ...

    @overload
    def result(self: Run[Iterator[T]], timeout: float | timedelta | None = None) -> Any: ...

    @overload
    def result(self: Run[Iterable[T]], timeout: float | timedelta | None = None) -> Any: ...

    @overload
    def result(self, timeout: float | timedelta | None = None) -> R: ...

    def result(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the execution ends, and return its result.

        Args:
            timeout: seconds, or a timedelta; None to wait without a limit.

        Raises:
            ExecutionFailed, ExecutionCancelled, ExecutionExpired, ExecutionSkipped: the execution did not succeed.
            EngineTimeoutError: the execution did not end in time; it continues.
            RuntimeError: the call was made inside a handler, where it would block a handler thread.
        """
        if inside_handler():
            raise RuntimeError(
                "result() inside a handler would block its thread, and a worker whose threads all wait cannot make "
                "progress: use current().gather(...)."
            )
        outcome = self._engine.wait_for_result(self.id, time_limit(timeout))
        if outcome.outcome is not TerminalOutcome.SUCCESS:
            raise result_error(outcome)
        codec = self._codec and self._codec.named(outcome.codec)
        return codec.decode_result(outcome.result) if codec else outcome.result

    @overload
    def stream(
        self: Run[Generator[T, Any, Any]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(
        self: Run[Iterator[T]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(
        self: Run[Iterable[T]], after: str | None = None, *, timeout: float | timedelta | None = None
    ) -> RunStream[T]: ...

    @overload
    def stream(self, after: str | None = None, *, timeout: float | timedelta | None = None) -> RunStream[Any]: ...

    def stream(self, after: str | None = None, *, timeout: float | timedelta | None = None) -> RunStream[Any]:
        """Return an iterator over the values that the run emits, from the first one on, until the run has ended.

        It yields a `StreamValue` for each value, an `AttemptBegan` where another attempt begins, which emits its
        values from the start again, and a `ValuesDropped` where live values were dropped before they were read.
        Values that others appended with the engine come as bytes.

        Args:
            after: the cursor of an item, to continue behind it; None for the beginning.
            timeout: how long to wait for each item, in seconds or as a timedelta; None to wait without a limit.

        Raises:
            ValidationError: `invalid_cursor`, the cursor is damaged, or belongs to another run.
            RuntimeError: the call was made inside a handler, where it would block a handler thread.
        """
        if inside_handler():
            raise RuntimeError(
                "stream() inside a handler would block its thread, and a worker whose threads all wait makes no "
                "progress: read the stream in another process or thread."
            )
        limit = time_limit(timeout)
        return RunStream(self._engine, self.id, self._codec, after, None if limit is None else limit.total_seconds())

    def summary(self, attempt: int | None = None) -> RunSummary | None:
        """Return the summary document that the handler has made with `current().summary.merge(patch)`.

        Args:
            attempt: the number of the attempt, from 0; None for the latest one.

        Returns:
            The document and its version; None if the attempt has merged no patch.

        Raises:
            NotFoundError: `execution_not_found`.
        """
        return read_summary(self._engine, self.id, attempt)

    def state(self) -> PublicState | None:
        """Return the present state of the execution; None if its retention is over."""
        return self._engine.read_execution_state(self.id)

    def cancel(self, reason: str = "") -> None:
        """Cancel the execution, whether it is waiting, running or suspended."""
        self._engine.cancel_execution(CancelExecutionArgs(execution_id=self.id, reason=reason))

    def replay(self, *, steps: str = "keep", from_step: str | None = None) -> None:
        """Run the execution again, which must have ended.

        Args:
            steps: "keep" what its steps and waits brought, or "forget" it.
            from_step: a step or a wait: keep what was recorded before it, and forget it and all that came after.
        """
        self._engine.replay_execution(ReplayExecutionArgs(execution_id=self.id, steps=steps, from_step=from_step))


_ERRORS: dict[TerminalOutcome, type[ResultError]] = {
    TerminalOutcome.FAILED: ExecutionFailed,
    TerminalOutcome.CANCELLED: ExecutionCancelled,
    TerminalOutcome.EXPIRED: ExecutionExpired,
    TerminalOutcome.SKIPPED: ExecutionSkipped,
}


def result_error(outcome: ExecutionOutcome) -> ResultError:
    """Return the error for an execution that did not succeed."""
    reason = outcome.error or outcome.outcome.value
    return _ERRORS[outcome.outcome](outcome.execution_id, reason, outcome.detail.decode("utf-8", "replace"))


def _restore_run(source: Any, execution_id: ExecutionId, created: bool) -> Run[Any]:
    """Restore a pickled run from its task or its client."""
    run: Run[Any] = source.run(execution_id)
    run.created = created
    return run


def time_limit(timeout: float | timedelta | None) -> timedelta | None:
    """Return for how long a caller waits, given in seconds or as a timedelta; None for no limit.

    Raises:
        ValidationError: `invalid_input`.
    """
    if timeout is None or isinstance(timeout, timedelta):
        return timeout
    try:
        return timedelta(seconds=timeout)
    except (TypeError, ValueError, OverflowError):
        raise ValidationError(
            "invalid_input", f"timeout is a number of seconds, a timedelta or None, not {timeout!r:.100}."
        ) from None
