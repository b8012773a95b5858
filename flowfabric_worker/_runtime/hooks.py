"""The hooks of middleware, which are called one after the other in a thread that nothing waits for."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar

from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.engine import forks, log_queue
from flowfabric_worker.engine.backend import EngineBackend
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.claiming import EndedByClaim
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.wording import counted
from flowfabric_worker.middleware import Around, AttemptEvent, Middleware, hooks_of

log = log_queue.Log(__name__)

T = TypeVar("T")
Hook: TypeAlias = Callable[[AttemptEvent], None]

_NAMES: Final = (
    "on_claim", "on_success", "on_failure", "on_retry", "on_suspend", "on_soft_limit", "on_lost", "on_ended",
)  # fmt: skip
# The most events that wait for hooks; beyond it the oldest are dropped.
MAX_QUEUED: Final = 10_000
# Seconds between two log lines about hooks that are too slow.
LOG_EVERY: Final = 10.0
# Seconds after which the thread checks again whether to end.
_CHECK_EVERY: Final = 1.0


class Backlog(Generic[T]):
    """A bounded queue that never blocks: when it is full, the oldest items are dropped and counted."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._dropped = 0

    def __len__(self) -> int:
        return self._items.qsize()

    def put(self, item: T) -> None:
        """Add an item; drop the oldest items of a full queue."""
        while self._items.qsize() >= self._size:
            try:
                self._items.get_nowait()
            except queue.Empty:
                break
            with self._counting:
                self._dropped += 1
        self._items.put(item)

    def get(self, timeout: float | None = None) -> T:
        """Take the oldest item; wait for one at most `timeout` seconds.

        Raises:
            queue.Empty: no item came in time.
        """
        return self._items.get(timeout=timeout)

    def take_dropped(self) -> int:
        """Return how many items were dropped since the last call."""
        with self._counting:
            dropped, self._dropped = self._dropped, 0
        return dropped


class Hooks(OwnedThread):
    """Call the hooks of middleware, in one thread, which starts only if a middleware overrides a hook.

    Args:
        engine: tells how a lost execution ended.
    """

    def __init__(self, middleware: tuple[Middleware | Around, ...], engine: EngineBackend) -> None:
        self._engine = engine
        self._hooks = {name: hooks for name in _NAMES if (hooks := hooks_of(middleware, name))}
        self._told: Backlog[tuple[tuple[Hook, ...], AttemptEvent] | LeasedExecution | None] = Backlog(MAX_QUEUED)
        self._ending = False
        # The name of the hook that runs now, and the time of its start.
        self._calling: tuple[str, float] | None = None
        self._logged_at = -math.inf
        super().__init__("hooks", needed=bool(self._hooks))

    def wants(self, name: str) -> bool:
        """Return True if a middleware has a hook of this name."""
        return name in self._hooks

    def stop(self) -> None:
        """Tell the thread to call the hooks for all queued events, and then end."""
        self._ending = True
        self._told.put(None)

    def tell_rest(self) -> None:
        """Log how many events the hooks have missed, if the thread has not ended in time."""
        if self._thread.is_alive():
            # The item that ends the thread counts for the event whose hook has not returned.
            log.warning("The hooks missed %s at the stop: %s.", counted(len(self._told), "event"), self._trouble())

    def flush(self) -> None:
        """Call the hooks for all queued events, in the caller's thread; used if the thread was not started."""
        while len(self._told):
            self._call(self._told.get())

    def tell(self, name: str, execution: LeasedExecution, error: str = "", outcome: str = "", budget: str = "") -> None:
        """Queue an event for the hooks of this name, without blocking."""
        hooks = self._hooks.get(name)
        if hooks is not None:
            self._told.put((hooks, _event(execution, error, outcome, budget)))

    def ended(self, execution: LeasedExecution, outcome: PublicState, error: str = "") -> None:
        """Queue the end of an execution, once the store has acknowledged it."""
        self.tell("on_ended", execution, error, outcome.value)

    def ended_by_claim(self, ended: EndedByClaim) -> None:
        """Queue the end of an execution whose deadline had passed, or whose reclaims were used up, at a claim."""
        hooks = self._hooks.get("on_ended")
        if hooks is not None:
            event = AttemptEvent(
                execution_id=str(ended.execution_id),
                task=ended.task,
                lane=ended.lane,
                attempt=ended.attempt_index,
                retry_count=ended.retry_count,
                tags=ended.tags,
                error=ended.error,
                outcome=ended.outcome.value,
            )
            self._told.put((hooks, event))

    def stopped_by_budget(self, execution: LeasedExecution, reason: str, budget: str, *, failed: bool) -> None:
        """Queue that a budget at its hard limit has stopped a handler, whose execution failed or runs again later."""
        self.tell("on_failure" if failed else "on_suspend", execution, reason, budget=budget)
        if failed:
            self.tell("on_ended", execution, reason, PublicState.FAILED.value, budget)

    @property
    def wants_losses(self) -> bool:
        """Whether a middleware has one of the hooks that are called for lost executions."""
        return self.wants("on_lost") or self.wants("on_ended")

    def lost(self, execution: LeasedExecution) -> None:
        """Queue the loss of an attempt, and then the end of its execution, if the store has ended it."""
        self.tell("on_lost", execution, execution.lost or "")
        if self.wants("on_ended") and execution.lost != "stopping":
            self._told.put(execution)

    def watch(self) -> None:
        """Log every few seconds while the hooks are too slow."""
        if now() - self._logged_at < LOG_EVERY:
            return
        dropped, calling = self._told.take_dropped(), self._calling
        if dropped or (calling is not None and now() - calling[1] > LOG_EVERY):
            self._logged_at = now()
            log.warning(
                "The hooks are too slow: %s. Waiting: %s; dropped: %s.",
                self._trouble(), counted(len(self._told), "event"), counted(dropped, "event"),
            )  # fmt: skip

    def _trouble(self) -> str:
        calling = self._calling
        return "no hook runs now" if calling is None else f"{calling[0]} has run for {now() - calling[1]:.1f} s"

    def _work(self) -> None:
        while not (self._ending and not len(self._told)):
            try:
                told = self._told.get(_CHECK_EVERY)
            except queue.Empty:
                continue
            self._call(told)

    def _call(self, told: tuple[tuple[Hook, ...], AttemptEvent] | LeasedExecution | None) -> None:
        """Call the hooks for one event; for a lost execution, ask the store first how it ended."""
        if isinstance(told, LeasedExecution):
            told = self._end_of(told)
        if told is None:
            return
        hooks, event = told
        for hook in hooks:
            self._calling = getattr(hook, "__qualname__", "a hook"), now()
            try:
                forks.confined(hook, event)
            # A hook is code of the application, whose defects must not end this thread.
            except BaseException:
                log.exception("A hook failed for %s of %s.", event.task, event.execution_id)
            finally:
                self._calling = None

    def _end_of(self, execution: LeasedExecution) -> tuple[tuple[Hook, ...], AttemptEvent] | None:
        """Return the event of the end of a lost execution, with its hooks; None if the execution continues."""
        try:
            info = self._engine.read_execution_info(execution.handle.execution_id)
            if info is not None and execution.lost == "timeout" and info.public_state is PublicState.ACTIVE:
                # The time of the execution is over, but no maintenance has ended it yet.
                self._engine.run_upkeep()
                info = self._engine.read_execution_info(execution.handle.execution_id)
        except EngineError as error:
            log.warning(
                "The end of %s of %s is not known: %s",
                execution.task.name,
                execution.key,
                error,
                extra=execution.fields,
            )
            return None
        if info is None or info.ended_at_ms is None or info.current_attempt is None:
            return None
        if info.current_attempt.attempt_index != execution.handle.attempt_index:
            # Another worker has claimed the execution, and will report its end.
            return None
        why = info.error or info.cancel_reason or ""
        return self._hooks["on_ended"], _event(execution, why, info.public_state.value)


def _event(execution: LeasedExecution, error: str, outcome: str, budget: str = "") -> AttemptEvent:
    handle = execution.handle
    return AttemptEvent(
        execution_id=execution.key,
        task=execution.task.name,
        lane=handle.lane,
        attempt=handle.attempt_index,
        retry_count=execution.claimed.retry_count,
        tags=execution.claimed.tags,
        seconds=None if execution.started_at is None else (execution.ended_at or now()) - execution.started_at,
        error=error,
        outcome=outcome,
        budget=budget,
    )
