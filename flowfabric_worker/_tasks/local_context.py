"""The context of a plain call of a task."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn
from uuid import uuid4

from flowfabric_worker._steps.durable_calls import (
    DurableCalls,
    check_step,
    check_step_result,
    encode_step_result,
    idempotency_key_of,
    inside_step,
)
from flowfabric_worker._streams.frame_values import encode_patch, encode_value
from flowfabric_worker.budgets import Reservation
from flowfabric_worker.codec import TaskCodec
from flowfabric_worker.context import ResumedBy, SummaryWriter, TaskContext, enter
from flowfabric_worker.engine.merge_patch import merge
from flowfabric_worker.outcomes import Interrupted
from flowfabric_worker.signals import Signal


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

    signals: Sequence[Signal] = ()
    resume_reason: ResumedBy | None = None

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

    def _step(
        self, name: str, place: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        check_step(name, function)
        self._calls.begin(name, place)
        with inside_step(name):
            value = function(*args, **kwargs)
        check_step_result(name, value)
        codec = self._step_codec(function)
        return codec.decode_result(encode_step_result(codec, name, value))

    def wait_for(self, name: str | Sequence[str], **_: Any) -> NoReturn:
        raise _needs_execution(f"wait_for({name!r})")

    def waitpoint(self, name: str, *, shown: Any = None) -> NoReturn:  # noqa: ARG002  as in an execution
        raise _needs_execution(f"waitpoint({name!r})")

    def transaction(self) -> NoReturn:
        raise _needs_execution("transaction()")

    def spawn(self, name: str, task: Any, /, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ARG002  as in an execution
        raise _needs_execution(f"spawn({name!r})")

    def gather(self, *children: Any, settle: bool = False) -> NoReturn:  # noqa: ARG002  as above
        raise _needs_execution("gather()")

    def idempotency_key(self, name: str) -> str:
        return idempotency_key_of(self.id, name)

    def use(self, budget: str | None = None, /, **amounts: int) -> None:
        self.log.debug("use: %s %s", budget, amounts)

    def reserve(
        self,
        budget: str | None = None,
        /,
        *,
        hold: timedelta = timedelta(minutes=5),  # noqa: ARG002  a plain call reserves nothing
        **amounts: int,
    ) -> Reservation:
        return Reservation(amounts, lambda used: self.use(budget, **used))

    def check(self) -> None:
        if self._cancelled.is_set():
            raise Interrupted("cancelled or revoked")

    def shield(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sleep(self, until: timedelta | datetime, *, name: str | None = None) -> NoReturn:  # noqa: ARG002  as above
        raise _needs_execution(f"sleep({until})")


def _needs_execution(call: str) -> RuntimeError:
    return RuntimeError(f"current().{call} works only in a durable execution: submit the task instead of calling it.")


def iterate_in(context: TaskContext, function: Callable[[], Any]) -> Any:
    """Call a generator function in a context; return a generator whose code runs in it, between the caller's own code.

    What the function returns is returned as it is if it is no generator.
    """
    scope = contextvars.copy_context()
    scope.run(enter, context)
    values = scope.run(function)
    return _iterate_in(scope, values) if isinstance(values, Generator) else values


def _iterate_in(scope: contextvars.Context, values: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    resume: Callable[[], Any] = partial(next, values)
    while True:
        try:
            value = scope.run(resume)
        except StopIteration as end:
            return end.value
        try:
            resume = partial(values.send, (yield value))
        except GeneratorExit:
            scope.run(values.close)
            raise
        except BaseException as error:  # noqa: BLE001  what the caller throws is raised in the generator
            resume = partial(values.throw, error)
