"""The runtime of a worker process, which starts and stops the claimer, the handler pool and the other parts."""

from __future__ import annotations

import gc
import queue
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import attrs

from flowfabric_worker._runtime import signal_handlers, supervisor_channel
from flowfabric_worker._runtime.announcements import start_line, unacknowledged_line, unknown_lanes, waiting_line
from flowfabric_worker._runtime.attempt_runner import AttemptRunner
from flowfabric_worker._runtime.claimer import Claimer
from flowfabric_worker._runtime.completer import Completer
from flowfabric_worker._runtime.execution_log import ExecutionLog
from flowfabric_worker._runtime.frame_appender import FrameAppender
from flowfabric_worker._runtime.handler_pool import HandlerPool
from flowfabric_worker._runtime.hooks import Hooks
from flowfabric_worker._runtime.isolation import AssignedWork, IsolatedProcess
from flowfabric_worker._runtime.lease_keeper import LeaseKeeper
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.memory_limit import MemoryLimit, MemoryWatch
from flowfabric_worker._runtime.owned_thread import Part
from flowfabric_worker._runtime.registration import claim_lease, lanes_to_serve, new_instance_id, registration
from flowfabric_worker._runtime.shutdown import BackgroundCall, Deadline
from flowfabric_worker._runtime.supervisor_channel import SupervisorChannel
from flowfabric_worker._runtime.ticker import Ticker
from flowfabric_worker.config import WorkerSettings
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.errors import EngineError, FlowFabricError
from flowfabric_worker.engine.types.claiming import ClaimPolicy
from flowfabric_worker.middleware import arounds_of
from flowfabric_worker.worker import Worker

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
log = log_queue.Log(__name__)

# Seconds that a stop waits for slow log handlers.
_LOG_WITHIN = 0.7
# Seconds that a stop waits for a claim that is in flight, before it does anything else.
_CLAIMER_WITHIN = 1.0
# Seconds that a stop waits for hooks after the handlers have ended, because a hook may hang.
_HOOKS_WITHIN = 5.0
_CHECK_EVERY = 0.25
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# After this many lease times without a sign of life, a process holds no lease any more.
_SILENT_LEASES = 2


class RestartRequired(FlowFabricError):  # noqa: N818  the name says what happened
    """The worker process stopped cleanly, and needs a restart."""


class Runtime:
    """Run the tasks of a worker in this process until it is stopped; a runtime can be started only once.

    Args:
        worker: the worker whose tasks to run.
        settings: the settings of this process; None for the defaults.
        channel_socket: this process's end of the channel to its supervisor; None if it has no supervisor.

    Attributes:
        instance_id: the unique name of this start of the process.
    """

    def __init__(
        self, worker: Worker, settings: WorkerSettings | None = None, *, channel_socket: socket.socket | None = None
    ) -> None:
        self.worker = worker
        self.settings = settings or WorkerSettings()
        runs_isolated = channel_socket is not None and supervisor_channel.runs_isolated()
        if runs_isolated:
            self.settings = attrs.evolve(self.settings, threads=1)
        self.instance_id = new_instance_id(worker.name)
        self._engine = worker.engine
        self._lanes = lanes_to_serve(worker.tasks, self.settings)
        self._lease = claim_lease(worker.tasks, self.settings)
        self._registration = registration(worker.name, self.instance_id, worker.tasks, self._lanes, self.settings)
        self._leases = LeaseTable(self.settings.threads)
        self._hooks = Hooks(worker.middleware, self._engine)
        self._execution_log = ExecutionLog()
        self._completer = Completer(self._leases, self._engine, self._hooks, self._execution_log)
        self._frame_appender = FrameAppender(self._engine)
        self._handler_pool = self._make_handler_pool()
        limit = self.settings.memory_limit
        self._memory_limit: MemoryLimit | None = None
        self._memory = None if limit is None else MemoryWatch(limit, self._on_restart_required)
        self._assigned_work = AssignedWork(self._leases, worker.tasks, self._hooks.lost) if runs_isolated else None
        self._channel = None if channel_socket is None else self._make_channel(channel_socket)
        self._publications = [task.publication() for task in worker.tasks.values()]
        self._lease_keeper = LeaseKeeper(
            self._leases, self._engine, self._registration, self._lease, self._hooks, tuple(self._watches()),
            self._publications,
        )  # fmt: skip
        self._claimer = self._assigned_work or self._make_claimer()
        self._isolated_process = (
            None if channel_socket is None or runs_isolated else IsolatedProcess(self._leases, self._lease_keeper)
        )
        self._ticker = Ticker(self._engine, () if runs_isolated else worker.tasks.values())
        # Use a SimpleQueue, because signal handlers must not set an Event. An item is the process's own reason to stop,
        # or empty for a request from outside.
        self._stop_requests: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._running = False
        self._asked = False
        self._restart_reason = ""
        # The reason of the stop, if a handler may have caused it.
        self._own_reason = ""

    def _make_handler_pool(self) -> HandlerPool:
        arounds, limits = arounds_of(self.worker.middleware), self._engine.limits
        attempt_runner = AttemptRunner(
            self._completer, self._frame_appender, self._engine, limits, self._hooks, arounds
        )
        grace, max_stuck = self.settings.interrupt_grace.total_seconds(), self.settings.max_stuck_threads
        return HandlerPool(self._leases, attempt_runner, grace, max_stuck, self._on_restart_required)

    def _make_channel(self, end: socket.socket) -> SupervisorChannel:
        run = None if self._assigned_work is None else self._assigned_work.run
        reclaimed = self._leases.holds_reclaimed
        return SupervisorChannel(end, self._ask_once, self._hurry, self._on_death, reclaimed, run, self._on_lost)

    def _make_claimer(self) -> Claimer:
        policy = ClaimPolicy(worker_id=self.worker.name, worker_instance_id=self.instance_id, lease=self._lease)
        on_reclaimed = None if self._channel is None else self._channel.beat_now
        return Claimer(
            self._leases, self._engine, policy, self.worker.tasks, self._lanes, self.settings.capabilities,
            self._hooks, self._execution_log, on_reclaimed,
        )  # fmt: skip

    def _watches(self) -> Iterator[Callable[[], None]]:
        """Yield the functions that the lease keeper calls in each round."""
        yield self._handler_pool.replace_lost
        yield self._hooks.watch
        if self._memory is not None:
            yield self._memory
        if self._channel is not None:
            yield self._channel.beat
        if self._assigned_work is not None:
            yield self._tell_done

    def _tell_done(self) -> None:
        """Tell the process that started this isolated one that the assigned execution has ended."""
        assert self._assigned_work is not None
        assert self._channel is not None
        if self._assigned_work.is_done():
            self._channel.done()

    # For the main thread

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; then let handlers finish within the grace, and release the other executions.

        A second signal releases everything at once. SIGUSR1 prints the stack of every thread.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
            TypeError: an annotation of a task cannot be encoded, or does not resolve.
            RestartRequired: too many threads are stuck, or the process is close to its memory limit. It stopped
                cleanly; start another process.
            RuntimeError: a thread ended because of a defect in this package; the other parts were stopped.
        """
        previous = {number: signal_handlers.handle(number, self._on_signal) for number in _STOP_SIGNALS}
        previous[signal.SIGUSR1] = signal_handlers.handle(signal.SIGUSR1, signal_handlers.print_threads)
        try:
            if not self._prepare_unless_stopped():
                return
            # Exempt the objects of the application's modules from garbage collection, because they live on.
            gc.collect()
            gc.freeze()
            self._start()
            ended_part = self._await_request()
            self.stop()
            if ended_part:
                raise RuntimeError(f"The {ended_part} of {self.instance_id} ended unexpectedly; see its traceback.")
            if self._restart_reason:
                raise RestartRequired(f"The process needs a restart: {self._restart_reason}.")
        finally:
            for number, handler in previous.items():
                signal_handlers.handle(number, handler)

    def _prepare_unless_stopped(self) -> bool:
        """Prepare the store; return False if a request to stop came before the store was ready."""
        prepared = BackgroundCall(self._prepare)
        while not prepared.join(_CHECK_EVERY):
            if not self._stop_requests.empty():
                log.info("%s stopped before it started: the store was not ready.", self.instance_id)
                return False
        prepared.answer(None)
        return True

    def _await_request(self) -> str:
        """Wait for a request to stop, and return ""; if a part ends unexpectedly, return its name."""
        own = signal_handlers.wait_for(
            _STOP_SIGNALS, lambda: bool(self._stop_requests.qsize() or self._ended_part()), self._leases.open.set
        )
        part = self._ended_part() if self._stop_requests.empty() else ""
        if part:
            self._own_reason = f"its {part} ended"
            return part
        reason = self._stop_requests.get()
        if own is None:
            self._own_reason = reason
        elif own:
            self._own_reason = "it sent itself a signal"
        return ""

    def _ended_part(self) -> str:
        """Return the name of a part whose thread has ended because of a defect; else ""."""
        for part in self._parts:
            if not part.alive:
                return _CAPITAL.sub(" ", type(part).__name__).lower()
        return ""

    @property
    def _parts(self) -> tuple[Part, ...]:
        """The parts that own threads."""
        parts = (
            self._claimer, self._lease_keeper, self._completer, self._frame_appender, self._handler_pool, self._hooks,
            self._ticker, self._execution_log,
        )  # fmt: skip
        return parts if self._isolated_process is None else (*parts, self._isolated_process)

    def request_stop(self) -> None:
        """Request that `run` stops, and return at once; a second request ends the wait for handlers."""
        self._stop_requests.put("")

    def _on_restart_required(self, reason: str) -> None:
        """Stop cleanly, once, because the process needs a restart."""
        if self._running and not self._restart_reason:
            self._restart_reason, self._asked = reason, True
            log.error("%s stops for a restart: %s.", self.instance_id, reason)
            self._stop_requests.put(reason)

    def _ask_once(self) -> None:
        """Request a stop, unless a stop was requested before."""
        if not self._asked:
            self._asked = True
            self.request_stop()

    def _hurry(self) -> None:
        if self._isolated_process is not None:
            self._isolated_process.hurry()
        self.request_stop()
        self.request_stop()

    def _on_signal(self, number: int, _: FrameType | None) -> None:  # noqa: ARG002  what the signal module passes
        if self._channel is not None and self._asked:
            # Ignore it: a service manager may signal this process too, but only the supervisor may hurry its stop.
            return
        self._asked = True
        self.request_stop()

    # For the owner of the threads

    def start(self) -> None:
        """Prepare the store and start the threads.

        Raises:
            EngineError: the store cannot be used.
            ValueError: the worker has no tasks.
        """
        self._prepare()
        self._start()
        self._leases.open.set()

    def _prepare(self) -> None:
        if not self.worker.tasks:
            raise ValueError(
                f"The worker {self.worker.name!r} has no tasks: decorate functions with @worker.task first."
            )
        self.worker.check()
        for warning in unknown_lanes(self.worker.name, self.worker.tasks.values(), self.settings.lanes):
            log.warning("%s", warning)
        for warning in self._engine.prepare().warnings:
            log.warning("%s", warning)
        self._engine.publish_tasks(self._publications)
        self._engine.register_worker(self._registration)
        self._engine.listener.on_lost(self._on_lost)

    def _start(self) -> None:
        self._running = True
        log_queue.start()
        self._hooks.start()
        self._execution_log.start()
        self._completer.start()
        self._frame_appender.start()
        self._handler_pool.start()
        self._lease_keeper.start()
        if self.settings.memory_limit is not None:
            self._memory_limit = MemoryLimit(self.settings.memory_limit)
        if self._channel is not None:
            self._channel.start(self.instance_id, _SILENT_LEASES * self._lease.total_seconds())
        self._claimer.start()
        self._ticker.start()
        if self._assigned_work is not None:
            log.info("%s runs suspects, one at a time.", self.instance_id)
            return
        if self._isolated_process is not None:
            self._isolated_process.start()
        tasks = self.worker.tasks.values()
        log.info("%s", start_line(self.worker.url, tasks, self.settings, self._lanes, self.instance_id))

    def stop(self, grace: timedelta | None = None) -> None:
        """Stop claiming, let handlers finish within the grace, and release the other executions, ready at once.

        A stop ends a few seconds after the grace even if the store does not answer. Executions whose outcome or release
        the store has not acknowledged by then run again when their leases expire.

        Args:
            grace: how long to wait for handlers; None for the grace of the settings. A request to stop ends the wait.
        """
        if not self._running:
            return
        self._running = False
        if self._memory_limit is not None:
            self._memory_limit.raise_by()
        given = self.settings.grace if grace is None else grace
        # A supervisor kills a process that sends no beats, and the lease keeper may have ended.
        beat = None if self._channel is None else self._channel.beat
        deadline = Deadline(given.total_seconds(), self._stop_requests.qsize, beat)
        self._ticker.stop()
        self._claimer.stop()
        self._leases.open.set()
        if self._isolated_process is not None:
            self._isolated_process.stop()
        unstarted = BackgroundCall(lambda: self._return_unstarted(deadline))
        deadline.await_within_grace(unstarted.join, _CLAIMER_WITHIN)
        self._handler_pool.stop()
        running = self._leases.running()
        if running and deadline.grace() > 0:
            log.info("%s", waiting_line(running, deadline.grace()))
        deadline.await_within_grace(self._handler_pool.join)
        hooks_until = now() + _HOOKS_WITHIN
        unfinished = self._stop_completer(deadline, unstarted)
        self._stop_other_parts(deadline, hooks_until)
        self._tell_end(unstarted.answer([]) + unfinished.answer([]))
        log_queue.stop(_LOG_WITHIN)

    def _stop_completer(self, deadline: Deadline, unstarted: BackgroundCall[Any]) -> BackgroundCall[Any]:
        """Release the executions whose handlers have not ended, while the outcomes of the others are sent.

        Returns:
            The call that releases them.
        """
        left = self._withhold_unfinished()
        unfinished = BackgroundCall(lambda: self._hand_back(left))
        self._completer.stop()
        self._frame_appender.stop()
        isolated = () if self._isolated_process is None else (self._isolated_process,)
        for part in (self._completer, self._frame_appender, unfinished, unstarted, *isolated):
            deadline.await_at_all(part.join)
        return unfinished

    def _stop_other_parts(self, deadline: Deadline, hooks_until: float) -> None:
        """Stop the parts that are needed until all outcomes are sent, and deregister the worker.

        Args:
            hooks_until: until when to wait for the hooks. The time runs while other parts end, because the process for
                suspects waits for its own hooks meanwhile.
        """
        self._execution_log.stop()
        self._lease_keeper.stop()
        self._hooks.stop()
        leaving: BackgroundCall[None] = BackgroundCall(self._leave)
        for part in (self._lease_keeper, self._execution_log, self._ticker, leaving):
            deadline.await_at_all(part.join)
        deadline.await_at_all(self._hooks.join, hooks_until - now())
        self._hooks.tell_rest()

    def _return_unstarted(self, deadline: Deadline) -> list[LeasedExecution]:
        """Release the executions that no handler has begun; return those whose release the store acknowledged."""
        deadline.await_at_all(self._claimer.join)
        return self._lease_keeper.release_waiting()

    def _withhold_unfinished(self) -> list[LeasedExecution]:
        """Withhold the outcomes of all handlers that are still running; return their executions."""
        left = self._leases.unfinished()
        for execution in left:
            execution.withhold()
            execution.lose("stopping")
        return left

    def _hand_back(self, left: Sequence[LeasedExecution]) -> list[LeasedExecution]:
        """Release executions whose handlers have not ended; return those whose release the store acknowledged."""
        by_reason: dict[str | None, list[LeasedExecution]] = {}
        for execution in left:
            by_reason.setdefault(self._why_it_counts(execution), []).append(execution)
        return [each for why, some in by_reason.items() for each in self._lease_keeper.release(some, why)]

    def _why_it_counts(self, execution: LeasedExecution) -> str | None:
        """Return the reason why a release counts as a reclaim; None if it does not."""
        if execution.started_at is None:
            return None
        if self._own_reason:
            return f"stopped, because {self._own_reason}"
        harmless = execution.claimed.policy.max_reclaim_count > 0 and not execution.is_near_its_end()
        if harmless and not (self._memory is not None and self._memory.is_close):
            return None
        return "was told to stop"

    def _tell_end(self, handed_back: Sequence[LeasedExecution]) -> None:
        """Log how many executions were released, and how much the store has not acknowledged."""
        begun = sum(execution.started_at is not None for execution in handed_back)
        log.info("%s stopped; it handed back %s, of which %s had begun.", self.instance_id, len(handed_back), begun)
        outcomes, executions = len(self._leases.unacknowledged()), len(self._leases.executions)
        if executions:
            log.warning("%s", unacknowledged_line(outcomes, executions - outcomes))

    def _leave(self) -> None:
        """Deregister the worker, if the store can be reached."""
        calls: tuple[Callable[[], object], ...] = (
            lambda: self._engine.listener.off_lost(self._on_lost),
            lambda: self._engine.mark_worker_dead(self.instance_id, "stopped"),
        )
        for call in calls:
            try:
                call()
            except EngineError as error:
                log.debug("The worker could not deregister: %s", error)

    def _on_death(self, instance_id: str, how: str) -> None:
        """Tell the store how another process of this supervisor died."""
        # Do not block this thread: it reads the channel, whose next message may be a request to stop.
        BackgroundCall(lambda: self._note_death(instance_id, how))

    def _note_death(self, instance_id: str, how: str) -> None:
        try:
            self._engine.mark_worker_dead(instance_id, how)
        except EngineError as error:
            log.warning("The store does not know how %s died (%s): %s", instance_id, how, error)

    def _on_lost(self, execution_id: str, fence: str) -> None:
        execution = self._leases.executions.get(execution_id)
        if execution is None or execution.handle.fence != fence:
            return
        if not execution.ended:
            execution.lose("cancelled or revoked")
        elif self._isolated_process is not None:
            self._isolated_process.lost(execution_id, fence)
