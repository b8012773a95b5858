"""The supervisor of several worker processes, which starts them, replaces those that die or hang, and stops them.

The supervisor runs no task and does not use the store. It starts processes by exec, never by fork, and has a channel
to each (see `supervisor_channel`). The kernel closes the channel when either side dies, so no process outlives its
supervisor, and the supervisor notices every death.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Final

from flowfabric_worker._runtime import signal_handlers
from flowfabric_worker._runtime.supervisor_channel import RESTART_EXIT_CODE
from flowfabric_worker._runtime.worker_process import PauseMeter, WorkerProcess, describe_ending
from flowfabric_worker.engine import log_queue
from flowfabric_worker.engine.backoff import Backoff

log = log_queue.Log(__name__)

# Seconds before a dead process is replaced: at first, and at most if processes die again and again.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
# After a process that has worked for this many seconds, the next one starts after the first pause again.
STEADY_AFTER: Final = 10.0
# The seconds beyond the grace that a process may take to stop; its own deadline is a little earlier.
STOP_WITHIN: Final = 4.6
_CHECK_EVERY: Final = 0.2
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Slot:
    """The place of one worker process and of its successors.

    Attributes:
        process: the present process; None between two of them.
        start_at: when the next process starts.
    """

    def __init__(self) -> None:
        self.process: WorkerProcess | None = None
        self.start_at = time.monotonic()
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE, STEADY_AFTER)

    def plan(self, process: WorkerProcess, *, in_order: bool) -> float:
        """Plan the successor of a process that has ended; return the seconds until it starts.

        The pause grows only with deaths in this slot that no suspect explains. An application that cannot run is
        therefore not restarted all the time, but a task that kills its process does not delay other slots or other
        work.
        """
        pause = 0.0
        if not in_order:
            self._backoff.settle(time.monotonic() - process.started_at)
            pause = self._backoff.first if process.holds_suspect else self._backoff.next()
        self.process, self.start_at = None, time.monotonic() + pause
        return pause


class Supervisor:
    """Keep a number of worker processes running until a signal stops them.

    Args:
        command: the command that starts one process.
        count: the number of processes.
        grace: the most seconds that each process waits for its handlers when it stops.
        hopeless: exit codes of a starting process after which a restart cannot help, unless another process has
            started.
    """

    def __init__(self, command: Sequence[str], count: int, grace: float, hopeless: Collection[int] = ()) -> None:
        self._command = command
        self._grace = grace
        self._hopeless = hopeless
        self._slots = [Slot() for _ in range(count)]
        self._pauses = PauseMeter()
        self._stop_by: float | None = None
        # Whether a process has ever started; if so, a failure to start may be temporary.
        self._began = False
        self._exit_code = 0
        # The deaths that no running process has reported to the store yet.
        self._deaths: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._signals, self._signalled = socket.socketpair()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, which is forwarded to every process; a second one stops them at once.

        SIGUSR1 is forwarded too.

        Returns:
            The exit code: 0 if every process stopped cleanly, else that of a process that did not.
        """
        for end in (self._signals, self._signalled):
            end.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        with ExitStack() as undo:
            # The sockets outlive the signal handlers, which write to them until the former handlers are back.
            undo.callback(self._close)
            for number in _FORWARDED:
                undo.callback(signal_handlers.handle, number, signal_handlers.handle(number, self._on_signal))
            # Log from another thread, because the pipe to the terminal or log collector may be full.
            log_queue.start()
            undo.callback(log_queue.stop, 0.2)
            undo.callback(self._kill_all)
            while self._processes or self._stop_by is None:
                self._start_missing()
                self._listen()
                self._look_after()
        return self._exit_code

    @property
    def _processes(self) -> list[WorkerProcess]:
        """The processes that run now."""
        return [slot.process for slot in self._slots if slot.process is not None]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # Only write to a socket here, because a signal handler may interrupt any code. It is full only after so many
        # unread signals that one more changes nothing.
        with suppress(BlockingIOError):
            self._signalled.send(bytes([number]))

    def _start_missing(self) -> None:
        for slot in self._slots:
            if slot.process is not None or self._stop_by is not None or slot.start_at > time.monotonic():
                continue
            process = slot.process = WorkerProcess(self._command)
            self._selector.register(process, selectors.EVENT_READ, process)
            log.info("Started the worker process %s.", process.pid)

    def _listen(self) -> None:
        """Wait briefly for signals, and for messages of the processes."""
        for key, _ in self._selector.select(_CHECK_EVERY):
            process = key.data
            if process is None:
                for number in self._signals.recv(64):
                    self._forward(number)
            elif process.hear():
                self._began = self._began or bool(process.instance_id)
            else:
                # The process has closed the channel, so it is dying; its exit code follows.
                self._selector.unregister(process)

    def _forward(self, number: int) -> None:
        if number == signal.SIGUSR1:
            for process in self._processes:
                process.signal(number)
            return
        hurry = self._stop_by is not None
        self._stop_by = time.monotonic() + (0 if hurry else self._grace) + STOP_WITHIN
        for process in self._processes:
            process.stop(hurry=hurry)

    def _look_after(self) -> None:
        self._ignore_own_pauses()
        for slot in self._slots:
            process = slot.process
            if process is None:
                continue
            code = process.exit_code
            if code is not None:
                self._replace(slot, process, code)
            elif self._stop_by is None and process.silent():
                process.kill("was silent for too long; it is killed and replaced")
            elif self._stop_by is not None and time.monotonic() > self._stop_by:
                # Do not wait for silence here: a process that stops has already released its leases.
                process.kill("does not stop; it is killed")
        self._pass_on_deaths()

    def _ignore_own_pauses(self) -> None:
        """Extend all limits by the time for which this process was stopped, because it read no messages meanwhile."""
        paused = self._pauses.measure()
        if not paused:
            return
        for process in self._processes:
            process.ignore_silence(paused)
        if self._stop_by is not None:
            self._stop_by += paused

    def _replace(self, slot: Slot, process: WorkerProcess, code: int) -> None:
        """Record the end of a process, and plan its successor."""
        if process in self._selector.get_map():
            self._selector.unregister(process)
        # Read its last message, which may be its `hello`.
        process.hear()
        process.close()
        began, how = bool(process.instance_id), describe_ending(code)
        self._began = self._began or began
        in_order = began and code in (0, RESTART_EXIT_CODE)
        if self._stop_by is not None:
            slot.process = None
            # Ignore the exit code of a process that had not started: it had nothing to stop.
            self._exit_code = self._exit_code or int(began and not in_order)
            return
        if code in self._hopeless and not self._began:
            # Start no other process, because it would end in the same way.
            slot.process = None
            self._exit_code = code
            self._forward(signal.SIGTERM)
            return
        if began and not in_order:
            self._deaths.append(f"died {process.instance_id} {how}")
        pause = slot.plan(process, in_order=in_order)
        log.warning("The worker process %s ended (%s); another one starts in %.1f s.", process.pid, how, pause)

    def _pass_on_deaths(self) -> None:
        """Have a running process report to the store how others died."""
        living = [process for process in self._processes if process.instance_id]
        while living and self._deaths:
            if living[-1].tell(self._deaths[0]):
                self._deaths.pop(0)
            else:
                living.pop()

    def _kill_all(self) -> None:
        """Kill all processes, so that none is left behind after an error."""
        for process in self._processes:
            process.signal(signal.SIGKILL)
            process.close()

    def _close(self) -> None:
        self._selector.close()
        self._signals.close()
        self._signalled.close()
