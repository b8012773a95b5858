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

from flowfabric_worker._runtime.child_process import Absence, Child, ending_of
from flowfabric_worker._runtime.claimer import hold
from flowfabric_worker._runtime.lease_keeper import LeaseKeeper
from flowfabric_worker._runtime.lease_table import LeasedExecution, LeaseTable, now
from flowfabric_worker._runtime.supervisor_channel import APART_VARIABLE, WORN_OUT
from flowfabric_worker.engine import log_queue as reporting
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.task import Task

log = reporting.Log(__name__)

_LOOK_EVERY: Final = 0.2
# Seconds after which the process ends when there is no suspect.
IDLE_FOR: Final = 30.0


class Apart:
    """One thread that has suspects run in a process of their own, one at a time.

    Args:
        keeper: hands back what was lost with that process.
    """

    def __init__(self, holdings: LeaseTable, keeper: LeaseKeeper) -> None:
        self._holdings = holdings
        self._keeper = keeper
        # As this process was started, so that the application loads in the same way.
        self._command = [sys.executable, *sys.orig_argv[1:]]
        self._child: Child | None = None
        self._absence = Absence()
        self._running: LeasedExecution | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="flowfabric-apart", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether its thread runs, or is not needed any more."""
        return not self._holdings.suspects_apart or self._thread.is_alive()

    def start(self) -> None:
        self._holdings.suspects_apart = True
        self._thread.start()

    def stop(self) -> None:
        """Tell the process to stop, as this one does."""
        self._stopping.set()
        child = self._child
        if child is not None:
            child.stop(hurry=False)

    def hurry(self) -> None:
        """Tell the process to stop without waiting for its handler."""
        child = self._child
        if child is not None:
            child.stop(hurry=True)

    def join(self, timeout: float) -> bool:
        """Wait for the thread, at most `timeout` seconds; return True if it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def lost(self, execution_id: str, fence: str) -> None:
        """Pass on that a lease is over, if its execution runs there."""
        held, child = self._running, self._child
        if held is not None and child is not None and held.key == execution_id:
            child.tell(f"lost {execution_id} {fence}")

    # The thread

    def _work(self) -> None:
        idle_since = now()
        while self._holdings.suspects_apart and not self._stopping.is_set():
            try:
                held = self._holdings.suspects.popleft()
            except IndexError:
                if self._child is not None and now() - idle_since > IDLE_FOR:
                    self._end_child()
                self._stopping.wait(_LOOK_EVERY)
                continue
            self._run(held)
            idle_since = now()
        self._end_child()

    def _run(self, held: LeasedExecution) -> None:
        """Have one suspect run."""
        # Its outcome comes from another process: nothing here waits for one.
        held.ended = True
        if not self._has_child():
            held.ended = False
            if self._stopping.is_set():
                self._keeper.release([held])
            else:
                self._holdings.put_back(held)
            return
        child = self._child
        assert child is not None
        log.warning(
            "%s of %s runs alone: it was lost with its worker %s times. The process %s runs it.",
            held.task.name, held.key, held.claimed.reclaim_count, child.pid, extra=held.fields,
        )  # fmt: skip
        self._running = held
        done = child.done
        child.give(pack_claimed(held.claimed))
        while self._is_well(child) and child.done == done:
            pass
        self._running = None
        # What it said last may still be on the line.
        child.hear()
        if child.done == done:
            self._tell_loss(held)
        self._holdings.drop(held)

    def _tell_loss(self, held: LeasedExecution) -> None:
        """Hand back what was lost with the process; one that ended in order has done that itself."""
        code = self._end_child()
        if code in (0, WORN_OUT):
            return
        how = ending_of(code)
        log.error("%s of %s ended its process: %s.", held.task.name, held.key, how, extra=held.fields)
        self._keeper.release([held], how)

    def _has_child(self) -> bool:
        """Return True if the process is there, and start it if it is not."""
        if self._child is not None and self._child.exit_code is None:
            return True
        self._end_child()
        try:
            child = self._child = Child(self._command, {APART_VARIABLE: "1"})
        except OSError as error:
            log.error("No process can be started for suspects: %s. They run beside other work, in turns.", error)
            self._holdings.suspects_apart = False
            return False
        while not child.instance_id and self._is_well(child):
            if self._stopping.is_set():
                return False
        if not child.instance_id:
            how = ending_of(self._end_child())
            log.error("The process for suspects did not begin (%s). They run beside other work, in turns.", how)
            self._holdings.suspects_apart = False
        return self._holdings.suspects_apart

    def _is_well(self, child: Child) -> bool:
        """Hear what the process says for a moment; return False when it has ended. One that is silent is killed."""
        open_ = child.wait(_LOOK_EVERY)
        child.excuse(self._absence.look())
        if open_ and child.silent():
            child.kill("has fallen silent; it is killed")
        return open_ and child.exit_code is None

    def _end_child(self) -> int:
        """Wait for the end of the process, which has ended or is told to; return its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        child.stop(hurry=False)
        while child.exit_code is None and self._is_well(child):
            pass
        if child.exit_code is None:
            # The end of its line is the last thing that is heard of a process that dies.
            child.join()
        child.hear()
        child.close()
        code = child.exit_code
        return -signal.SIGKILL if code is None else code


class Given:
    """Takes the place of the claimer in a process that runs what it is given.

    Args:
        on_lost: called when a run will not count.
    """

    alive = True

    def __init__(
        self, holdings: LeaseTable, tasks: Mapping[str, Task[..., Any]], on_lost: Callable[[LeasedExecution], None]
    ) -> None:
        self._holdings = holdings
        self._tasks = tasks
        self._on_lost = on_lost
        self._given = False

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
        held = hold(claimed, self._tasks[claimed.task], now(), self._on_lost)
        held.renew_at = now()
        self._holdings.hold(held)
        self._given = True
        self._holdings.begin(held)

    def is_done(self) -> bool:
        """Return True, once, when the store knows what became of the execution that was given last."""
        done = self._given and not self._holdings.executions
        self._given = self._given and not done
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
