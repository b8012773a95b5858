"""The log of how executions end: a line for each, or one line per second if there are many."""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import attrs

from flowfabric_worker._runtime.lease_table import LeasedExecution, now
from flowfabric_worker._runtime.log_filter import EXECUTION_LOG
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker.context import log_fields
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.types.attempts import FailureReason
from flowfabric_worker.engine.types.claiming import EndedByClaim
from flowfabric_worker.engine.wording import counted

log = log_queue.Log(EXECUTION_LOG)

# The most completions in a second that are logged in a line each; more are summarized in one line per second.
MOST_COMPLETIONS: Final = 20
# The most other ends in a second that are logged in a line each, failures with their tracebacks. Further ones are only
# counted, because the failures of a second would take megabytes.
MOST_OTHERS: Final = 100
_SECOND: Final = 1.0
# The most completions that wait to be logged; then the oldest is dropped. A worker at full load reaches this number in
# about three seconds.
MOST_WAITING: Final = 100_000
# The most tasks that a summary names; it prefers those with the most executions.
_MOST_NAMED: Final = 5
# The most characters of a reason in a line; the store keeps more.
_LONGEST_REASON: Final = 500

_LINES: Final = "\n\t"

T = TypeVar("T")


# Not frozen, because creating a frozen one takes three times as long, and there is one for each execution.
@attrs.define(slots=True)
class Ended:
    """How an attempt ended, as the store acknowledged it, without its payload.

    Attributes:
        how: "completed", "cancelled", "retried", "failed" or "lost".
        seconds: how long the handler ran.
        reason: why the attempt did not complete, and when the next one begins.
        detail: further lines in UTF-8, such as a traceback.
    """

    how: str
    task: str
    lane: str
    attempt: int
    execution_id: str
    seconds: float
    reason: str = ""
    detail: bytes = b""

    @property
    def is_completion(self) -> bool:
        """Whether the attempt completed."""
        return self.how == "completed"


@attrs.define
class _Counted:
    """The ends of one task that are only counted, and the last of them."""

    last: Ended
    number: int = 0


class ExecutionLog(OwnedThread):
    """Log how executions end, in one thread. Ends wait for it in memory, so that no other thread waits.

    The lines go to the logger `flowfabric_worker.executions`: completions at INFO, failures that are retried at
    WARNING, and other failures at ERROR.
    """

    def __init__(self) -> None:
        super().__init__("execution-log")
        self._ended: collections.deque[Ended] = collections.deque()
        # The tasks and seconds of completions, which are all that is kept while completions are summarized.
        self._times: collections.deque[tuple[str, float]] = collections.deque()
        # How many other ends wait, and those beyond `MOST_OTHERS` by task; the lock guards both.
        self._others = 0
        self._counted: dict[str, _Counted] = {}
        self._counting = threading.Lock()
        self._dropping = threading.Lock()
        self._dropped = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        # True while completions are summarized: the thread then runs once per second, and no execution wakes it.
        self._summing = False
        self._over = False

    def stop(self) -> None:
        """Tell the thread to log everything that waits, and then end."""
        self._stopping.set()
        self._wake.set()

    def flush(self) -> None:
        """Log everything that waits, in the caller's thread; used if the thread was not started."""
        ended, counted_by_task = self._take()
        for each in ended:
            _log_one(each)
        _log_completions(_taken(self._times))
        _log_counted(counted_by_task)

    # Called by the thread that gets the store's answers

    def completed(self, execution: LeasedExecution) -> None:
        """Note that an execution completed."""
        if not log.wants(logging.INFO):
            return
        if self._summing:
            self._keep(self._times, (execution.task.name, _seconds(execution)))
        else:
            self._tell("completed", execution)

    def cancelled(self, execution: LeasedExecution) -> None:
        """Note that a handler cancelled its execution."""
        if log.wants(logging.INFO):
            self._tell("cancelled", execution, "cancelled by its handler")

    def retried(self, execution: LeasedExecution, reason: FailureReason, retry_at_ms: int) -> None:
        """Note that an attempt failed, and when the next one begins, in ms of the store's clock."""
        if log.wants(logging.WARNING):
            number, policy = execution.claimed.retry_count + 1, execution.claimed.policy.retry
            of = "" if policy is None or number > policy.max_retries else f" of {policy.max_retries}"
            store_now_ms = execution.claimed_at_ms + (now() - execution.claimed_at) * 1000
            delay = spoken(max(0.0, (retry_at_ms - store_now_ms) / 1000))
            self._tell("retried", execution, f"retry {number}{of} in {delay}: {reason.message}")

    def failed(self, execution: LeasedExecution, reason: FailureReason) -> None:
        """Note that an execution failed for good."""
        if log.wants(logging.ERROR):
            self._tell("failed", execution, reason.message, reason.detail)

    def ended_by_claim(self, ended: EndedByClaim) -> None:
        """Note that a claim ended an execution whose deadline had passed, or whose reclaims were used up."""
        if log.wants(logging.ERROR):
            reason, attempt = ended.error[:_LONGEST_REASON], ended.attempt_index
            self._note(Ended("failed", ended.task, ended.lane, attempt, str(ended.execution_id), 0.0, reason))

    def lost(self, execution: LeasedExecution, what: str) -> None:
        """Note that the outcome of an attempt does not count."""
        if log.wants(logging.WARNING):
            self._tell("lost", execution, f"{what}: {execution.lost}")

    def _tell(self, how: str, execution: LeasedExecution, reason: str = "", detail: bytes = b"") -> None:
        task, handle, reason = execution.task.name, execution.handle, reason[:_LONGEST_REASON]
        seconds = _seconds(execution)
        self._note(Ended(how, task, handle.lane, handle.attempt_index, execution.key, seconds, reason, detail))

    def _note(self, ended: Ended) -> None:
        if ended.is_completion:
            self._keep(self._ended, ended)
        else:
            self._keep_or_count(ended)
        if self._over:
            self.flush()
        elif not self._summing:
            self._wake.set()

    def _keep_or_count(self, ended: Ended) -> None:
        """Keep an end that gets a line, or only count it if very many attempts end so at once."""
        with self._counting:
            if self._others < MOST_OTHERS:
                self._others += 1
                self._ended.append(ended)
                return
            ends = self._counted.setdefault(ended.task, _Counted(ended))
            ends.last = ended
            ends.number += 1

    def _keep(self, told: collections.deque[T], item: T) -> None:
        """Add an item to a queue; if the queue is full, drop and count its oldest item."""
        if len(told) >= MOST_WAITING:
            with self._dropping, contextlib.suppress(IndexError):
                told.popleft()
                self._dropped += 1
        told.append(item)

    def _take(self) -> tuple[list[Ended], dict[str, _Counted]]:
        """Remove and return the ends that wait for a line each, and those that are only counted, by task."""
        with self._counting:
            counted_by_task, self._counted, self._others = self._counted, {}, 0
            return _taken(self._ended), counted_by_task

    def _take_dropped(self) -> int:
        """Return how many ends were dropped since the last call."""
        with self._dropping:
            dropped, self._dropped = self._dropped, 0
        return dropped

    # The thread

    def _work(self) -> None:
        window = _Window()
        while not self._stopping.is_set() or self._ended:
            self._wake.wait()
            self._wake.clear()
            if not self._log_each(window):
                self._sum_up()
        # From here on, each end is logged by the thread that reports it, such as that of a released handler.
        self._over = True
        self.flush()

    def _log_each(self, window: _Window) -> bool:
        """Log a line for each end; return False if there are too many for this second."""
        while self._ended:
            if not window.takes(self._ended[0]):
                return False
            ended = self._ended.popleft()
            if not ended.is_completion:
                with self._counting:
                    self._others -= 1
            _log_one(ended)
        return not self._counted

    def _sum_up(self) -> None:
        """Log one summary per second, until a second has few ends."""
        self._summing = True
        few = False
        while not few:
            stopping = self._stopping.wait(_SECOND)
            ended, counted_by_task = self._take()
            times = _taken(self._times)
            few = stopping or len(ended) + len(times) <= MOST_COMPLETIONS
            for each in ended:
                if each.is_completion:
                    times.append((each.task, each.seconds))
                else:
                    _log_one(each)
            _log_completions(times)
            _log_counted(counted_by_task)
            if dropped := self._take_dropped():
                told = counted(dropped, "more execution")
                log.warning("%s ended; there were too many to count them by task.", told)
        self._summing = False
        self._wake.set()


def _taken(told: collections.deque[T]) -> list[T]:
    """Remove and return everything in a queue that other threads fill."""
    taken: list[T] = []
    with contextlib.suppress(IndexError):
        # Return what was taken so far if another thread empties the queue meanwhile.
        taken.extend(told.popleft() for _ in range(len(told)))
    return taken


def _seconds(execution: LeasedExecution) -> float:
    """Return how long the handler of an execution ran."""
    return (execution.ended_at or now()) - (execution.started_at or execution.claimed_at)


class _Window:
    """The number of lines that may still be logged in the present second."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._ends_at = now() + _SECOND
        self._completions, self._others = MOST_COMPLETIONS, MOST_OTHERS

    def takes(self, ended: Ended) -> bool:
        """Count one more line; return False if this second has had the most lines of its kind."""
        if now() >= self._ends_at:
            self._begin()
        if ended.is_completion:
            self._completions -= 1
            return self._completions >= 0
        self._others -= 1
        return self._others >= 0


def _log_one(ended: Ended) -> None:
    fields = log_fields(ended.task, ended.lane, ended.attempt, ended.execution_id)
    task, brief, took = ended.task, short(ended.execution_id), spoken(ended.seconds)
    reason = shown(ended.reason)
    match ended.how:
        case "completed":
            log.info("%s %s completed in %s", task, brief, took, extra=fields)
        case "cancelled":
            log.info("%s %s was cancelled by its handler after %s", task, brief, took, extra=fields)
        case "retried":
            log.warning("%s %s failed, %s", task, brief, reason, extra=fields)
        case "lost":
            log.warning("%s %s %s.", task, brief, reason, extra=fields)
        case _:
            lines = ended.detail.decode("utf-8", "replace").rstrip("\n")
            detail = f"\n{shown(lines, keep=_LINES)}" if lines else ""
            log.error("%s %s failed for good: %s%s", task, ended.execution_id, reason, detail, extra=fields)


def _log_completions(times: Iterable[tuple[str, float]]) -> None:
    """Log the completions of a second in one line, with the median of their seconds by task."""
    completed: dict[str, list[float]] = {}
    for task, seconds in times:
        completed.setdefault(task, []).append(seconds)
    if not completed:
        return
    # Import statistics here, because only busy workers need it.
    import statistics

    tasks = sorted(completed.items(), key=lambda item: -len(item[1]))
    parts = [f"{task} {len(times):,} (median {spoken(statistics.median(times))})" for task, times in tasks]
    if len(parts) > _MOST_NAMED:
        others = sum(len(times) for _, times in tasks[_MOST_NAMED:])
        parts[_MOST_NAMED:] = [f"{counted(len(parts) - _MOST_NAMED, 'more task')} {others:,}"]
    log.info("completed in a second: %s", ", ".join(parts))


def _log_counted(counted_by_task: Mapping[str, _Counted]) -> None:
    """Log how many ends of each task have no line."""
    for task, ends in counted_by_task.items():
        log.warning(
            "%s: %s of a second did not complete; the last was %s: %s",
            task, counted(ends.number, "more attempt"), ends.last.execution_id, shown(ends.last.reason),
        )  # fmt: skip


def shown(text: str, keep: str = "") -> str:
    """Escape the characters of a text that would control a terminal or start a new line, except those in `keep`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text
    )


def short(execution_id: str) -> str:
    """Shorten an execution's id to both ends: the time of its submission, and the part that makes it unique."""
    uuid = execution_id.rpartition(":")[2]
    return f"{uuid[:8]}…{uuid[-4:]}"


def spoken(seconds: float) -> str:
    """Format a duration briefly, such as `6 ms`, `1.2 s` or `3 min 20 s`."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.00995:
        return f"{seconds * 1000:.2g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
