"""One run of a handler: the task is called, and what it returns or raises becomes an outcome."""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any

from flowfabric_worker._runtime.completer import Completer
from flowfabric_worker._runtime.handler_context import HandlerContext
from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.context import enter
from flowfabric_worker.engine import forks, log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.exception_text import message_of, plain_text, traceback_of
from flowfabric_worker.engine.limits import MAX_DETAIL_BYTES
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.policies import FailureClass, RetryPolicy
from flowfabric_worker.middleware import Around
from flowfabric_worker.outcomes import (
    Cancel,
    Delay,
    DurableCallError,
    Fail,
    HandlerExit,
    Interrupted,
    Retry,
    WaitChildren,
    plain_time,
)

log = log_queue.Log(__name__)

# What the store grants to a failure that asks for a retry where the task has no policy.
_GRANTED = RetryPolicy(max_retries=3)
# An exception may stand in a chain with others, which may be a circle.
_MOST_CHAINED = 100
_MOST_IN_GROUPS = 1000


class AttemptRunner:
    """Runs handlers.

    Args:
        committer: takes what becomes of them.
        engine: for what handlers ask of the store.
        payload_limit: how many bytes a result may have.
        arounds: what each handler runs inside of, the outermost first.
    """

    def __init__(
        self, completer: Completer, engine: EngineBackend, payload_limit: int, arounds: tuple[Around, ...] = ()
    ) -> None:
        self._completer = completer
        self._engine = engine
        self._payload_limit = payload_limit
        self._arounds = arounds

    def run(self, execution: LeasedExecution) -> None:
        """Run one handler in this thread and queue what becomes of it; nothing that a task raises gets out.

        It has context variables to itself, none of which is set when it begins. A process that it forks ends where the
        handler does.
        """
        if execution.lost is not None or now() >= execution.lease_until or not execution.begin():
            execution.lose("lease lost")
            self._completer.drop(execution, "was not begun")
            return
        Context().run(forks.confined, self._run, execution, HandlerContext(execution, self._engine))
        execution.ended_at = now()

    def _run(self, execution: LeasedExecution, context: HandlerContext) -> None:
        enter(context)
        try:
            result = self._call(execution, context)
        except BaseException as error:  # noqa: BLE001  whatever a task raises becomes its outcome, even SystemExit
            self._end(execution, context, error)
        else:
            if context.leaving is None:
                self._completer.complete(execution, result)
            else:
                self._end(execution, context, None)

    def _end(self, execution: LeasedExecution, context: HandlerContext, error: BaseException | None) -> None:
        """Queue the outcome of a handler that raised, or that was to leave its run and returned."""
        leaving = context.leaving
        outcome = error if leaving is None else leaving
        # Not by isinstance(), which asks the exception what it is: it may have a class of the user.
        if outcome is not None and issubclass(type(outcome), HandlerExit):
            try:
                self._leave(execution, context, outcome)
            except BaseException as wrong:  # noqa: BLE001  what it carries may be anything
                self._fail(execution, wrong)
        elif outcome is not None:
            self._fail(execution, outcome)
        if leaving is not error and leaving is not None and execution.lost is None:
            log.error(
                "%s of %s caught the %s by which a durable call left its run; what it did then is dropped (%s), and "
                "the run goes on later. Catch Exception there, not BaseException, and keep durable calls out of "
                "`finally`.",
                execution.task.name, execution.key, type(leaving).__name__,
                "it returned" if error is None else message_of(error), extra=execution.fields,
            )  # fmt: skip

    def _call(self, execution: LeasedExecution, context: HandlerContext) -> bytes:
        """Call the task; return its encoded result."""
        task = execution.task
        try:
            # The result goes back in the codec that the call came in: whoever submitted it reads that one.
            codec = task.codec.named(execution.claimed.codec)
            args, kwargs = codec.decode_call(execution.claimed.payload)
        except DecodingError as error:
            raise DecodingError(f"payload_decode: {error}") from error
        if task.context_parameter:
            kwargs[task.context_parameter] = context
        result = codec.encode_result(self._invoke(execution, context, args, kwargs))
        if len(result) > self._payload_limit:
            raise EncodingError(
                f"payload_too_large: the result has {len(result)} bytes; at most {self._payload_limit} are allowed."
            )
        return result

    def _invoke(self, execution: LeasedExecution, context: HandlerContext, args: Any, kwargs: Any) -> Any:
        """Run code of users: the handler, and what goes around it."""
        function: Callable[..., Any] = partial(forks.confined, execution.task.function)
        if execution.interruption is not None:
            # What goes around it has opened something that it must be able to close: it cannot be interrupted.
            function = partial(execution.interruption.run, function)
        if not self._arounds:
            return function(*args, **kwargs)
        raised: BaseException | None = None
        with ExitStack() as stack:
            for around in self._arounds:
                forks.confined(_enter, stack, around, context)
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                raised = error
                raise
        # Only a context manager that swallows leads here. A failure that it hides would count as success.
        raise raised or RuntimeError("A middleware swallowed what another one raised; it has to let it out.")

    def _leave(self, execution: LeasedExecution, context: HandlerContext, exit_: BaseException) -> None:
        """Queue the outcome that a handler chose.

        What it carries is made plain in this thread: classes of the user may raise in any method.
        """
        match exit_:
            case Retry(reason=reason, after=after):
                self._retry(execution, plain_text(reason), None if after is None else plain_time(after))
            case Fail(reason=reason, detail=detail):
                self._completer.fail(
                    execution,
                    FailureReason(message=plain_text(reason), detail=plain_text(detail).encode("utf-8", "replace")),
                    FailureClass.PERMANENT,
                )
            case Delay(until=until):
                moment = plain_time(until)
                context.keep_raised()
                self._completer.run(execution, "delay", lambda: self._engine.delay(execution.handle, moment))
            case WaitChildren():
                context.keep_raised()
                self._completer.run(execution, "wait_children", lambda: self._engine.wait_children(execution.handle))
            case Cancel(reason=reason):
                text = plain_text(reason)
                self._completer.run(execution, "cancel", lambda: self._engine.cancel(execution.handle, text))
            case Interrupted() if execution.lost is not None:
                # The store has given the execution a fate already, or will when the lease is handed back.
                self._completer.drop(execution, "was interrupted")
            case _:
                self._fail(execution, exit_)

    def _retry(self, execution: LeasedExecution, reason: str, after: timedelta | None) -> None:
        """Queue a failure that asks for another attempt; a task without a retry policy is granted some."""
        if execution.claimed.policy.retry is None:
            retries = execution.claimed.retry_count
            if retries >= _GRANTED.max_retries:
                reason = f"{reason} (raise Retry is granted {_GRANTED.max_retries} times to a task without retry=)"
            if after is None:
                after = timedelta(milliseconds=_GRANTED.delay_ms(retries, random.random()))
        self._completer.fail(execution, FailureReason(message=reason), FailureClass.TRANSIENT, after)

    def _fail(self, execution: LeasedExecution, error: BaseException) -> None:
        if issubclass(type(error), MemoryError):
            # What filled the memory goes first: there may be too little left to say what happened.
            _clear_frames(error)
        permanent = _is_one_of(error, (DecodingError, DurableCallError, EncodingError)) or _is_one_of(
            error, execution.task.options_given.permanent
        )
        message, detail = message_of(error), traceback_of(error)
        reason = FailureReason(message=message, detail=detail.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:])
        self._completer.fail(execution, reason, FailureClass.PERMANENT if permanent else FailureClass.TRANSIENT)
        # The frames hold the handler's locals; what is kept is text.
        _clear_frames(error)


def _enter(stack: ExitStack, around: Around, context: HandlerContext) -> None:
    stack.enter_context(around(context))


def _is_one_of(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Return True if an exception, or one in its group, is of one of the classes.

    It is judged by what it is and not by what it says that it is.
    """
    # A group may hold groups, and what a class of the user calls its exceptions may have no end.
    looking = [error]
    try:
        for _ in range(_MOST_IN_GROUPS):
            if not looking:
                return False
            each = looking.pop()
            if issubclass(type(each), classes):
                return True
            if issubclass(type(each), BaseExceptionGroup):
                looking += list(each.exceptions)  # type: ignore[attr-defined]  # it is a group
    except BaseException:  # noqa: BLE001  a class of the user may answer such a question itself
        return False
    return False


def _clear_frames(error: BaseException | None) -> None:
    """Drop the locals of every frame that an exception, or what led to it, went through."""
    # What is asked for, and what is freed, may be code of the user.
    with contextlib.suppress(BaseException):
        for _ in range(_MOST_CHAINED):
            if error is None:
                return
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
