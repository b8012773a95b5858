"""Suspects run in a process that does nothing else: the worker that holds them starts it, and tells how it ended.

The worker goes on with other work, and goes on renewing their leases. The process renews them too, and sends the
outcomes to the store by itself. If it dies, the worker hands the suspect back with the reason: a reclaim.
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
from flowfabric_worker._runtime.worker_process import Absence, WorkerProcess, ending_of
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task

log = log_queue.Log(__name__)

_LOOK_EVERY: Final = 0.2
# Seconds after which the process ends when there is no suspect.
IDLE_FOR: Final = 30.0


class IsolatedProcess(OwnedThread):
    """Run suspects in another process, one at a time; one thread starts that process and listens to it.

    Args:
        keeper: hands back what was lost with that process.
    """

    def __init__(self, leases: LeaseTable, lease_keeper: LeaseKeeper) -> None:
        super().__init__("isolated-process")
        self._leases = leases
        self._lease_keeper = lease_keeper
        # As this process was started, so that the application loads in the same way.
        self._command = [sys.executable, *sys.orig_argv[1:]]
        self._process: WorkerProcess | None = None
        self._absence = Absence()
        self._running: LeasedExecution | None = None
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        """Whether its thread runs, or is not needed any more because no process can be started."""
        return not self._leases.suspects_isolated or super().alive

    def start(self) -> None:
        self._leases.suspects_isolated = True
        super().start()

    def stop(self) -> None:
        """Tell the process to stop, as this one does."""
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
        """Pass on that a lease is over, if its execution runs there."""
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
                self._stopping.wait(_LOOK_EVERY)
                continue
            self._run(execution)
            idle_since = now()
        self._end_process()

    def _run(self, execution: LeasedExecution) -> None:
        """Have one suspect run."""
        # Its outcome comes from another process: nothing here waits for one.
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
            "%s of %s runs alone: it was lost with its worker %s times. The process %s runs it.",
            execution.task.name, execution.key, execution.claimed.reclaim_count, process.pid, extra=execution.fields,
        )  # fmt: skip
        self._running = execution
        done = process.done
        process.give(pack_claimed(execution.claimed))
        while self._is_well(process) and process.done == done:
            pass
        self._running = None
        # What it said last may still be on the line.
        process.hear()
        if process.done == done:
            self._tell_loss(execution)
        self._leases.drop(execution)

    def _tell_loss(self, execution: LeasedExecution) -> None:
        """Hand back what was lost with the process; one that ended in order has done that itself."""
        code = self._end_process()
        if code in (0, RESTART_EXIT_CODE):
            return
        how = ending_of(code)
        log.error("%s of %s ended its process: %s.", execution.task.name, execution.key, how, extra=execution.fields)
        self._lease_keeper.release([execution], how)

    def _has_process(self) -> bool:
        """Return True if the process is there, and start it if it is not."""
        if self._process is not None and self._process.exit_code is None:
            return True
        self._end_process()
        try:
            process = self._process = WorkerProcess(self._command, {ISOLATED_VARIABLE: "1"})
        except OSError as error:
            log.error("No process can be started for suspects: %s. They run beside other work, in turns.", error)
            self._leases.suspects_isolated = False
            return False
        while not process.instance_id and self._is_well(process):
            if self._stopping.is_set():
                return False
        if not process.instance_id:
            how = ending_of(self._end_process())
            log.error("The process for suspects did not begin (%s). They run beside other work, in turns.", how)
            self._leases.suspects_isolated = False
        return self._leases.suspects_isolated

    def _is_well(self, process: WorkerProcess) -> bool:
        """Hear what the process says for a moment; return False when it has ended. One that is silent is killed."""
        open_ = process.wait(_LOOK_EVERY)
        process.excuse(self._absence.look())
        if open_ and process.silent():
            process.kill("has fallen silent; it is killed")
        return open_ and process.exit_code is None

    def _end_process(self) -> int:
        """Wait for the end of the process, which has ended or is told to; return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.stop(hurry=False)
        while process.exit_code is None and self._is_well(process):
            pass
        if process.exit_code is None:
            # The end of its line is the last thing that is heard of a process that dies.
            process.join()
        process.hear()
        process.close()
        code = process.exit_code
        return -signal.SIGKILL if code is None else code


class AssignedWork:
    """Takes the place of the claimer in a process that runs what it is given.

    Args:
        on_lost: called when a run will not count.
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
        """Do nothing: what is given comes by the line."""

    def stop(self) -> None:
        """Do nothing: the starter gives nothing to a process that it stops."""

    def join(self, _: float) -> bool:
        """Return True: there is no thread."""
        return True

    def run(self, word: str) -> None:
        """Take up an execution, and begin it. The starter renews its lease too, so that it lives."""
        claimed = unpack_claimed(word)
        execution = hold(claimed, self._tasks[claimed.task], now(), self._on_lost)
        execution.renew_at = now()
        self._leases.hold(execution)
        self._is_assigned = True
        self._leases.begin(execution)

    def is_done(self) -> bool:
        """Return True, once, when the store knows what became of the execution that was given last."""
        done = self._is_assigned and not self._leases.executions
        self._is_assigned = self._is_assigned and not done
        return done


def pack_claimed(claimed: Claimed) -> str:
    """Write a claimed execution as one word. It is for a process of the same release, which this one has started."""
    packed = io.BytesIO()
    pickler = pickle.Pickler(packed)
    # Mappings that nothing may change are none of those that pickle knows.
    pickler.dispatch_table = {**copyreg.dispatch_table, MappingProxyType: _reduced}
    pickler.dump(claimed)
    return base64.b64encode(packed.getvalue()).decode("ascii")


def _reduced(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return _unchangeable, (dict(mapping),)


def _unchangeable(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


def unpack_claimed(word: str) -> Claimed:
    """Read what `pack_claimed` has written."""
    claimed: Claimed = pickle.loads(base64.b64decode(word))
    return claimed
