"""The context of a handler that a worker runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import ParamSpec, TypeVar

from flowfabric_worker.context import ClaimKind, TaskContext
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import StateError
from flowfabric_worker.held import Held
from flowfabric_worker.outcomes import Delay, Interrupted

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: dict[str, ClaimKind] = {"FRESH": "fresh", "RESUMED": "resumed", "RECLAIMED": "reclaimed"}


class RunContext(TaskContext):
    """What `current()` answers in the handler of an execution."""

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
        self.headers: Mapping[str, str] = claimed.headers

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

    def shield(self) -> AbstractContextManager[None]:
        interruption = self._held.interruption
        return nullcontext() if interruption is None else interruption.shield()

    def sleep(self, duration: timedelta) -> None:
        self._sleeps += 1
        name = f"sleep {self._sleeps}"
        if name not in self._journal:
            # Written before the delay: when the handler comes back, it knows that it has slept.
            pause = Delay(duration)
            with self.shield():
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
        """Runs a call of the lease holder, undisturbed; a lost lease interrupts the handler."""
        with self.shield():
            try:
                return call()
            except StateError as error:
                self._held.lose("lease lost")
                raise Interrupted(str(error)) from error


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
