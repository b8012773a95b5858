"""Several worker processes under one: started, kept alive, replaced when they die or fall silent, stopped together.

The supervisor runs no task and knows no store. It starts processes by exec, never by fork, and keeps a line to each
(see `supervised`): the kernel closes it when either side dies, so that no process outlives its supervisor and none that
died goes unnoticed.
"""

from __future__ import annotations

import selectors
import signal
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Final

from flowfabric_worker._runtime import signal_handlers
from flowfabric_worker._runtime.supervisor_channel import RESTART_EXIT_CODE
from flowfabric_worker._runtime.worker_process import Absence, WorkerProcess, ending_of
from flowfabric_worker.engine import log_queue

log = log_queue.Log(__name__)

# Seconds before the successor of a process that died starts: at first, and at most when they die again and again.
_BACKOFF: Final = (0.1, 30.0)
# After a process that worked for so many seconds the first pause is enough.
STEADY_AFTER: Final = 10.0
# How much longer than the grace a process may take to stop; it is ready a little earlier by itself.
STOP_WITHIN: Final = 4.6
_LOOK_EVERY: Final = 0.2
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Slot:
    """The place of one worker process, which others take after it.

    Attributes:
        child: the process that is there now.
        start_at: when the next one starts.
    """

    def __init__(self) -> None:
        self.process: WorkerProcess | None = None
        self.start_at = time.monotonic()
        self._pause = _BACKOFF[0]

    def plan(self, process: WorkerProcess, *, in_order: bool) -> float:
        """Plan the successor of a process that has ended; return how many seconds it waits.

        Only deaths in one place that no execution explains make the pause longer: one bad application or host is
        spared, and the other places, or good work beside tasks that kill their process, do not wait for it.
        """
        least, most = _BACKOFF
        pause = 0.0
        if not in_order:
            pause = least if process.holds_suspect else self._pause
            if time.monotonic() - process.started_at > STEADY_AFTER:
                pause = self._pause = least
            if not process.holds_suspect:
                self._pause = min(most, 2 * self._pause)
        self.process, self.start_at = None, time.monotonic() + pause
        return pause


class Supervisor:
    """Keeps a number of worker processes running until it is told to stop.

    Args:
        command: starts one of them.
        count: how many.
        grace: seconds that each takes for its own stop at most.
        hopeless: exit codes of a process that never began which no new start would cure, unless others did begin.
    """

    def __init__(self, command: Sequence[str], count: int, grace: float, hopeless: Collection[int] = ()) -> None:
        self._command = command
        self._grace = grace
        self._hopeless = hopeless
        self._slots = [Slot() for _ in range(count)]
        self._absence = Absence()
        self._stop_by: float | None = None
        # Whether any process has ever begun: what stands in the way of another one then may pass.
        self._began = False
        self._exit_code = 0
        # What died and how, until a living process has passed it on to the store.
        self._deaths: list[str] = []
        self._selector = selectors.DefaultSelector()
        self._signals, self._signalled = socket.socketpair()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, which go on to every process; a second one stops them at once.

        SIGUSR1 goes on to them too.

        Returns:
            The exit code: 0 if every process ended in order, else that of one which did not.
        """
        for end in (self._signals, self._signalled):
            end.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        with ExitStack() as undo:
            for number in _FORWARDED:
                undo.callback(signal_handlers.handle, number, signal_handlers.handle(number, self._on_signal))
            # Its pipe to the terminal, or to a log collector, may be full.
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
        """The processes that are there now."""
        return [slot.process for slot in self._slots if slot.process is not None]

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # A handler may interrupt anything, so it only leaves a note.
        self._signalled.send(bytes([number]))

    def _start_missing(self) -> None:
        for slot in self._slots:
            if slot.process is not None or self._stop_by is not None or slot.start_at > time.monotonic():
                continue
            process = slot.process = WorkerProcess(self._command)
            self._selector.register(process, selectors.EVENT_READ, process)
            log.info("Started the worker process %s.", process.pid)

    def _listen(self) -> None:
        """Wait a little for signals and for what the processes say."""
        for key, _ in self._selector.select(_LOOK_EVERY):
            process = key.data
            if process is None:
                for number in self._signals.recv(64):
                    self._forward(number)
            elif process.hear():
                self._began = self._began or bool(process.instance_id)
            else:
                # Its end closed, so it dies or is dead; how it ended shows when it is waited for.
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
        self._excuse_own_absence()
        for slot in self._slots:
            process = slot.process
            if process is None:
                continue
            code = process.exit_code
            if code is not None:
                self._replace(slot, process, code)
            elif self._stop_by is None and process.silent():
                process.kill("has fallen silent; it is killed and replaced")
            elif self._stop_by is not None and time.monotonic() > self._stop_by:
                # That it is silent by now means nothing: what it held is handed back already.
                process.kill("does not stop; it is killed")
        self._pass_on_deaths()

    def _excuse_own_absence(self) -> None:
        """Give everything more time if this process was stopped: so were its children, and nothing was heard."""
        absence = self._absence.look()
        if not absence:
            return
        for process in self._processes:
            process.excuse(absence)
        if self._stop_by is not None:
            self._stop_by += absence

    def _replace(self, slot: Slot, process: WorkerProcess, code: int) -> None:
        """Take note of the end of a process, and plan its successor."""
        if process in self._selector.get_map():
            self._selector.unregister(process)
        # It may have said hello in its last moments.
        process.hear()
        process.close()
        began, how = bool(process.instance_id), ending_of(code)
        self._began = self._began or began
        in_order = began and code in (0, RESTART_EXIT_CODE)
        if self._stop_by is not None:
            slot.process = None
            # One that had not begun had nothing to put in order.
            self._exit_code = self._exit_code or int(began and not in_order)
            return
        if code in self._hopeless and not self._began:
            # The others would end in the same way, one after the other.
            slot.process = None
            self._exit_code = code
            self._forward(signal.SIGTERM)
            return
        if began and not in_order:
            self._deaths.append(f"died {process.instance_id} {how}")
        pause = slot.plan(process, in_order=in_order)
        log.warning("The worker process %s ended (%s); another one starts in %.1f s.", process.pid, how, pause)

    def _pass_on_deaths(self) -> None:
        """Have a living process tell the store how others died."""
        living = [process for process in self._processes if process.instance_id]
        while living and self._deaths:
            if living[-1].tell(self._deaths[0]):
                self._deaths.pop(0)
            else:
                living.pop()

    def _kill_all(self) -> None:
        """However this ends, nothing is left behind."""
        for process in self._processes:
            process.signal(signal.SIGKILL)
            process.close()
        self._selector.close()
        self._signals.close()
        self._signalled.close()
