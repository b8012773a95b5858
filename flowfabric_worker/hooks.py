"""The hooks of middleware: called in a thread of their own, so that none of them holds up a lease or an outcome."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

from flowfabric_worker.engine import reporting
from flowfabric_worker.held import Held, now
from flowfabric_worker.middleware import Around, Middleware, RunEvent, hooks_of
from flowfabric_worker.outcomes import HandlerExit

log = reporting.Log(__name__)

Hook: TypeAlias = Callable[[RunEvent], None]

_NAMES: Final = ("on_claim", "on_success", "on_failure", "on_retry", "on_suspend", "on_lost")
# Whoever has more to tell waits until the hooks have caught up.
MAX_QUEUED: Final = 10_000


class Hooks:
    """One thread that calls the hooks; there is none where nobody overrides one."""

    def __init__(self, middleware: tuple[Middleware | Around, ...] = ()) -> None:
        self._hooks = {name: hooks for name in _NAMES if (hooks := hooks_of(middleware, name))}
        self._queue: queue.Queue[tuple[tuple[Hook, ...], RunEvent] | None] = queue.Queue(MAX_QUEUED)
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="flowfabric-hooks", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread runs, if there is something for it to do."""
        return not self._hooks or self._thread.is_alive()

    def wants(self, name: str) -> bool:
        """Whether anybody has a hook of this name."""
        return name in self._hooks

    def start(self) -> None:
        if self._hooks:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread when it has told everything."""
        self._ending = True
        # A full queue needs no such waking; and a hook may never return, so nobody waits for space in it.
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def join(self, timeout: float) -> bool:
        """Waits for the thread; whether it has ended."""
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def flush(self) -> None:
        """Calls the hooks for everything that is queued, in the caller's thread; for those who start none."""
        while not self._queue.empty():
            self._call(self._queue.get())

    def tell(self, name: str, held: Held, error: str = "") -> None:
        """Queues an event for those who have a hook of this name."""
        hooks = self._hooks.get(name)
        if hooks is not None:
            self._queue.put((hooks, _event(held, error)))

    def lost(self, held: Held) -> None:
        """Tells of a run that will not count."""
        self.tell("on_lost", held, held.lost or "")

    def _work(self) -> None:
        while not (self._ending and self._queue.empty()):
            self._call(self._queue.get())

    @staticmethod
    def _call(told: tuple[tuple[Hook, ...], RunEvent] | None) -> None:
        """Calls the hooks for one event."""
        if told is None:
            return
        hooks, event = told
        for hook in hooks:
            try:
                hook(event)
            # A hook is code of users, and no defect of theirs may end this thread.
            except (Exception, HandlerExit, SystemExit):
                log.exception("A hook failed for %s of %s.", event.task, event.execution_id)


def _event(held: Held, error: str) -> RunEvent:
    handle = held.handle
    return RunEvent(
        execution_id=held.key,
        task=held.task.name,
        lane=handle.lane,
        attempt=handle.attempt_index,
        retry_count=held.claimed.retry_count,
        tags=held.claimed.tags,
        seconds=None if held.started_at is None else (held.ended_at or now()) - held.started_at,
        error=error,
    )
