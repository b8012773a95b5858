"""Runs suspects in a separate process, which is started and watched by the worker that holds their leases.

The worker continues with other work, and renews the leases of its suspects. The isolated process renews them too, and
sends the outcomes to the store by itself. If it dies, the worker releases the suspect as a reclaim, with the reason.
"""

from __future__ import annotations

import base64
import copyreg
import io
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.lease_keeper import LeaseKeeper
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.owned_thread import OwnedThread
from flowfabric_worker._runtime.supervisor_channel import ISOLATED_VARIABLE, RESTART_EXIT_CODE
from flowfabric_worker._runtime.worker_process import PauseMeter, WorkerProcess, describe_ending
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task

log = log_queue.Log(__name__)

_CHECK_EVERY: Final = 0.2
# Seconds without a suspect after which the process is stopped.
IDLE_FOR: Final = 30.0


class IsolatedProcess(OwnedThread):
    """Run suspects in another process, one at a time; one thread starts that process and listens to it.

    Args:
        lease_keeper: releases the execution that was lost with that process.
    """

    def __init__(self, leases: LeaseTable, lease_keeper: LeaseKeeper) -> None:
        super().__init__("isolated-process")
        self._leases = leases
        self._lease_keeper = lease_keeper
        # Start the process by the command of this one, so that the application loads in the same way.
        self._command = [sys.executable, *sys.orig_argv[1:]]
        self._process: WorkerProcess | None = None
        self._pauses = PauseMeter()
        self._running: LeasedExecution | None = None
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether the thread runs; also true if it has ended because no process can be started."""
        return not self._leases.suspects_isolated or super().alive

    def start(self) -> None:
        self._leases.suspects_isolated = True
        super().start()

    def stop(self) -> None:
        """Tell the process to stop after its handler."""
        self._stopping.set()
        process = self._process
        if process is not None:
            process.stop(hurry=False)

    def hurry(self) -> None:
        """Tell the process to stop without waiting for its handler."""
        process = self._process
        if process is not None:
            process.stop(hurry=True)

    def lost(self, execution_id: str, fence: str) -> None:
        """Tell the process that a lease is lost, if it runs that execution."""
        execution, process = self._running, self._process
        if execution is not None and process is not None and execution.key == execution_id:
            process.tell(f"lost {execution_id} {fence}")

    # The thread

    def _work(self) -> None:
        idle_since = now()
        while self._leases.suspects_isolated and not self._stopping.is_set():
            try:
                execution = self._leases.suspects.popleft()
            except IndexError:
                if self._process is not None and now() - idle_since > IDLE_FOR:
                    self._end_process()
                self._stopping.wait(_CHECK_EVERY)
                continue
            self._run(execution)
            idle_since = now()
        self._end_process()

    def _run(self, execution: LeasedExecution) -> None:
        """Run one suspect in the process, and wait for its end."""
        # Do not wait for an outcome here, because the isolated process sends it.
        execution.ended = True
        if not self._has_process():
            execution.ended = False
            if self._stopping.is_set():
                self._lease_keeper.release([execution])
            else:
                self._leases.put_back(execution)
            return
        process = self._process
        assert process is not None
        log.warning(
            "%s of %s runs isolated in the process %s: its worker was lost %s times.",
            execution.task.name, execution.key, process.pid, execution.claimed.reclaim_count, extra=execution.fields,
        )  # fmt: skip
        self._running = execution
        done = process.done
        process.assign(pack_claimed(execution.claimed))
        while self._is_well(process) and process.done == done:
            pass
        self._running = None
        # Read the last message of the process.
        process.hear()
        if process.done == done:
            self._tell_loss(execution)
        self._leases.drop(execution)

    def _tell_loss(self, execution: LeasedExecution) -> None:
        """Release the execution that was lost with the process, unless the process stopped cleanly and released it."""
        code = self._end_process()
        if code in (0, RESTART_EXIT_CODE):
            return
        how = describe_ending(code)
        log.error("%s of %s ended its process: %s.", execution.task.name, execution.key, how, extra=execution.fields)
        self._lease_keeper.release([execution], how)

    def _has_process(self) -> bool:
        """Start the process if it does not run; return True if it runs."""
        if self._process is not None and self._process.exit_code is None:
            return True
        self._end_process()
        try:
            process = self._process = WorkerProcess(self._command, {ISOLATED_VARIABLE: "1"})
        except OSError as error:
            log.error("The process for suspects cannot be started: %s. They run in this one, one at a time.", error)
            self._leases.suspects_isolated = False
            return False
        while not process.instance_id and self._is_well(process):
            if self._stopping.is_set():
                return False
        if not process.instance_id:
            how = describe_ending(self._end_process())
            log.error("The process for suspects did not start (%s). They run in this one, one at a time.", how)
            self._leases.suspects_isolated = False
        return self._leases.suspects_isolated

    def _is_well(self, process: WorkerProcess) -> bool:
        """Wait briefly for messages of the process; return False if it has ended. Kill a process that is silent."""
        open_ = process.wait(_CHECK_EVERY)
        process.ignore_silence(self._pauses.measure())
        if open_ and process.silent():
            process.kill("was silent for too long; it is killed")
        return open_ and process.exit_code is None

    def _end_process(self) -> int:
        """Stop the process, wait for its end, and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.stop(hurry=False)
        while process.exit_code is None and self._is_well(process):
            pass
        if process.exit_code is None:
            # Wait for the end, because a process closes its channel a moment before it has ended.
            process.join()
        process.hear()
        process.close()
        code = process.exit_code
        return -signal.SIGKILL if code is None else code


class AssignedWork:
    """Replace the claimer in an isolated process, which runs the executions that its starter assigns.

    Args:
        on_lost: called when an attempt will not count.
    """

    alive = True

    def __init__(
        self, leases: LeaseTable, tasks: Mapping[str, Task[..., Any]], on_lost: Callable[[LeasedExecution], None]
    ) -> None:
        self._leases = leases
        self._tasks = tasks
        self._on_lost = on_lost
        self._is_assigned = False

    def start(self) -> None:
        """Do nothing: executions arrive over the channel."""

    def stop(self) -> None:
        """Do nothing: the starter assigns nothing to a process that it stops."""

    def join(self, _: float) -> bool:
        """Return True: there is no thread."""
        return True

    def run(self, word: str) -> None:
        """Begin an assigned execution. The starter renews its lease too, so the lease is valid."""
        self._leases.open.wait()
        claimed = unpack_claimed(word)
        execution = hold(claimed, self._tasks[claimed.task], now(), self._on_lost)
        execution.renew_at = now()
        self._leases.hold(execution)
        self._is_assigned = True
        self._leases.begin(execution)

    def is_done(self) -> bool:
        """Return True once after the store has acknowledged the outcome of the assigned execution."""
        done = self._is_assigned and not self._leases.executions
        self._is_assigned = self._is_assigned and not done
        return done


def pack_claimed(claimed: Claimed) -> str:
    """Encode a claimed execution as one word, for a process of the same release that this process has started."""
    packed = io.BytesIO()
    pickler = pickle.Pickler(packed)
    # pickle does not support read-only mappings.
    pickler.dispatch_table = {**copyreg.dispatch_table, MappingProxyType: _reduce_mapping}
    pickler.dump(claimed)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def _reduce_mapping(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return _make_read_only, (dict(mapping),)


def _make_read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


def unpack_claimed(word: str) -> Claimed:
    """Decode a word of `pack_claimed`."""
    claimed: Claimed = pickle.loads(base64.b64decode(word))
    return claimed
