"""Runs attempts: calls the task, and turns what it returns or raises into an outcome."""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any, Final

from flowfabric_worker._runtime.completer import Completer
from flowfabric_worker._runtime.frame_appender import Appender
from flowfabric_worker._runtime.handler_context import HandlerContext
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.inputs import results_of_parents
from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.context import enter
from flowfabric_worker.engine import forks, log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.backend.attempts import AttemptTransaction
from flowfabric_worker.engine.errors import NotFoundError, StateError, TransportError, ValidationError
from flowfabric_worker.engine.exception_text import message_of, plain_text, traceback_of
from flowfabric_worker.engine.limits import MAX_DETAIL_BYTES, Limits
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.policies import FailureClass, RetryPolicy
from flowfabric_worker.engine.types.suspension import AlreadySatisfied
from flowfabric_worker.middleware import Around
from flowfabric_worker.outcomes import (
    Cancel,
    ChildFailed,
    Delay,
    DurableCallError,
    Fail,
    HandlerExit,
    Interrupted,
    Retry,
    Suspend,
    WaitChildren,
    WaitTimedOut,
    plain_time,
)

log = log_queue.Log(__name__)

# The retries that a task without a retry policy is granted when its handler raises Retry.
_GRANTED = RetryPolicy(max_retries=3)
# How long after a lost connection a handler whose transaction was not committed runs again.
_AFTER_LOST_COMMIT = timedelta(seconds=1)
# The exceptions that the next run would raise again.
_PERMANENT: Final = (ChildFailed, DecodingError, DurableCallError, EncodingError, WaitTimedOut)
# The most exceptions of a chain that are visited, because a chain may be a circle.
_MOST_CHAINED = 100
_MOST_IN_GROUPS = 1000


class AttemptRunner:
    """Run handlers, and queue their outcomes.

    Args:
        completer: takes the outcomes.
        appender: takes the frames that handlers emit.
        engine: serves the calls that handlers make to the store.
        limits: the sizes that an operator allows.
        hooks: are called for what budgets do to handlers.
        arounds: the context managers of middleware that each handler runs in, the outermost first.
    """

    def __init__(
        self,
        completer: Completer,
        appender: Appender,
        engine: EngineBackend,
        limits: Limits,
        hooks: Hooks,
        arounds: tuple[Around, ...] = (),
    ) -> None:
        self._completer = completer
        self._appender = appender
        self._engine = engine
        self._limits = limits
        self._hooks = hooks
        self._arounds = arounds

    def run(self, execution: LeasedExecution) -> None:
        """Run one handler in this thread, and queue its outcome. No exception of a task is raised here.

        The handler has its own context variables, none of which is set when it begins. A process that the handler
        forks ends where the handler ends.
        """
        if execution.lost is not None or now() >= execution.lease_until or not execution.begin():
            execution.lose("lease lost")
            self._completer.drop(execution, "was not begun")
            return
        context = HandlerContext(execution, self._engine, self._appender, self._hooks)
        Context().run(forks.confined, self._run, execution, context)
        execution.ended_at = now()

    def _run(self, execution: LeasedExecution, context: HandlerContext) -> None:
        enter(context)
        result, error = b"", None
        try:
            result = self._call(execution, context)
        except BaseException as raised:  # noqa: BLE001  every exception of a task becomes its outcome, even SystemExit
            error = raised
        # The outcome is sent after the frames that were emitted before it.
        refused = context.frames.end()
        if context.opened is not None and refused is None and error is None and context.leaving is None:
            self._commit(execution, context.opened, result)
            return
        is_lost = context.opened is not None and not context.opened.roll_back()
        if refused is not None:
            self._fail(execution, refused, permanent=True)
        elif is_lost and error is not None and issubclass(type(error), Exception):
            # The connection of the handler was lost, so another attempt may succeed.
            self._retry(execution, message_of(error), None)
        elif error is None and context.leaving is None:
            self._completer.complete(execution, result)
        else:
            self._end(execution, context, error)

    def _commit(self, execution: LeasedExecution, transaction: AttemptTransaction, result: bytes) -> None:
        """Complete the execution in the transaction of its handler, and queue what is known of that."""
        try:
            if execution.lost is None:
                transaction.complete(execution.handle, result)
                self._completer.committed(execution)
            else:
                transaction.roll_back()
                self._completer.drop(execution, "ended (complete), which does not count")
        except TransportError as error:
            problem = error
            self._completer.run(execution, "complete", lambda: self._settle(execution, problem))
        except (StateError, NotFoundError) as error:
            self._completer.refused(execution, error)
        except BaseException as error:  # noqa: BLE001  the database may refuse the rows of the handler in any way
            self._fail(execution, error, permanent=isinstance(error, ValidationError))

    def _settle(self, execution: LeasedExecution, problem: TransportError) -> bool:
        """Hand back an execution whose transaction was not committed; return True if it was."""
        try:
            self._engine.release(execution.handle, _AFTER_LOST_COMMIT)
        except StateError as error:
            # The transaction has ended the lease, or another worker has.
            if error.details.get("outcome") != "success":
                raise
            return True
        log.warning(
            "The transaction of %s of %s was not committed, and the execution runs again: %s",
            execution.task.name, execution.key, problem, extra=execution.fields,
        )  # fmt: skip
        return False

    def _end(self, execution: LeasedExecution, context: HandlerContext, error: BaseException | None) -> None:
        """Queue the outcome of a handler that raised, or that returned although a durable call was leaving it."""
        leaving = context.leaving
        outcome = error if leaving is None else leaving
        # isinstance() would call code of the exception's own class.
        if outcome is not None and issubclass(type(outcome), HandlerExit):
            try:
                self._leave(execution, context, outcome)
            except BaseException as wrong:  # noqa: BLE001  an argument of the exit may be of any class
                self._fail(execution, wrong)
        elif outcome is not None:
            self._fail(execution, outcome)
        if leaving is not error and leaving is not None and execution.lost is None:
            log.error(
                "%s of %s caught the %s by which a durable call leaves the handler; what it did afterwards is dropped "
                "(%s), and the execution continues later. Catch Exception there, not BaseException, and keep durable "
                "calls out of `finally`.",
                execution.task.name, execution.key, type(leaving).__name__,
                "it returned" if error is None else message_of(error), extra=execution.fields,
            )  # fmt: skip

    def _call(self, execution: LeasedExecution, context: HandlerContext) -> bytes:
        """Call the task; return its encoded result."""
        task = execution.task
        try:
            # Encode the result with the codec of the call, which the caller can read.
            codec = task.codec.named(execution.claimed.codec)
            results = results_of_parents(execution.claimed, self._engine, self._limits.fan_in_bytes)
            args, kwargs = forks.confined(codec.decode_call, execution.claimed.payload, results)
        except DecodingError as error:
            raise DecodingError(f"payload_decode: {error}") from error
        if task.context_parameter:
            kwargs[task.context_parameter] = context
        result = forks.confined(codec.encode_result, self._invoke(execution, context, args, kwargs))
        limit = self._limits.payload_bytes
        if len(result) > limit:
            raise EncodingError(f"payload_too_large: the result has {len(result)} bytes; at most {limit} are allowed.")
        return result

    def _invoke(self, execution: LeasedExecution, context: HandlerContext, args: Any, kwargs: Any) -> Any:
        """Run code of users: the handler, inside the context managers of middleware."""
        call: Callable[..., Any] = forks.confined
        if execution.interruption is not None:
            # Only the handler can be interrupted: middleware must be able to close what it has opened.
            call = partial(execution.interruption.run, call)
        function: Callable[..., Any] = partial(call, execution.task.function)
        if execution.task.is_generator:
            function = partial(_emit_all, call, function, context.emit)
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
        # A context manager has suppressed the exception; without this, a failure would count as a success.
        raise raised or RuntimeError(
            "A middleware suppressed an exception that another middleware raised; it must let exceptions pass."
        )

    def _leave(self, execution: LeasedExecution, context: HandlerContext, exit_: BaseException) -> None:
        """Queue the outcome that a handler chose by raising a `HandlerExit`.

        The arguments of the exception are converted to plain types here, because classes of users may raise in any
        method.
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
            case Suspend():
                context.keep_raised()
                self._suspend(execution, context, exit_)
            case WaitChildren(need=need, names=names, settle=settle):
                context.keep_raised()
                wait = partial(self._engine.wait_children, execution.handle, need, names, settle)
                self._completer.run(execution, "wait_children", wait)
            case Cancel(reason=reason):
                text = plain_text(reason)
                self._completer.run(execution, "cancel", lambda: self._engine.cancel(execution.handle, text))
            case Interrupted() if execution.lost is not None:
                # Send nothing: the store has decided how the execution continues, or does so when its lease is
                # released.
                self._completer.drop(execution, "was interrupted")
            case _:
                self._fail(execution, exit_)

    def _suspend(self, execution: LeasedExecution, context: HandlerContext, exit_: Suspend) -> None:
        """Queue a suspension, which `wait_for` has checked already unless the handler raised it."""
        if exit_ is not context.leaving and context.take(exit_):
            self._completer.run(execution, "suspend", lambda: self._engine.delay(execution.handle, timedelta(0)))
            return
        # Read the exception here, because reading one of a user's class may run code of the user.
        request = exit_.request

        def suspend() -> None:
            if isinstance(self._engine.suspend(execution.handle, request), AlreadySatisfied):
                # Signals came while the handler was being left, so it runs again at once.
                self._engine.delay(execution.handle, timedelta(0))

        self._completer.run(execution, "suspend", suspend)

    def _retry(self, execution: LeasedExecution, reason: str, after: timedelta | None) -> None:
        """Queue a failure that asks for another attempt; a task without a retry policy is granted a few."""
        if execution.claimed.policy.retry is None:
            retries = execution.claimed.retry_count
            if retries >= _GRANTED.max_retries:
                reason = f"{reason} (a task without retry= may raise Retry {_GRANTED.max_retries} times)"
            if after is None:
                after = timedelta(milliseconds=_GRANTED.delay_ms(retries, random.random()))
        self._completer.fail(execution, FailureReason(message=reason), FailureClass.TRANSIENT, after)

    def _fail(self, execution: LeasedExecution, error: BaseException, *, permanent: bool = False) -> None:
        if issubclass(type(error), MemoryError):
            # Free the locals of the handler first, because formatting the traceback takes memory.
            _clear_frames(error)
        permanent = (
            permanent or _is_one_of(error, _PERMANENT) or _is_one_of(error, execution.task.options_given.permanent)
        )
        message, detail = message_of(error), traceback_of(error)
        reason = FailureReason(message=message, detail=detail.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:])
        self._completer.fail(execution, reason, FailureClass.PERMANENT if permanent else FailureClass.TRANSIENT)
        # Free the locals of the handler, which the frames keep alive; the outcome holds only text.
        _clear_frames(error)


def _emit_all(
    call: Callable[..., Any], function: Callable[..., Any], emit: Callable[[Any], None], /, *args: Any, **kwargs: Any
) -> Any:
    """Emit every value that a generator yields; return what it returns.

    The generator is closed at the value that it yielded last if that value is refused, or its attempt does not count.

    Args:
        call: calls code of the user.
        function: returns the generator; what it returns is the result if it is no generator.
        emit: emits a value.
    """
    values = function(*args, **kwargs)
    if not isinstance(values, Generator):
        return values
    try:
        while True:
            try:
                value = call(next, values)
            except StopIteration as end:
                return end.value
            emit(value)
    except BaseException:
        forks.confined(values.close)
        raise


def _enter(stack: ExitStack, around: Around, context: HandlerContext) -> None:
    stack.enter_context(around(context))


def _is_one_of(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    """Return True if an exception, or a member of its group, is an instance of one of the classes by its real type."""
    # Bound the search: groups may be nested, and a class of a user may return any number of exceptions.
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
    except BaseException:  # noqa: BLE001  a class of a user may override these methods
        return False
    return False


def _clear_frames(error: BaseException | None) -> None:
    """Drop the locals of every frame in the tracebacks of an exception and of its causes."""
    # Attributes and finalizers may run code of users.
    with contextlib.suppress(BaseException):
        for _ in range(_MOST_CHAINED):
            if error is None:
                return
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
