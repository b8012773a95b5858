"""The runtime of a worker process: claimer, handler threads, committer and keeper, started and stopped together."""

from __future__ import annotations

import gc
import os
import queue
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import FrameType
from typing import Protocol
from uuid import uuid4

import attrs

from flowfabric_worker._runtime import signal_handlers as signals
from flowfabric_worker._runtime import supervisor_channel as supervised
from flowfabric_worker._runtime.announcements import start_line, unknown_lanes, waiting_line
from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.claimer import Claimer
from flowfabric_worker._runtime.completer import Completer
from flowfabric_worker._runtime.execution_log import ExecutionLog
from flowfabric_worker._runtime.handler_pool import HandlerPool
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.isolation import Apart, Given
from flowfabric_worker._runtime.lease_keeper import ALIVE_FOR, LeaseKeeper
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable
from flowfabric_worker._runtime.memory_limit import MemoryLimit, MemoryWatch
from flowfabric_worker._runtime.shutdown import Aside, Deadline
from flowfabric_worker._runtime.supervisor_channel import SupervisorChannel
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.config import WorkerSettings
from flowfabric_worker.engine import log_queue as reporting
from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.limits import MAX_LANES_PER_CLAIM
from flowfabric_worker.engine.types.claiming import ClaimPolicy
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from flowfabric_worker.middleware import arounds_of
from flowfabric_worker.worker import Worker

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
log = reporting.Log(__name__)

# How long a stop waits for log handlers that are slow.
_LAST_WORDS = 0.7
# How long a stop waits at first for what the claimer may still bring.
_CLAIMER_WITHIN = 1.0
_LOOK_EVERY = 0.25
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A process that was silent for so many of its leases holds none of them any more.
_SILENT_LEASES = 2


class Part(Protocol):
    """Something that has threads of its own."""

    @property
    def alive(self) -> bool: ...


class RestartRequired(Exception):  # noqa: N818  it says what happened
    """A worker process stopped in order, so that a fresh one takes its place."""


class Runtime:
    """Runs the tasks of a worker until it is stopped. It is started once.

    Args:
        worker: whose tasks to run.
        settings: how.
        line: this process's end of the line to its supervisor; None if it has none.

    Attributes:
        instance_id: names this start of this process; never used again.
    """

    def __init__(
        self, worker: Worker, settings: WorkerSettings | None = None, *, line: socket.socket | None = None
    ) -> None:
        self.worker = worker
        self.settings = settings or WorkerSettings()
        runs_apart = line is not None and supervised.runs_apart()
        if runs_apart:
            self.settings = attrs.evolve(self.settings, threads=1)
        self.instance_id = f"{worker.name[:64]}-{socket.gethostname()[:64]}-{os.getpid()}-{uuid4().hex[:8]}"
        self._engine = worker.engine
        self._lanes = dict(self.settings.lanes) or {task.options_given.lane: 1 for task in worker.tasks.values()}
        if len(self._lanes) > MAX_LANES_PER_CLAIM:
            raise ValidationError(
                "invalid_input",
                f"A worker serves at most {MAX_LANES_PER_CLAIM} lanes, not {len(self._lanes)}: name those of this "
                "process with `--lanes`, and run others for the rest.",
            )
        self._holdings = LeaseTable(self.settings.threads)
        self._hooks = Hooks(worker.middleware, self._engine)
        self._run_log = ExecutionLog()
        self._committer = Completer(self._holdings, self._engine, self._hooks, self._run_log)
        self._handlers = self._make_handlers()
        limit = self.settings.memory_limit
        self._memory_limit: MemoryLimit | None = None
        self._memory = None if limit is None else MemoryWatch(limit, self._on_worn)
        self._given = Given(self._holdings, worker.tasks, self._hooks.lost) if runs_apart else None
        self._line = None if line is None else self._make_line(line)
        policy = ClaimPolicy(worker_id=worker.name, worker_instance_id=self.instance_id, lease=self._claim_lease())
        self._publications = [task.publication() for task in worker.tasks.values()]
        self._keeper = LeaseKeeper(
            self._holdings, self._engine, self._registration(), policy.lease, self._hooks, tuple(self._watches()),
            self._publications,
        )  # fmt: skip
        self._claimer = self._given or Claimer(
            self._holdings, self._engine, policy, worker.tasks, self._lanes, self.settings.capabilities, self._hooks,
            None if self._line is None else self._line.beat_now,
        )  # fmt: skip
        self._apart = None if line is None or runs_apart else Apart(self._holdings, self._keeper)
        self._scheduler = Ticker(self._engine, () if runs_apart else worker.tasks.values())
        # A queue of this kind may be filled in the middle of anything, as signals come; an Event may not. What is put
        # in is why the process itself wants to stop; empty where the request came from outside.
        self._stop_requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running = False
        self._asked = False
        self._listening = False
        self._worn = ""
        # Why the process stops, if a handler may be the reason.
        self._own_reason = ""

    def _make_handlers(self) -> HandlerPool:
        attempts = AttemptRunner(
            self._committer, self._engine, self._engine.limits.payload_bytes, arounds_of(self.worker.middleware)
        )
        grace = self.settings.interrupt_grace.total_seconds()
        return HandlerPool(self._holdings, attempts, grace, self.settings.max_stuck_threads, self._on_worn)

    def _make_line(self, end: socket.socket) -> SupervisorChannel:
        run = None if self._given is None else self._given.run
        reclaimed = self._holdings.holds_reclaimed
        return SupervisorChannel(end, self._ask_once, self._hurry, self._on_death, reclaimed, run, self._on_lost)

    def _watches(self) -> Iterator[Callable[[], None]]:
        """Yield what the keeper calls each time that it looks around."""
        yield self._handlers.replace_lost
        yield self._hooks.watch
        if self._memory is not None:
            yield self._memory
        if self._line is not None:
            yield self._line.beat
        if self._given is not None:
            yield self._tell_done

    def _tell_done(self) -> None:
        """Tell the process that gave an execution to this one that it is done with."""
        assert self._given is not None
        assert self._line is not None
        if self._given.is_done():
            self._line.done()

    # For the main thread

    def run(self) -> None:
        """Run until SIGTERM or SIGINT: then what runs may finish within the grace, and the rest is handed back.

        A second signal hands everything back at once. SIGUSR1 prints what every thread does.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
            TypeError: an annotation of one cannot travel, or does not resolve.
            RestartRequired: too many threads of the process are stuck, or it comes too close to its memory limit. It
                stopped in order; start another one.
            RuntimeError: one of its threads ended by a defect of this package; what could be handed back was.
        """
        previous = {number: signals.handle(number, self._on_signal) for number in _STOP_SIGNALS}
        previous[signal.SIGUSR1] = signals.handle(signal.SIGUSR1, signals.print_threads)
        try:
            if not self._prepare_unless_stopped():
                return
            # What the application is made of stays: collections would go through all of it again and again.
            gc.collect()
            gc.freeze()
            self._start()
            fallen = self._await_request()
            self.stop()
            if fallen:
                raise RuntimeError(f"The {fallen} of {self.instance_id} ended by itself; its traceback says why.")
            if self._worn:
                raise RestartRequired(f"The process is to be started anew: {self._worn}.")
        finally:
            for number, handler in previous.items():
                signals.handle(number, handler)

    def _prepare_unless_stopped(self) -> bool:
        """Prepare the store; return False if a request to stop came before the store was ready."""
        prepared = Aside(self._prepare)
        while not prepared.join(_LOOK_EVERY):
            if not self._stop_requests.empty():
                log.info("%s stopped before it had begun: the store was not ready.", self.instance_id)
                return False
        prepared.answer(None)
        return True

    def _await_request(self) -> str:
        """Wait for a request to stop, and return ""; or until a thread has ended, and return its name."""
        with signals.awaited(_STOP_SIGNALS) as received:
            self._listening = True
            try:
                while self._stop_requests.empty():
                    own = received(_LOOK_EVERY)
                    if own is not None:
                        self._on_stop_signal(own=own)
                    # A worker that only seems to work is worse than none.
                    for part in self._parts:
                        if not part.alive:
                            name = _CAPITAL.sub(" ", type(part).__name__).lower()
                            self._own_reason = f"its {name} ended"
                            return name
            finally:
                self._listening = False
        self._own_reason = self._stop_requests.get()
        return ""

    @property
    def _parts(self) -> tuple[Part, ...]:
        """Everything that has threads."""
        parts = (
            self._claimer, self._keeper, self._committer, self._handlers, self._hooks, self._scheduler, self._run_log,
        )  # fmt: skip
        return parts if self._apart is None else (*parts, self._apart)

    def request_stop(self) -> None:
        """Make `run` stop; asked a second time, it does not wait for handlers any more. Returns at once."""
        self._stop_requests.put("")

    def _on_worn(self, reason: str) -> None:
        """Stop once, in order, because the process had better be replaced."""
        if self._running and not self._worn:
            self._worn, self._asked = reason, True
            log.error("%s stops to be started anew: %s.", self.instance_id, reason)
            self._stop_requests.put(reason)

    def _ask_once(self) -> None:
        """Make it stop, if nobody did."""
        if not self._asked:
            self._asked = True
            self.request_stop()

    def _hurry(self) -> None:
        if self._apart is not None:
            self._apart.hurry()
        self.request_stop()
        self.request_stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:  # noqa: ARG002  what the signal module passes
        # While the main thread waits for signals, what reaches a handler was sent to another thread, so from inside.
        self._on_stop_signal(own=self._listening and signals.CAN_AWAIT)

    def _on_stop_signal(self, *, own: bool) -> None:
        if self._line is not None and self._asked:
            # A service manager may signal this process beside its supervisor, which alone says whether to hurry.
            return
        self._asked = True
        self._stop_requests.put("it sent itself a signal" if own else "")

    # For the owner of the threads

    def start(self) -> None:
        """Prepare the store and start the threads.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
        """
        self._prepare()
        self._start()

    def _prepare(self) -> None:
        if not self.worker.tasks:
            raise ValueError(
                f"The worker {self.worker.name!r} has no tasks: decorate functions with @worker.task first."
            )
        self.worker.check()
        for warning in unknown_lanes(self.worker.name, self.worker.tasks.values(), self.settings.lanes):
            log.warning("%s", warning)
        prepared = self._engine.prepare()
        for warning in prepared.warnings:
            log.warning("%s", warning)
        self._engine.publish_tasks(self._publications)
        self._engine.register_worker(self._registration())
        self._engine.listener.on_lost(self._on_lost)

    def _start(self) -> None:
        self._running = True
        reporting.start()
        self._hooks.start()
        self._run_log.start()
        self._committer.start()
        self._handlers.start()
        self._keeper.start()
        if self.settings.memory_limit is not None:
            self._memory_limit = MemoryLimit(self.settings.memory_limit)
        if self._line is not None:
            self._line.start(self.instance_id, _SILENT_LEASES * self._claim_lease().total_seconds())
        self._claimer.start()
        self._scheduler.start()
        if self._given is not None:
            log.info("%s runs suspects, one at a time.", self.instance_id)
            return
        if self._apart is not None:
            self._apart.start()
        tasks = self.worker.tasks.values()
        log.info("%s", start_line(self.worker.url, tasks, self.settings, self._lanes, self.instance_id))

    def stop(self, grace: timedelta | None = None) -> None:
        """Claim nothing more, let what runs finish within the grace, and hand the rest back, ready at once.

        Whatever the store does, this ends a few seconds after the grace; what the store has not acknowledged by then
        runs again when its lease is over.

        Args:
            grace: how long to wait for handlers; None for what the settings say. A requested stop cuts it short.
        """
        if not self._running:
            return
        self._running = False
        if self._memory_limit is not None:
            self._memory_limit.make_room()
        given = self.settings.grace if grace is None else grace
        deadline = Deadline(given.total_seconds(), self._stop_requests.qsize)
        self._scheduler.stop()
        self._claimer.stop()
        if self._apart is not None:
            self._apart.stop()
        unstarted = Aside(lambda: self._return_unstarted(deadline))
        deadline.await_within_grace(unstarted.join, _CLAIMER_WITHIN)
        self._handlers.stop()
        running = self._holdings.running()
        if running and deadline.grace() > 0:
            log.info("%s", waiting_line(running, deadline.grace()))
        deadline.await_within_grace(self._handlers.join)
        left = self._withhold_unfinished()
        unfinished = Aside(lambda: self._hand_back(left))
        self._committer.stop()
        apart = () if self._apart is None else (self._apart.join,)
        for join in (self._committer.join, unfinished.join, unstarted.join, *apart):
            deadline.await_at_all(join)
        self._run_log.stop()
        self._keeper.stop()
        self._hooks.stop()
        leaving = Aside(self._leave)
        for join in (self._keeper.join, self._hooks.join, self._run_log.join, self._scheduler.join, leaving.join):
            deadline.await_at_all(join)
        self._hooks.tell_rest()
        self._tell_end(unstarted.answer([]) + unfinished.answer([]))
        reporting.stop(_LAST_WORDS)

    def _return_unstarted(self, deadline: Deadline) -> list[LeasedExecution]:
        """Hand back what no handler has begun, once the claimer brings no more; return what the store acknowledged."""
        deadline.await_at_all(self._claimer.join)
        return self._keeper.release_waiting()

    def _withhold_unfinished(self) -> list[LeasedExecution]:
        """Take everything that has no outcome: nothing that its handlers may still return is sent from here on."""
        left = self._holdings.unfinished()
        for held in left:
            held.withhold()
            held.lose("stopping")
        return left

    def _hand_back(self, left: Sequence[LeasedExecution]) -> list[LeasedExecution]:
        """Hand back what handlers have not ended; return what the store acknowledged."""
        by_reason: dict[str | None, list[LeasedExecution]] = {}
        for held in left:
            by_reason.setdefault(self._why_it_counts(held), []).append(held)
        return [each for why, some in by_reason.items() for each in self._keeper.release(some, why)]

    def _why_it_counts(self, held: LeasedExecution) -> str | None:
        """Return why the stop counts as a loss of the worker; None if the execution may simply go on elsewhere."""
        if held.started_at is None:
            return None
        if self._own_reason:
            return f"stopped, because {self._own_reason}"
        harmless = held.claimed.policy.max_reclaim_count > 0 and not held.is_near_its_end()
        if harmless and not (self._memory is not None and self._memory.is_close):
            return None
        return "was told to stop"

    def _tell_end(self, handed_back: Sequence[LeasedExecution]) -> None:
        """Log what became of everything that was held, as far as the store has acknowledged it."""
        begun = sum(held.started_at is not None for held in handed_back)
        log.info("%s stopped; it handed back %s, of which %s had begun.", self.instance_id, len(handed_back), begun)
        outcomes, held = len(self._holdings.unacknowledged()), len(self._holdings.executions)
        if held:
            log.warning(
                "The store has not acknowledged %s outcomes and %s executions that were to be handed back; they run "
                "again when their leases are over.",
                outcomes, held - outcomes,
            )  # fmt: skip

    def _leave(self) -> None:
        """Take leave of the store, as far as it can be reached."""
        calls: tuple[Callable[[], object], ...] = (
            lambda: self._engine.listener.off_lost(self._on_lost),
            lambda: self._engine.mark_worker_dead(self.instance_id, "stopped"),
        )
        for call in calls:
            try:
                call()
            except EngineError as error:
                log.debug("Leaving: %s", error)

    def _on_death(self, instance_id: str, how: str) -> None:
        """Tell the store how another process of this supervisor died."""
        # The line is heard in this thread, and may say next that it is time to stop.
        Aside(lambda: self._note_death(instance_id, how))

    def _note_death(self, instance_id: str, how: str) -> None:
        try:
            self._engine.mark_worker_dead(instance_id, how)
        except EngineError as error:
            log.warning("The store does not know how %s died (%s): %s", instance_id, how, error)

    def _on_lost(self, execution_id: str, fence: str) -> None:
        held = self._holdings.executions.get(execution_id)
        if held is None or held.handle.fence != fence:
            return
        if not held.ended:
            held.lose("cancelled or revoked")
        elif self._apart is not None:
            self._apart.lost(execution_id, fence)

    # What others are told

    def _claim_lease(self) -> timedelta:
        """Return the shortest lease among the tasks: a claim does not know yet what it will get."""
        own = [task.options_given.lease for task in self.worker.tasks.values() if task.options_given.lease is not None]
        return min([self.settings.lease, *own])

    def _registration(self) -> RegisterWorkerArgs:
        return RegisterWorkerArgs(
            worker_id=self.worker.name,
            worker_instance_id=self.instance_id,
            lanes=tuple(sorted(self._lanes)),
            capabilities=tuple(sorted(self.settings.capabilities)),
            tasks=tuple(sorted(self.worker.tasks)),
            threads=self.settings.threads,
            host=socket.gethostname(),
            pid=os.getpid(),
            alive_for=ALIVE_FOR,
        )
