"""`current()`: what a handler may ask for while it runs."""

from __future__ import annotations

import contextvars
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, ParamSpec, TypeVar
from uuid import uuid4

from flowfabric_worker._steps.durable_calls import DurableCalls, caller, check_step, check_step_result, inside_step
from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.outcomes import Interrupted

P = ParamSpec("P")
R = TypeVar("R")

ClaimKind = Literal["fresh", "resumed", "reclaimed", "local"]

log = logging.getLogger("flowfabric_worker.task")

LOG_FIELDS: Final = ("ff_task", "ff_lane", "ff_attempt", "ff_execution_id")


def log_fields(task: str, lane: str, attempt: int, execution_id: str) -> dict[str, object]:
    """Return what a log record about a run carries. The prefix keeps clear of what applications put into theirs."""
    return {"ff_task": task, "ff_lane": lane, "ff_attempt": attempt, "ff_execution_id": execution_id}


class TaskContext(ABC):
    """The run that a handler is in.

    Attributes:
        id: the execution's id, as text; in a plain call a text that no other call has.
        task: the task's name.
        lane: the lane that it came from.
        attempt: the number of this attempt, from 0.
        retry_count: retries made before this attempt.
        kind: how the work came here: fresh, resumed (the same attempt goes on), reclaimed (a worker was lost), or
            local (a plain call).
        deadline: when the execution expires; None if it does not.
        tags: its tags.
        headers: what came with its submission beside its arguments.
        cancelled: set when the result of this run will not count any more.
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

    @property
    @abstractmethod
    def cancelled(self) -> threading.Event: ...

    @abstractmethod
    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        """Say how far the work is, 0 to 100; None keeps what was said before."""

    @abstractmethod
    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` once per execution: later runs get the result that was recorded under `name`.

        The result travels as `function`'s return annotation says. If the process dies between the step and its
        recording, the step runs again. An exception of the function that the handler catches is recorded with the next
        durable call, and raised again in later runs.

        Raises:
            DurableCallError: the name was used before in this run, or is reserved; the function is async or a
                generator; or no durable call may be made here, such as inside another step.
        """

    @abstractmethod
    def check(self) -> None:
        """Raise `Interrupted` when the result of this run will not count any more."""

    @abstractmethod
    def shield(self) -> AbstractContextManager[None]:
        """Hold the interruption of a task with `interrupt=True` back while a block runs; it comes at the block's end.

        For what must not stop half-way, such as writing a file and renaming it.
        """

    @abstractmethod
    def sleep(self, duration: timedelta) -> None:
        """Free this thread; after `duration` the handler runs again from its start, and this call returns at once.

        Calls are told apart by their order, so a handler must make them in the same order each time. No retry is used.
        What is raised to leave the run is no `Exception`.

        Raises:
            DurableCallError: no durable call may be made here, such as inside a step or in another thread.
            RuntimeError: this is a plain call.
        """

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return logging.LoggerAdapter(log, log_fields(self.task, self.lane, self.attempt, self.id))


class LocalContext(TaskContext):
    """The context of a plain call: steps run, nothing is kept, and sleeping is refused.

    Args:
        task: the task's name.
        step_codec: how the result of a step travels; it comes back as it would in an execution.
    """

    def __init__(self, task: str, step_codec: Callable[[Callable[..., Any]], TaskCodec]) -> None:
        self.id = f"local-{uuid4()}"
        self.task = task
        self._step_codec = step_codec
        self._calls = DurableCalls()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> threading.Event:
        return self._cancelled

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        self.log.debug("progress: %s %s", percent, message)

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        check_step(name, function)
        self._calls.begin(name, caller())
        with inside_step(name):
            value = function(*args, **kwargs)
        check_step_result(name, value)
        codec = self._step_codec(function)
        result: R = codec.decode_result(codec.encode_result(value))
        return result

    def check(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("cancelled or revoked")

    def shield(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sleep(self, duration: timedelta) -> None:
        raise RuntimeError(
            f"current().sleep({duration}) works in a durable execution only: submit the task instead of calling it."
        )


_current: contextvars.ContextVar[TaskContext | None] = contextvars.ContextVar("flowfabric_current", default=None)

# For the runtime, which sets the context of each run.
enter = _current.set
leave = _current.reset


# What this code runs in: a run, a plain call of a task, or None.
run_of_this_thread = _current.get


def current() -> TaskContext:
    """Return the context of the run, or of the plain call of a task, that this code is in.

    A task that is called as a function inside a run is part of that run.

    Raises:
        RuntimeError: this code is in neither, or in a thread that context variables do not reach.
    """
    context = _current.get()
    if context is None:
        raise RuntimeError(
            "current() was called outside of a task. A thread has to be given the context of the handler that starts "
            "it: Thread(target=contextvars.copy_context().run, args=(function,)), or in a pool: "
            "pool.submit(contextvars.copy_context().run, function)."
        )
    return context


def inside_run() -> bool:
    """Return True if this code runs inside a handler of a worker."""
    context = _current.get()
    return context is not None and not isinstance(context, LocalContext)
