"""Handler threads: each takes one execution after the other, runs its task, and says how it ended."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.committer import Committer
from flowfabric_worker.context import ClaimKind, TaskContext, enter, leave
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.engine.limits import MAX_DETAIL_BYTES
from flowfabric_worker.engine.types.policies import FailureClass
from flowfabric_worker.engine.types.running import FailureReason
from flowfabric_worker.held import Held, Holdings, now
from flowfabric_worker.outcomes import Cancel, Delay, Fail, HandlerExit, Interrupted, Retry, WaitChildren

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)

# The innermost frames tell most.
_TRACEBACK_FRAMES = -50


class RunContext(TaskContext):
    """The context of a handler that a worker runs."""

    def __init__(self, held: Held, engine: EngineBackend) -> None:
        claimed = held.claimed
        self._held = held
        self._engine = engine
        self._sleeps = 0
        self._journal: dict[str, bytes] = dict(claimed.journal)
        self.id = held.key
        self.task = claimed.task
        self.lane = claimed.handle.lane
        self.attempt = claimed.handle.attempt_index
        self.retry_count = claimed.retry_count
        self.kind: ClaimKind = _KINDS[claimed.handle.kind.name]
        self.tags: Mapping[str, str] = claimed.tags

    @property
    def deadline(self) -> datetime | None:  # type: ignore[override]  # made when it is asked for: few handlers do
        moment = self._held.claimed.deadline_at_ms
        return None if moment is None else _moment(moment)

    @property
    def cancelled(self) -> threading.Event:
        return self._held.cancelled

    def check(self) -> None:
        if self._held.lost is not None:
            raise Interrupted(self._held.lost)

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        self._fenced(lambda: self._engine.progress(self._held.handle, percent, message))

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        codec = self._held.task.step_codec(function).named(self._held.claimed.codec)
        if name not in self._journal:
            self.check()
            self._record(name, codec.encode_result(function(*args, **kwargs)))
        result: R = codec.decode_result(self._journal[name])
        return result

    def sleep(self, duration: timedelta) -> None:
        self._sleeps += 1
        name = f"sleep {self._sleeps}"
        if name not in self._journal:
            # Written before the delay: when the handler comes back, it knows that it has slept.
            pause = Delay(duration)
            ends_at = self._engine.server_time() + duration // timedelta(milliseconds=1)
            self._record(name, str(ends_at).encode())
            raise pause
        ends_at = int(self._journal[name])
        if self._held.claimed_at_ms < ends_at:
            # The worker was lost before the delay was: the sleep goes on.
            raise Delay(_moment(ends_at))

    def _record(self, name: str, value: bytes) -> None:
        record = self._fenced(lambda: self._engine.record_step(self._held.handle, name, value))
        self._journal[name] = record.value

    def _fenced(self, call: Callable[[], R]) -> R:
        """Runs a call of the lease holder; a lost lease interrupts the handler."""
        try:
            return call()
        except StateError as error:
            self._held.lose("lease lost")
            raise Interrupted(str(error)) from error


_KINDS: dict[str, ClaimKind] = {"FRESH": "fresh", "RESUMED": "resumed", "RECLAIMED": "reclaimed"}


class Handlers:
    """The handler threads of a worker."""

    def __init__(self, holdings: Holdings, committer: Committer, engine: EngineBackend, payload_limit: int) -> None:
        self._holdings = holdings
        self._committer = committer
        self._engine = engine
        self._payload_limit = payload_limit
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"flowfabric-handler-{number}", daemon=True)
            for number in range(holdings.threads)
        ]

    @property
    def alive(self) -> bool:
        """Whether all of its threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tells each thread to end after what it runs now."""
        for _ in self._threads:
            self._holdings.waiting.put(None)

    def join(self, timeout: float) -> bool:
        """Waits for the threads, at most `timeout` seconds in all; whether all have ended."""
        deadline = now() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - now()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, number: int) -> None:
        holdings = self._holdings
        waiting, finished, space = holdings.waiting, holdings.finished, holdings.space
        while True:
            held = waiting.get()
            if held is None:
                return
            self.run(held)
            # While this thread waits for the next one, nothing of this one is kept.
            del held
            finished[number] += 1
            if waiting.qsize() <= holdings.low_water and not space.is_set():
                space.set()

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
        result = codec.encode_result(task.function(*args, **kwargs))
        if len(result) > self._payload_limit:
            raise EncodingError(
                f"payload_too_large: the result has {len(result)} bytes; at most {self._payload_limit} are allowed."
            )
        self._committer.complete(held, result)

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
        text = "".join(traceback.format_exception(error, limit=_TRACEBACK_FRAMES))
        message = f"{type(error).__name__}: {_text_of(error)}"
        # The frames hold the handler's locals; what is kept is text.
        traceback.clear_frames(error.__traceback__)
        log.warning("%s of %s failed: %s", held.task.name, held.key, message, extra=held.fields)
        reason = FailureReason(message=message, detail=text.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:])
        self._committer.fail(held, reason, FailureClass.PERMANENT if permanent else FailureClass.TRANSIENT)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  an exception's own __str__ may be broken
        return "(its text cannot be had)"


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
