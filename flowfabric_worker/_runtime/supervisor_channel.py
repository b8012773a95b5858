"""The worker process's end of the channel to its supervisor.

The channel is a pair of sockets with one message per line. The process sends `hello INSTANCE SILENCE` when it has
started, and `.` every second; `. suspect` while it holds an execution whose worker was lost before. The supervisor
sends `stop` and `hurry`, and `died INSTANCE HOW` when another process has died. A side that dies closes the channel.

A worker process has such a channel to its isolated process (see `isolation`): it sends `run EXECUTION` and
`lost ID FENCE`, and receives `done`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from flowfabric_worker._runtime.lease_table import now
from flowfabric_worker.engine import log_queue

log = log_queue.Log(__name__)

CHANNEL_VARIABLE: Final = "FLOWFABRIC_SUPERVISOR_CHANNEL"
# Set for an isolated process, which does not claim but runs the executions that are assigned to it.
ISOLATED_VARIABLE: Final = "FLOWFABRIC_RUN_ISOLATED"
BEAT_EVERY: Final = 1.0
# The exit code of a process that stopped cleanly because it needs a restart.
RESTART_EXIT_CODE: Final = 7


class SupervisorChannel:
    """Exchange messages with the process that started this one: its supervisor or, if it is isolated, a worker.

    Args:
        end: this process's end of the channel.
        on_stop: called when this process has to stop: on `stop`, and when the channel is closed.
        on_hurry: called when it has to stop without waiting for handlers.
        on_death: called with the instance id of another worker process, and how it died.
        holds_suspect: returns True if this process holds an execution whose worker was lost before.
        on_run: called with an execution that this process has to run.
        on_lost: called with the id of an execution whose lease is lost, and that lease's fence.
    """

    def __init__(
        self,
        end: socket.socket,
        on_stop: Callable[[], None],
        on_hurry: Callable[[], None],
        on_death: Callable[[str, str], None],
        holds_suspect: Callable[[], bool] = lambda: False,
        on_run: Callable[[str], None] | None = None,
        on_lost: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._end = end
        self._on_stop = on_stop
        self._on_hurry = on_hurry
        self._on_death = on_death
        self._holds_suspect = holds_suspect
        self._on_run = on_run
        self._on_lost = on_lost
        self._next_beat = now()
        self._thread = threading.Thread(target=self._listen, name="flowfabric-supervisor-channel", daemon=True)

    def start(self, instance_id: str, silence: float) -> None:
        """Tell the supervisor that this process has started, and start to listen.

        Args:
            instance_id: the instance id of this process.
            silence: seconds without a beat after which the supervisor may kill this process.
        """
        self._send(f"hello {instance_id} {silence:.1f}")
        self._thread.start()

    def done(self) -> None:
        """Report that the assigned execution has ended."""
        self._send("done")

    def beat(self) -> None:
        """Tell the supervisor every second that this process is alive, without blocking."""
        if now() >= self._next_beat:
            self.beat_now()

    def beat_now(self) -> None:
        """Tell the supervisor that this process is alive, and whether it holds a suspect."""
        self._next_beat = now() + BEAT_EVERY
        try:
            self._end.send(b". suspect\n" if self._holds_suspect() else b".\n", socket.MSG_DONTWAIT)
        except OSError as error:
            # Never block: a supervisor that is stopped reads nothing, and must not delay the renewal of leases.
            log.debug("A beat to the supervisor was not sent: %s", error)

    def _send(self, message: str) -> None:
        try:
            self._end.sendall(message.encode() + b"\n")
        except OSError:
            # The listening thread notices a closed channel, and stops this process.
            log.debug("The message %r to the supervisor was not sent.", message)

    def _listen(self) -> None:
        with self._end.makefile("r", encoding="utf-8", errors="replace") as lines:
            try:
                for line in lines:
                    self._obey(*line.rstrip("\n").split(" ", 2))
            except OSError as error:
                log.debug("The channel to the supervisor broke: %s", error)
        self._on_stop()

    def _obey(self, word: str, what: str = "", how: str = "") -> None:
        if word == "stop":
            self._on_stop()
        elif word == "hurry":
            self._on_hurry()
        elif word == "died":
            self._on_death(what, how)
        elif word == "run" and self._on_run is not None:
            self._on_run(what)
        elif word == "lost":
            self._on_lost(what, how)


def socket_from_environment() -> socket.socket | None:
    """Return this process's end of the channel to its supervisor, and hide it from child processes."""
    number = os.environ.pop(CHANNEL_VARIABLE, None)
    if number is None:
        return None
    end = socket.socket(fileno=int(number))
    end.set_inheritable(False)
    return end


def runs_isolated() -> bool:
    """Return True if this process runs isolated, and hide that from child processes."""
    return os.environ.pop(ISOLATED_VARIABLE, None) is not None
