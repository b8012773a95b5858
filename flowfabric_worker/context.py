"""`current()`: the context of the attempt that a handler runs in."""

from __future__ import annotations

import contextvars
import json
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
from flowfabric_worker._streams.frame_values import encode_patch, encode_value
from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.engine.merge_patch import merge
from flowfabric_worker.outcomes import Interrupted

P = ParamSpec("P")
R = TypeVar("R")

ClaimKind = Literal["fresh", "resumed", "reclaimed", "local"]

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


class TaskContext(ABC):
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

    @abstractmethod
    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` once per execution, and return its result; later attempts return the recorded result.

        The result is encoded by `function`'s return annotation. If the process dies between the step and its
        recording, the step runs again. An exception of the function that the handler catches is recorded with the next
        durable call, and raised again in later attempts.

        Args:
            name: the name of the step, used once in a handler.
            function: what to run, with `args` and `kwargs`.

        Raises:
            DurableCallError: the name was used before in this attempt, or is reserved; the function is async or a
                generator; or no durable call may be made here, such as inside another step.
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
    def sleep(self, duration: timedelta) -> None:
        """Free this thread; after `duration` the handler runs again from its start, and this call returns at once.

        Calls are identified by their order, so a handler must make them in the same order each time. No retry is
        used. The handler is left by an exception that is not an `Exception`.

        Raises:
            DurableCallError: no durable call may be made here, such as inside a step or in another thread.
            RuntimeError: the task was called as a plain function.
        """

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        return logging.LoggerAdapter(log, log_fields(self.task, self.lane, self.attempt, self.id))


class LocalContext(TaskContext):
    """The context of a plain call: steps run and are not recorded, values are collected, and sleeping is refused.

    Args:
        task: the task's name.
        codec: the codec of the task.
        step_codec: returns the codec of a step's function; results come back as they would in an execution.

    Attributes:
        emitted: the values that the call has emitted.
    """

    def __init__(self, task: str, codec: TaskCodec, step_codec: Callable[[Callable[..., Any]], TaskCodec]) -> None:
        self.id = f"local-{uuid4()}"
        self.task = task
        self.emitted: list[Any] = []
        self._document: bytes | None = None
        self._codec = codec
        self._step_codec = step_codec
        self._calls = DurableCalls()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> threading.Event:
        return self._cancelled

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        self.log.debug("progress: %s %s", percent, message)

    def emit(self, value: Any, *, live: bool = False) -> None:  # noqa: ARG002  a plain call has no reader
        self.emitted.append(self._codec.decode_frame(encode_value(self._codec, self.task, value)))

    @property
    def summary(self) -> SummaryWriter:
        return SummaryWriter(self._merge)

    def _merge(self, patch: Any) -> None:
        self._document = merge(self._document, encode_patch(self.task, patch))

    @property
    def document(self) -> Any:
        """The summary document; None before the first patch."""
        return None if self._document is None else json.loads(self._document)

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
            f"current().sleep({duration}) works only in a durable execution: submit the task instead of calling it."
        )


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


def inside_handler() -> bool:
    """Return True if this code runs inside a handler of a worker."""
    context = _current.get()
    return context is not None and not isinstance(context, LocalContext)
