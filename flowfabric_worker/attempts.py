"""One run of a handler: the task is called, and what it returns or raises becomes an outcome."""

from __future__ import annotations

import logging
import traceback
from contextlib import ExitStack
from typing import Any

from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.committer import Committer
from flowfabric_worker.context import enter, leave
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.limits import MAX_DETAIL_BYTES
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.running import FailureReason
from flowfabric_worker.held import Held, now
from flowfabric_worker.middleware import Around
from flowfabric_worker.outcomes import Cancel, Delay, Fail, HandlerExit, Interrupted, Retry, WaitChildren
from flowfabric_worker.run_context import RunContext

log = logging.getLogger(__name__)

# The innermost frames tell most.
_TRACEBACK_FRAMES = -50
# An exception may stand in a chain with others, which may be a circle.
_MOST_CHAINED = 100


class Attempts:
    """Runs handlers.

    Args:
        committer: takes what becomes of them.
        engine: for what handlers ask of the store.
        payload_limit: how many bytes a result may have.
        arounds: what each handler runs inside of, the outermost first.
    """

    def __init__(
        self, committer: Committer, engine: EngineBackend, payload_limit: int, arounds: tuple[Around, ...] = ()
    ) -> None:
        self._committer = committer
        self._engine = engine
        self._payload_limit = payload_limit
        self._arounds = arounds

    def run(self, held: Held) -> None:
        """Runs one handler in this thread and queues what becomes of it; nothing that a task raises gets out."""
        if held.lost is not None or now() >= held.lease_until:
            held.lose("lease lost")
            self._committer.drop(held, "was not begun")
            return
        held.started_at = now()
        context = RunContext(held, self._engine)
        token = enter(context)
        try:
            self._call(held, context)
        except HandlerExit as exit_:
            self._leave(held, exit_)
        except BaseException as error:  # noqa: BLE001  whatever a task raises becomes its outcome, even SystemExit
            self._fail(held, error)
        finally:
            held.ended_at = now()
            leave(token)

    def _call(self, held: Held, context: RunContext) -> None:
        task = held.task
        try:
            # The result goes back in the codec that the call came in: whoever submitted it reads that one.
            codec = task.codec.named(held.claimed.codec)
            args, kwargs = codec.decode_call(held.claimed.payload)
        except DecodingError as error:
            raise DecodingError(f"payload_decode: {error}") from error
        if task.context_parameter:
            kwargs[task.context_parameter] = context
        result = codec.encode_result(self._invoke(held, context, args, kwargs))
        if len(result) > self._payload_limit:
            raise EncodingError(
                f"payload_too_large: the result has {len(result)} bytes; at most {self._payload_limit} are allowed."
            )
        self._committer.complete(held, result)

    def _invoke(self, held: Held, context: RunContext, args: Any, kwargs: Any) -> Any:
        """Runs code of users: the handler, and what goes around it."""
        function = held.task.function
        if held.interruption is None and not self._arounds:
            return function(*args, **kwargs)

        def inside() -> Any:
            raised: BaseException | None = None
            with ExitStack() as stack:
                for around in self._arounds:
                    stack.enter_context(around(context))
                try:
                    return function(*args, **kwargs)
                except BaseException as error:
                    raised = error
                    raise
            # Only a context manager that swallows leads here. A failure that it hides would count as success.
            raise raised or RuntimeError("A middleware swallowed what another one raised; it has to let it out.")

        return inside() if held.interruption is None else held.interruption.run(inside)

    def _leave(self, held: Held, exit_: HandlerExit) -> None:
        """What a handler raised to say how its run ends."""
        match exit_:
            case Retry(reason=reason, after=after):
                self._committer.fail(held, FailureReason(message=reason), FailureClass.TRANSIENT, after)
            case Fail(reason=reason, detail=detail):
                self._committer.fail(
                    held,
                    FailureReason(message=reason, detail=detail.encode("utf-8", "replace")),
                    FailureClass.PERMANENT,
                )
            case Delay(until=until):
                self._committer.run(held, "delay", lambda: self._engine.delay(held.handle, until))
            case WaitChildren():
                self._committer.run(held, "wait_children", lambda: self._engine.wait_children(held.handle))
            case Cancel(reason=reason):
                self._committer.run(held, "cancel", lambda: self._engine.cancel(held.handle, reason))
            case Interrupted() if held.lost is not None:
                # The store has given the execution a fate already, or will when the lease is handed back.
                self._committer.drop(held, "was interrupted")
            case _:
                self._fail(held, exit_)

    def _fail(self, held: Held, error: BaseException) -> None:
        permanent = isinstance(error, (*held.task.options_given.permanent, DecodingError, EncodingError))
        if isinstance(error, MemoryError):
            # What filled the memory goes first: there may be too little left to say what happened.
            _clear_frames(error)
        text = "".join(traceback.format_exception(error, limit=_TRACEBACK_FRAMES))
        message = f"{type(error).__name__}: {_text_of(error)}"
        # The frames hold the handler's locals; what is kept is text.
        _clear_frames(error)
        log.warning("%s of %s failed: %s", held.task.name, held.key, message, extra=held.fields)
        reason = FailureReason(message=message, detail=text.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:])
        self._committer.fail(held, reason, FailureClass.PERMANENT if permanent else FailureClass.TRANSIENT)


def _clear_frames(error: BaseException | None) -> None:
    """Drops the locals of every frame that an exception, or what led to it, went through."""
    for _ in range(_MOST_CHAINED):
        if error is None:
            return
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  an exception's own __str__ may be broken
        return "(its text cannot be had)"
