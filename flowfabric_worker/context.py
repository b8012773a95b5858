"""`current()`: the context of the attempt that a handler runs in."""

from __future__ import annotations

import contextvars
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from flowfabric_worker._flows.children import Child, Spawnable
from flowfabric_worker._steps.durable_calls import (
    caller,
)
from flowfabric_worker._steps.waits import NO_DEFAULT
from flowfabric_worker.budgets import BudgetContext
from flowfabric_worker.outcomes import ResultError
from flowfabric_worker.signals import Signal

P = ParamSpec("P")
R = TypeVar("R")

ClaimKind = Literal["fresh", "resumed", "reclaimed", "local"]
ResumedBy = Literal["signal", "operator", "timeout"]

log = logging.getLogger("flowfabric_worker.task")

LOG_FIELDS: Final = ("ff_task", "ff_lane", "ff_attempt", "ff_execution_id")


def log_fields(task: str, lane: str, attempt: int, execution_id: str) -> dict[str, object]:
    """Return the fields of a log record about an attempt, with a prefix that avoids clashes with an application's."""
    return {"ff_task": task, "ff_lane": lane, "ff_attempt": attempt, "ff_execution_id": execution_id}


class SummaryWriter:
    """Change the summary document of an attempt, which `run.summary()` reads."""

    __slots__ = ("_append",)

    def __init__(self, append: Callable[[Any], None]) -> None:
        self._append = append

    def merge(self, patch: Any) -> None:
        """Merge a JSON merge patch (RFC 7396) into the document, in the order of other patches and emitted values.

        A member that is None removes that of the document, an object merges into it, and anything else replaces it.
        The document begins empty in each attempt, and has at most 1 MiB. The patch is queued as by `emit`.

        Raises:
            EncodingError: the patch is not plain JSON, is larger than 64 KiB, or nests over 16 deep.
            EngineError, Interrupted, DurableCallError: see `TaskContext.emit`.
        """
        self._append(patch)


class TaskContext(BudgetContext):
    """The attempt that a handler runs in.

    Attributes:
        id: the execution's id, as text; in a plain call a text that no other call has.
        task: the task's name.
        lane: the lane of the execution.
        attempt: the number of this attempt, from 0.
        retry_count: the number of retries before this attempt.
        kind: how the worker claimed the execution: fresh, resumed (the same attempt continues), reclaimed (its former
            worker was lost), or local (a plain call).
        deadline: when the execution expires; None if it does not.
        tags: the tags of the execution.
        headers: the headers that were submitted with the execution.
        emitted: the values that a plain call has emitted so far; empty in an execution, whose stream has them.
        cancelled: set when the result of this attempt will not count any more.
        log: a logger whose records carry the execution's id, task and attempt.
    """

    id: str = ""
    task: str = ""
    lane: str = ""
    attempt: int = 0
    retry_count: int = 0
    kind: ClaimKind = "local"
    deadline: datetime | None = None
    tags: Mapping[str, str] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    emitted: Sequence[Any] = ()

    @property
    @abstractmethod
    def cancelled(self) -> threading.Event: ...

    @abstractmethod
    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        """Report the progress of the work.

        Args:
            percent: 0 to 100; None to keep the value that was reported before.
            message: a text for operators; None to keep the text that was reported before.
        """

    @abstractmethod
    def emit(self, value: Any, *, live: bool = False) -> None:
        """Append a value to the stream of this attempt, which `run.stream()` reads while the handler runs.

        The value is queued, and sent while the handler continues; the outcome of the attempt is sent after it. A call
        waits only while 1,000 values or 1 MiB of this attempt are on their way. Values have numbers, so a handler that
        runs again after a suspension does not repeat those that are there.

        Args:
            value: at most 64 KiB when encoded; in a generator of the type that it yields, else a plain value.
            live: True for a value that only matters to a reader that watches now: the store drops the oldest ones. A
                value that is not live is kept as long as the execution; an attempt may have 100,000, or 64 MiB.

        Raises:
            EncodingError: the value cannot be encoded, or is too large.
            EngineError: the store refused an earlier value for good, such as `stream_full`; the execution fails.
            Interrupted: the result of this attempt will not count any more.
            DurableCallError: the attempt has ended, or this process was forked from the handler's.
        """

    @property
    @abstractmethod
    def summary(self) -> SummaryWriter:
        """The summary document of this attempt, a JSON document that patches change."""

    @property
    @abstractmethod
    def signals(self) -> Sequence[Signal]:
        """The signals that came to the last suspension of the execution, oldest first.

        Every attempt gets the same, until the next suspension.
        """

    @property
    @abstractmethod
    def resume_reason(self) -> ResumedBy | None:
        """What ended the last suspension of the execution; None if it was never resumed."""

    @overload
    def step(self, name: str, /) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    @overload
    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def step(self, name: str, function: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
        """Run `function` once per execution, and return its result; later attempts return the recorded result.

        The result is encoded by `function`'s return annotation. If the process dies between the step and its
        recording, the step runs again. An exception of the function that the handler catches is recorded with the next
        durable call, and raised again in later attempts.

        Args:
            name: the name of the step, used once in a handler.
            function: what to run, with `args` and `kwargs`; None to return a decorator, whose function is such a step.

        Raises:
            DurableCallError: the name was used before in this attempt, or is reserved; the function is async or a
                generator; the result is too large; or no durable call may be made here, such as inside another step.
            EncodingError: the result would not come back equal.
        """
        if function is None:
            return as_step(name)
        return self._step(name, caller(), function, args, kwargs)

    @abstractmethod
    def _step(
        self, name: str, place: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a step; `place` is the file and line of the call."""

    @overload
    def wait_for(
        self,
        name: str,
        *,
        timeout: timedelta | None = None,
        default: Any = NO_DEFAULT,
        need: None = None,
        type: Any = Any,
        shown: Any = None,
    ) -> Any: ...

    @overload
    def wait_for(
        self,
        name: Sequence[str],
        *,
        timeout: timedelta | None = None,
        default: Any = NO_DEFAULT,
        need: int | None = None,
        type: Any = Any,
        shown: Any = None,
    ) -> dict[str, Any]: ...

    @abstractmethod
    def wait_for(
        self,
        name: str | Sequence[str],
        *,
        timeout: timedelta | None = None,
        default: Any = NO_DEFAULT,
        need: int | None = None,
        type: Any = Any,  # noqa: A002  it reads best in calls
        shown: Any = None,
    ) -> Any:
        """Wait for a signal of this name, without holding this thread, and return its payload.

        If the signal is there already, this call returns at once. Otherwise the handler is left by an exception that
        is not an `Exception`; when the wait has ended, the handler runs again from its start, and this call returns.
        The end of the wait is remembered under its name, as that of a step is. No retry is used.

        Args:
            name: the name of a waitpoint, used once in a handler; the signal has the same name, or is a decision. For
                several names, the call waits for all of them, and returns a dict of the payloads by name.
            timeout: how long to wait at most, on the store's clock; None to wait without a limit.
            default: what to return if the time is over, or an operator resumes the execution.
            need: how many of several names are enough; None for all.
            type: the annotation by which payloads are decoded; for several names, a mapping of names to annotations is
                possible. A decision is always an `Approval`; with `type=Approval` only decisions count.
            shown: a document that is shown with the waitpoint, such as what is to be approved. It must be the same in
                every run, so make it of arguments and of results of steps.

        Raises:
            WaitTimedOut: the time is over, or an operator has resumed the execution, and there is no default.
            DecodingError: the payload is not of that type.
            DurableCallError: the name was used before in this attempt, or is reserved; another argument is not allowed;
                the waitpoint shows another document; or no durable call may be made here, such as inside a step or in
                another thread.
            RuntimeError: the task was called as a plain function.
        """

    @abstractmethod
    def waitpoint(self, name: str, *, shown: Any = None) -> str:
        """Return the token by which the outside can signal a waitpoint, for `Client.signal` and `Client.approve`.

        Call it before `wait_for`, to hand the token out first. In every run of the execution it is the same token.
        Signals that come before the wait are kept for it. The token is secret: its bearer may answer.

        Args:
            name: the name that `wait_for` waits for.
            shown: see `wait_for`.

        Raises:
            DurableCallError: the name is reserved; or the waitpoint shows another document.
            EncodingError: the document would not come back equal.
            RuntimeError: the task was called as a plain function.
        """

    @abstractmethod
    def transaction(self) -> Any:
        """Return a `psycopg.Connection` to the store's database; what it writes is committed with the result.

        When the handler returns, its execution completes in the transaction of the connection, which is then committed:
        both happen, or neither. If the handler raises, or its lease is lost, everything is rolled back. Until the
        handler returns, `commit()` of the connection keeps what was done so far for that commit, and `rollback()`
        undoes what was done since the last `commit()`.

        It opens a connection, as the user of the store's URL. Make it the last durable call of the handler.

        Raises:
            DurableCallError: the store is not on Postgres; the handler has called it before; or no durable call may be
                made here, such as inside a step or in another thread.
            RuntimeError: the task was called as a plain function.
            EngineError: the store cannot be reached.
        """

    @abstractmethod
    def spawn(self, name: str, task: Spawnable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Child[R]:
        """Submit a child of this execution, and return it for `gather`; in a later run the child of that name.

        A child goes on when its parent ends by itself. If the parent is cancelled or expires, the child is cancelled,
        unless it was spawned with `task.options(detached=True)`. Its budgets are those of its parent, and its own.

        Args:
            name: the name of the child, used once in a handler.
            task: a task, or one with options.
            args: the arguments of the task.
            kwargs: the named ones.

        Raises:
            TypeError: the call does not match the signature, or an option has no meaning for a child.
            EncodingError: an argument cannot be encoded.
            DurableCallError: the name was used before in this attempt, or is reserved; or no durable call may be made
                here, such as inside a step.
            EngineError: the store refused the child.
            RuntimeError: the task was called as a plain function.
        """

    @overload
    def gather(self, *children: Child[R], settle: Literal[False] = False) -> list[R]: ...

    @overload
    def gather(self, *children: Child[R], settle: bool) -> list[R | ResultError]: ...

    @abstractmethod
    def gather(self, *children: Child[Any], settle: bool = False) -> list[Any]:
        """Wait for children without holding this thread, and return their results in the order of the arguments.

        If they have ended, this call returns at once. Otherwise the handler is left by an exception that is not an
        `Exception`; it runs again from its start once they have ended, and this call returns. No retry is used.

        Args:
            children: what `spawn` returned.
            settle: True to wait until all have ended in whatever way; each that did not succeed is a `ResultError` in
                the list.

        Raises:
            ChildFailed: a child did not succeed; it is not waited for the others, which go on.
            DecodingError: a result is not of the annotated type.
            DurableCallError: no durable call may be made here, such as inside a step or in another thread.
            RuntimeError: the task was called as a plain function.
        """

    @abstractmethod
    def idempotency_key(self, name: str) -> str:
        """Return a key of 40 characters that is the same in every run of the execution, to hand to other systems.

        A system that knows the key does a step only once, even if the process dies between the step and its recording.
        Other names and other executions have other keys; so has an execution whose steps were forgotten by a replay.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise `Interrupted` if the result of this attempt will not count any more."""

    @abstractmethod
    def shield(self) -> AbstractContextManager[None]:
        """Defer the interruption of a task with `interrupt=True` to the end of a block.

        Use it where the work must not stop half-way, such as between writing a file and renaming it.
        """

    @abstractmethod
    def sleep(self, until: timedelta | datetime, *, name: str | None = None) -> None:
        """Free this thread; after the sleep the handler runs again from its start, and this call returns at once.

        The end of the sleep is remembered, and a crash does not move it. No retry is used. The handler is left by an
        exception that is not an `Exception`.

        Args:
            until: how long to sleep, or the moment of the end; a moment that later runs give is not used.
            name: the name of the sleep, used once in a handler. Sleeps without a name are told apart by their length,
                and those of one length by their order.

        Raises:
            ValueError: the duration is negative, or the moment has no time zone.
            DurableCallError: the name was used before in this attempt, or is reserved; or no durable call may be made
                here, such as inside a step or in another thread.
            RuntimeError: the task was called as a plain function.
        """

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return logging.LoggerAdapter(log, log_fields(self.task, self.lane, self.attempt, self.id))


_current: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar("flowfabric_current", default=None)

# The runtime sets the context of each attempt with these.
enter = _current.set
leave = _current.reset


# The context of the attempt or plain call that this code runs in, or None.
context_of_this_thread = _current.get


def current() -> TaskContext:
    """Return the context of the attempt, or of the plain call of a task, that this code runs in.

    A task that is called as a function inside a handler is part of that handler's attempt.

    Raises:
        RuntimeError: this code runs in neither, or in a thread that context variables do not reach.
    """
    context = _current.get()
    if context is None:
        raise RuntimeError(
            "current() was called outside of a task. Pass the context of the handler to a thread that it starts: "
            "Thread(target=contextvars.copy_context().run, args=(function,)), or in a pool: "
            "pool.submit(contextvars.copy_context().run, function)."
        )
    return context


def as_step(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: each call of its function is the step of that name in the execution that makes it."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            context = _current.get()
            if context is None:
                return function(*args, **kwargs)
            result: R = context._step(name, caller(), function, args, kwargs)
            return result

        return run

    return decorate


@overload
def step(name: str, /) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


@overload
def step(name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...


def step(name: str, function: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
    """Run a step of the execution that this code runs in, or decorate a function as one; see `TaskContext.step`.

    Used as `@step("charge")` or `step("charge", charge, order)`. Outside of a task a decorated function is an ordinary
    one.
    """
    if function is None:
        return as_step(name)
    return current()._step(name, caller(), function, args, kwargs)


def inside_handler() -> bool:
    """Return True if this code runs inside a handler of a worker."""
    context = _current.get()
    return context is not None and context.kind != "local"
