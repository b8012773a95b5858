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
from flowfabric_worker.context import ClaimKind, TaskContext, enter, leave, step_codec
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

# How few may wait for a thread before the claimer is told to fetch more.
LOW_WATER = 4


class RunContext(TaskContext):
    """The context of a handler that a worker runs."""

    def __init__(self, held: Held, engine: EngineBackend) -> None:
        claimed = held.claimed
        self._held = held
        self._engine = engine
        self._sleeps = 0
        self._journal: dict[str, bytes] = dict(claimed.journal)
        self.task = claimed.task
        self.lane = claimed.handle.lane
        self.attempt = claimed.handle.attempt_index
        self.retry_count = claimed.retry_count
        self.kind: ClaimKind = _KINDS[claimed.handle.kind.name]
        self.tags: Mapping[str, str] = claimed.tags

    @property
    def id(self) -> str:  # type: ignore[override]  # made when it is asked for: most handlers never do
        return str(self._held.handle.execution_id)

    @property
    def deadline(self) -> datetime | None:  # type: ignore[override]  # as above
        moment = self._held.claimed.deadline_at_ms
        return None if moment is None else datetime.fromtimestamp(moment / 1000, UTC)

    @property
    def cancelled(self) -> threading.Event:
        return self._held.cancelled

    def check(self) -> None:
        if self._held.lost is not None:
            raise Interrupted(self._held.lost)

    def progress(self, percent: int | None = None, message: str | None = None) -> None:
        self._fenced(lambda: self._engine.progress(self._held.handle, percent, message))

    def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        codec = step_codec(function, self._held.task.codec_name)
        if name not in self._journal:
            self.check()
            value = codec.encode_result(function(*args, **kwargs))
            record = self._fenced(lambda: self._engine.record_step(self._held.handle, name, value))
            self._journal[name] = record.value
        result: R = codec.decode_result(self._journal[name])
        return result

    def sleep(self, duration: timedelta) -> None:
        self._sleeps += 1
        name = f"sleep {self._sleeps}"
        if name not in self._journal:
            # Written before the delay: when the handler comes back, it knows that it has slept.
            self._fenced(lambda: self._engine.record_step(self._held.handle, name, b""))
            raise Delay(duration)

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
        waiting, finished = holdings.waiting, holdings.finished
        while True:
            held = waiting.get()
            if held is None:
                return
            if waiting.qsize() <= LOW_WATER and not holdings.space.is_set():
                holdings.space.set()
            self._run(held)
            finished[number] += 1
            del held

    def _run(self, held: Held) -> None:
        """Runs one handler and queues what becomes of it."""
        if held.lost is not None or now() >= held.lease_until:
            held.lose("lease lost")
            self._committer.drop(held)
            return
        held.started_at = now()
        context = RunContext(held, self._engine)
        token = enter(context)
        try:
            self._call(held, context)
        except HandlerExit as exit_:
            self._leave(held, exit_)
        except (KeyboardInterrupt, SystemExit) as error:
            self._fail(held, FailureClass.TRANSIENT, error)
        except Exception as error:  # noqa: BLE001  whatever the task raises becomes its outcome
            permanent = isinstance(error, (*held.task.options_given.permanent, DecodingError, EncodingError))
            self._fail(held, FailureClass.PERMANENT if permanent else FailureClass.TRANSIENT, error)
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
                    held, FailureReason(message=reason, detail=detail.encode("utf-8", "replace")), FailureClass.PERMANENT
                )
            case Delay(until=until):
                self._committer.run(held, "delay", lambda: self._engine.delay(held.handle, until))
            case WaitChildren():
                self._committer.run(held, "wait_children", lambda: self._engine.wait_children(held.handle))
            case Cancel(reason=reason):
                self._committer.run(held, "cancel", lambda: self._engine.cancel(held.handle, reason))
            case _:
                # Interrupted: the store gave the execution a fate already, or will when the lease is handed back.
                self._committer.run(held, "release", lambda: self._engine.release(held.handle))

    def _fail(self, held: Held, kind: FailureClass, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error, limit=50))
        message = f"{type(error).__name__}: {error}"
        # The frames hold the handler's locals; what is kept is text.
        traceback.clear_frames(error.__traceback__)
        log.info("%s failed: %s", held.handle.execution_id, message)
        reason = FailureReason(message=message, detail=text.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:])
        self._committer.fail(held, reason, kind)
