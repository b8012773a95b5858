"""The runtime of a worker process: claimer, handler threads, committer and keeper, started and stopped together."""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Protocol
from uuid import uuid4

from flowfabric_worker import signals
from flowfabric_worker.attempts import Attempts
from flowfabric_worker.claimer import Claimer
from flowfabric_worker.committer import Committer
from flowfabric_worker.config import RunSettings
from flowfabric_worker.engine import reporting
from flowfabric_worker.engine.core import send_once
from flowfabric_worker.engine.errors import EngineError, ValidationError
from flowfabric_worker.engine.limits import MAX_LANES_PER_CLAIM
from flowfabric_worker.engine.types.claiming import ClaimPolicy
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from flowfabric_worker.handlers import Handlers
from flowfabric_worker.held import Holdings, now
from flowfabric_worker.hooks import Hooks
from flowfabric_worker.keeper import ALIVE_FOR, Keeper
from flowfabric_worker.memory import MemoryLimit, MemoryWatch
from flowfabric_worker.middleware import arounds_of
from flowfabric_worker.run_log import RunLog
from flowfabric_worker.scheduler import Scheduler
from flowfabric_worker.start_and_stop import start_line, waiting_line
from flowfabric_worker.supervised import Line
from flowfabric_worker.worker import Worker

log = reporting.Log(__name__)

_JOIN = 10.0
# How long a stop waits for log handlers that are slow.
_LAST_WORDS = 1.0
# A process that was silent for so many of its leases holds none of them any more.
_SILENT_LEASES = 2


class Part(Protocol):
    """Something that has threads of its own."""

    @property
    def alive(self) -> bool: ...


class WornOut(Exception):  # noqa: N818  it says what happened
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
        self, worker: Worker, settings: RunSettings | None = None, *, line: socket.socket | None = None
    ) -> None:
        self.worker = worker
        self.settings = settings or RunSettings()
        self.instance_id = f"{worker.name[:64]}-{socket.gethostname()[:64]}-{os.getpid()}-{uuid4().hex[:8]}"
        self._engine = worker.engine
        self._lanes = dict(self.settings.lanes) or {task.options_given.lane: 1 for task in worker.tasks.values()}
        if len(self._lanes) > MAX_LANES_PER_CLAIM:
            raise ValidationError(
                "invalid_input",
                f"A worker serves at most {MAX_LANES_PER_CLAIM} lanes, not {len(self._lanes)}: name those of this "
                "process with `--lanes`, and run others for the rest.",
            )
        self._holdings = Holdings(self.settings.threads)
        self._hooks = Hooks(worker.middleware)
        self._run_log = RunLog()
        self._committer = Committer(self._holdings, self._engine, self._hooks, self._run_log)
        self._handlers = self._make_handlers()
        self._line = None if line is None else Line(line, self._ask_once, self._hurry, self._on_death)
        policy = ClaimPolicy(worker_id=worker.name, worker_instance_id=self.instance_id, lease=self._claim_lease())
        self._keeper = Keeper(self._holdings, self._engine, self._registration(), policy.lease, tuple(self._watches()))
        self._claimer = Claimer(
            self._holdings, self._engine, policy, worker.tasks, self._lanes, self.settings.offers, self._hooks
        )
        self._scheduler = Scheduler(self._engine, worker.tasks.values())
        # A queue of this kind may be filled in the middle of anything, as signals come; an Event may not. What is put
        # in is why the process is worn out, if that is the reason to stop.
        self._stop_requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running = False
        self._asked = False
        self._worn = ""

    def _make_handlers(self) -> Handlers:
        attempts = Attempts(
            self._committer, self._engine, self._engine.limits.payload_bytes, arounds_of(self.worker.middleware)
        )
        settings = self.settings
        return Handlers(
            self._holdings, attempts, settings.yield_within.total_seconds(), settings.most_lost, self._on_worn
        )

    def _watches(self) -> Iterator[Callable[[], None]]:
        """What the keeper calls each time that it looks around."""
        yield self._handlers.replace_lost
        yield self._hooks.watch
        if self.settings.memory_limit is not None:
            yield MemoryWatch(self.settings.memory_limit, self._on_worn)
        if self._line is not None:
            yield self._line.beat

    # For the main thread

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT: then what runs may finish within the grace, and the rest is handed back.

        A second signal hands everything back at once. SIGUSR1 prints what every thread does.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
            WornOut: the process has lost too many threads, or comes too close to its memory limit; it stopped in
                order, and is to be started anew.
            RuntimeError: one of its threads ended by a defect of this package; what could be handed back was.
        """
        previous = {number: signals.handle(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        previous[signal.SIGUSR1] = signals.handle(signal.SIGUSR1, _print_threads)
        try:
            self.start()
            fallen = self._await_request()
            self.stop()
            if fallen:
                raise RuntimeError(f"The {fallen} of {self.instance_id} ended by itself; its traceback says why.")
            if self._worn:
                raise WornOut(f"The process is to be started anew: {self._worn}.")
        finally:
            for number, handler in previous.items():
                signals.handle(number, handler)

    def _await_request(self) -> str:
        """Waits until somebody wants it to stop; or until a thread has ended, whose name it answers."""
        while True:
            try:
                self._worn = self._stop_requests.get(timeout=1.0)
                return ""
            except queue.Empty:
                # A worker that only seems to work is worse than none.
                for part in self._parts:
                    if not part.alive:
                        return type(part).__name__.lower()

    @property
    def _parts(self) -> tuple[Part, ...]:
        """Everything that has threads."""
        return self._claimer, self._keeper, self._committer, self._handlers, self._hooks, self._scheduler, self._run_log

    def request_stop(self) -> None:
        """Makes `run` stop; asked a second time, it does not wait for handlers any more. Returns at once."""
        self._stop_requests.put("")

    def _on_worn(self, reason: str) -> None:
        """Stops once, in order, because the process had better be replaced."""
        if self._running and not self._worn:
            self._worn, self._asked = reason, True
            log.error("%s stops to be started anew: %s.", self.instance_id, reason)
            self._stop_requests.put(reason)

    def _ask_once(self) -> None:
        """Makes it stop, if nobody did."""
        if not self._asked:
            self._asked = True
            self.request_stop()

    def _hurry(self) -> None:
        self.request_stop()
        self.request_stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:  # noqa: ARG002  what the signal module passes
        if self._line is None:
            self.request_stop()
        else:
            # A service manager may signal this process beside its supervisor, which alone says whether to hurry.
            self._ask_once()

    # For whoever owns the threads

    def start(self) -> None:
        """Prepares the store and starts the threads.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
        """
        if not self.worker.tasks:
            raise ValueError(
                f"The worker {self.worker.name!r} has no tasks: decorate functions with @worker.task first."
            )
        prepared = self._engine.prepare()
        for warning in prepared.warnings:
            log.warning("%s", warning)
        self._engine.register_worker(self._registration())
        self._engine.listener.on_lost(self._on_lost)
        self._running = True
        reporting.start()
        self._hooks.start()
        self._run_log.start()
        self._committer.start()
        self._handlers.start()
        self._keeper.start()
        if self.settings.memory_limit is not None:
            MemoryLimit(self.settings.memory_limit)
        if self._line is not None:
            self._line.start(self.instance_id, _SILENT_LEASES * self._claim_lease().total_seconds())
        self._claimer.start()
        self._scheduler.start()
        log.info("%s", start_line(self.worker, self.settings, self._lanes, self.instance_id))

    def stop(self, grace: timedelta | None = None) -> None:
        """Claims nothing more, lets what runs finish within the grace, and hands the rest back, ready at once.

        Args:
            grace: how long to wait for handlers; None for what the settings say. A requested stop cuts it short.
        """
        if not self._running:
            return
        self._running = False
        self._scheduler.stop()
        self._claimer.stop()
        self._claimer.join(_JOIN)
        released = self._keeper.release_waiting()
        self._handlers.stop()
        self._await_handlers((self.settings.grace if grace is None else grace).total_seconds())
        # Nothing that these handlers may still return is sent from here on; what others returned is.
        left = self._holdings.unfinished()
        for held in left:
            held.lose("stopping")
        self._committer.stop()
        self._committer.join(_JOIN)
        self._run_log.stop()
        self._keeper.stop()
        self._keeper.join(_JOIN)
        self._keeper.release(left)
        self._hooks.stop()
        self._hooks.join(_JOIN)
        self._scheduler.join(_JOIN)
        self._run_log.join(_JOIN)
        self._leave()
        log.info(
            "%s stopped; it handed back %s, of which %s had begun.", self.instance_id, released + len(left), len(left)
        )
        reporting.stop(_LAST_WORDS)

    def _await_handlers(self, grace: float) -> None:
        """Waits until the handlers have ended, the grace is over, or a second request hurries."""
        deadline = now() + grace
        running = self._holdings.running()
        if running and grace > 0:
            log.info("%s", waiting_line(running, grace))
        while not self._handlers.join(min(0.1, max(0.0, deadline - now()))):
            if now() >= deadline or not self._stop_requests.empty():
                return

    def _leave(self) -> None:
        """Says goodbye, as far as the store can be reached."""
        farewells: tuple[Callable[[], object], ...] = (
            lambda: self._engine.listener.off_lost(self._on_lost),
            lambda: self._engine.mark_worker_dead(self.instance_id, "stopped"),
        )
        for farewell in farewells:
            try:
                farewell()
            except EngineError as error:
                log.debug("Leaving: %s", error)

    def _on_death(self, instance_id: str, how: str) -> None:
        """Tells the store how another process of this supervisor died."""
        # The line is heard in this thread, and may say next that it is time to stop.
        send_once()
        try:
            self._engine.mark_worker_dead(instance_id, how)
        except EngineError as error:
            log.warning("The store does not know how %s died (%s): %s", instance_id, how, error)

    def _on_lost(self, execution_id: str, fence: str) -> None:
        held = self._holdings.executions.get(execution_id)
        if held is not None and not held.ended and held.handle.fence == fence:
            held.lose("cancelled or revoked")

    # What others are told

    def _claim_lease(self) -> timedelta:
        """The shortest lease among the tasks: a claim does not know yet what it will get."""
        own = [task.options_given.lease for task in self.worker.tasks.values() if task.options_given.lease is not None]
        return min([self.settings.lease, *own])

    def _registration(self) -> RegisterWorkerArgs:
        return RegisterWorkerArgs(
            worker_id=self.worker.name,
            worker_instance_id=self.instance_id,
            lanes=tuple(sorted(self._lanes)),
            capabilities=tuple(sorted(self.settings.offers)),
            tasks=tuple(sorted(self.worker.tasks)),
            threads=self.settings.threads,
            host=socket.gethostname(),
            pid=os.getpid(),
            alive_for=ALIVE_FOR,
        )


def _print_threads(_: int, __: FrameType | None) -> None:
    """Prints what every thread does.

    As an ordinary handler, which runs when the other threads stand still: read while they run, their frames may be
    gone in the middle, and the process with them.
    """
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback(sys.__stderr__)
