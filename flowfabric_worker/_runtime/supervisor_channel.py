"""A worker process under a supervisor: its side of the line between the two.

The line is a pair of sockets, one message a line. The process says `hello INSTANCE SILENCE` when it works, and `.` from
time to time while it lives; `. suspect` while it holds an execution whose worker was lost before. The supervisor says
`stop` and `hurry`, and `died INSTANCE HOW` of another process. The end of the line is the end of the other side.

A worker process has such a line to the process that runs its suspects (`apart`): it says `run EXECUTION` and `lost ID
FENCE`, and hears `done`.
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
# Set for a process that claims nothing, and runs what it is given.
ISOLATED_VARIABLE: Final = "FLOWFABRIC_RUN_ISOLATED"
BEAT_EVERY: Final = 1.0
# The exit code of a process that stopped in order because it wants to be started anew.
RESTART_EXIT_CODE: Final = 7


class SupervisorChannel:
    """What a worker process says to its supervisor, and hears from it.

    Args:
        end: this process's end of the line.
        on_stop: called when this process is to stop, which is so too when the supervisor is gone.
        on_hurry: called when it is to stop without waiting for handlers.
        on_death: called with the instance id of another worker process, and how it died.
        holds_suspect: whether this process holds an execution whose worker was lost before.
        on_run: called with an execution that this process is to run.
        on_lost: called with the id of an execution whose lease is over, and that lease's fence.
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
        """Say that this process works; after so many seconds without a beat it is of no use any more."""
        self._say(f"hello {instance_id} {silence:.1f}")
        self._thread.start()

    def done(self) -> None:
        """Say that an execution which this process was given is done with."""
        self._say("done")

    def beat(self) -> None:
        """Tell the supervisor, from time to time, that this process lives; never wait for it."""
        if now() >= self._next_beat:
            self.beat_now()

    def beat_now(self) -> None:
        """Tell the supervisor that this process lives, and whether it holds a suspect."""
        self._next_beat = now() + BEAT_EVERY
        try:
            self._end.send(b". suspect\n" if self._holds_suspect() else b".\n", socket.MSG_DONTWAIT)
        except OSError as error:
            # A supervisor that is stopped reads nothing, and leases have to be renewed all the same.
            log.debug("The supervisor does not hear this process: %s", error)

    def _say(self, message: str) -> None:
        try:
            self._end.sendall(message.encode() + b"\n")
        except OSError:
            # The listening thread finds the end of the line, and acts on it.
            log.debug("The supervisor does not hear %r.", message)

    def _listen(self) -> None:
        with self._end.makefile("r", encoding="utf-8", errors="replace") as lines:
            try:
                for line in lines:
                    self._obey(*line.rstrip("\n").split(" ", 2))
            except OSError as error:
                log.debug("The line to the supervisor broke: %s", error)
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
    """This process's end of the line, if a supervisor started it. It is not handed on to further processes."""
    number = os.environ.pop(CHANNEL_VARIABLE, None)
    if number is None:
        return None
    end = socket.socket(fileno=int(number))
    end.set_inheritable(False)
    return end


def runs_isolated() -> bool:
    """Return True if this process was started to run what it is given. That is not handed on to further processes."""
    return os.environ.pop(ISOLATED_VARIABLE, None) is not None
