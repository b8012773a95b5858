"""A process that this one starts and listens to: the starter's side of the line of `supervised`."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from flowfabric_worker._runtime.supervisor_channel import CHANNEL_VARIABLE
from flowfabric_worker.engine import log_queue

log = log_queue.Log(__name__)

# Seconds after which a process that has not said hello is not going to.
START_WITHIN: Final = 60.0
# Seconds that a process may take to receive an execution.
GIVE_WITHIN: Final = 10.0
# When a process has not looked for longer than this, in seconds, it was stopped itself: by a debugger, or with the
# machine that it runs on.
ABSENT_AFTER: Final = 1.0


class Absence:
    """Tells for how long this process was stopped, so that it does not take that for the silence of others."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()

    def look(self) -> float:
        """Return for how many seconds this process was stopped since the last look; 0 if it was not."""
        moment = time.monotonic()
        passed, self._looked_at = moment - self._looked_at, moment
        return passed if passed > ABSENT_AFTER else 0.0


class WorkerProcess:
    """One worker process, and its starter's end of the line to it.

    Args:
        command: starts it.
        environment: variables beside those of this process.

    Attributes:
        instance_id: what it calls itself; empty before it has said hello.
        holds_suspect: whether it holds an execution whose worker was lost before.
        done: how many executions it has done that it was given.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._end, theirs = socket.socketpair()
        with theirs:
            # Apart from the terminal: Ctrl-C is for the supervisor, which passes it on.
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment, CHANNEL_VARIABLE: str(theirs.fileno())},
                start_new_session=True,
            )
        self._end.setblocking(False)
        self._received = b""
        self._silence = START_WITHIN
        self._heard_at = time.monotonic()
        self._killed = False
        self.started_at = self._heard_at
        self.instance_id = ""
        self.holds_suspect = False
        self.done = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        return self._end.fileno()

    @property
    def exit_code(self) -> int | None:
        """How it ended: an exit code, or a signal's number below zero; None while it runs."""
        return self._process.poll()

    def hear(self) -> bool:
        """Read what it says; False at the end of the line."""
        try:
            data = self._end.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._heard_at = time.monotonic()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            word, *rest = line.decode("utf-8", "replace").split(" ")
            if word == "hello":
                self.instance_id, self._silence = rest[0], float(rest[1])
            elif word == ".":
                self.holds_suspect = rest == ["suspect"]
            elif word == "done":
                self.done += 1
        return bool(data)

    def tell(self, message: str) -> bool:
        """Say something to it; return True if that could be sent."""
        try:
            self._end.sendall(message.encode() + b"\n")
        except OSError:
            return False
        return True

    def give(self, execution: str) -> bool:
        """Give it an execution to run; return True if that could be sent. It may be more than fits into the line."""
        self._end.settimeout(GIVE_WITHIN)
        given = self.tell(f"run {execution}")
        self._end.setblocking(False)
        return given

    def wait(self, timeout: float) -> bool:
        """Wait until it says something, at most `timeout` seconds, and hear it; return False at the end of the line."""
        select.select([self], [], [], timeout)
        return self.hear()

    def stop(self, *, hurry: bool) -> None:
        """Tell it to stop; by the line, since the system may signal all processes of a service by itself."""
        if not (self.instance_id and self.tell("hurry" if hurry else "stop")):
            self.signal(signal.SIGTERM)

    def silent(self) -> bool:
        """Return whether nothing was heard for so long that it holds no lease any more, or never began."""
        return time.monotonic() - self._heard_at > self._silence

    def join(self) -> None:
        """Wait for the end of a process whose line has ended; kill it if it does not end by itself."""
        try:
            self._process.wait(GIVE_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill("does not end; it is killed")
            self._process.wait()

    def excuse(self, seconds: float) -> None:
        """Do not count a time in which the supervisor did not listen as silence."""
        self._heard_at += seconds

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self, reason: str) -> None:
        """End it at once; it is gone a moment later."""
        if not self._killed:
            self._killed = True
            log.error("The worker process %s %s.", self.pid, reason)
            self.signal(signal.SIGKILL)

    def close(self) -> None:
        self._end.close()


def ending_of(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
