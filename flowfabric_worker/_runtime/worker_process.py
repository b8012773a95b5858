"""A worker process that this process has started, and this end of the channel to it."""

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

# A process that has not sent `hello` within this many seconds is killed.
START_WITHIN: Final = 60.0
# Seconds that a process may take to receive an execution.
ASSIGN_WITHIN: Final = 10.0
# Seconds without running after which a process knows that it was stopped itself, for example by a debugger.
STOPPED_AFTER: Final = 1.0


class PauseMeter:
    """Measures for how long this process was stopped, so that it does not mistake that time for silence of others."""

    def __init__(self) -> None:
        self._measured_at = time.monotonic()

    def measure(self) -> float:
        """Return for how many seconds this process was stopped since the last call; 0 if it was not."""
        moment = time.monotonic()
        passed, self._measured_at = moment - self._measured_at, moment
        return passed if passed > STOPPED_AFTER else 0.0


class WorkerProcess:
    """One worker process, and this end of the channel to it.

    Args:
        command: the command that starts the process.
        environment: variables in addition to those of this process.

    Attributes:
        instance_id: the instance id that the process has sent with `hello`; empty before.
        holds_suspect: True if the process holds an execution whose worker was lost before.
        done: the number of assigned executions that the process has finished.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._end, theirs = socket.socketpair()
        with theirs:
            # Start a session, so that the process gets no Ctrl-C but what the supervisor forwards.
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
        """The exit code of the process, or the negative number of the signal that killed it; None while it runs."""
        return self._process.poll()

    def hear(self) -> bool:
        """Read the messages of the process; return False if it has closed the channel."""
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
        """Send a message to the process; return True if it could be sent."""
        try:
            self._end.sendall(message.encode() + b"\n")
        except OSError:
            return False
        return True

    def assign(self, execution: str) -> bool:
        """Assign an execution to the process; return True if it could be sent.

        An execution may be larger than the buffer of the socket, so this call waits up to `ASSIGN_WITHIN` seconds.
        """
        self._end.settimeout(ASSIGN_WITHIN)
        given = self.tell(f"run {execution}")
        self._end.setblocking(False)
        return given

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a message and read it; return False if the channel is closed."""
        select.select([self], [], [], timeout)
        return self.hear()

    def stop(self, *, hurry: bool) -> None:
        """Tell the process to stop, over the channel, because a service manager may signal all processes by itself.

        Args:
            hurry: stop without waiting for handlers.
        """
        if not (self.instance_id and self.tell("hurry" if hurry else "stop")):
            self.signal(signal.SIGTERM)

    def silent(self) -> bool:
        """Return True if the process was silent until its leases expired, or has not started in time."""
        return time.monotonic() - self._heard_at > self._silence

    def join(self) -> None:
        """Wait for the end of a process that has closed its channel; kill it if it does not end by itself."""
        try:
            self._process.wait(ASSIGN_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill("does not end by itself; it is killed")
            self._process.wait()

    def ignore_silence(self, seconds: float) -> None:
        """Subtract the `seconds` for which this process was stopped itself from the silence of the process."""
        self._heard_at += seconds

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self, reason: str) -> None:
        """Send SIGKILL to the process once, and log the reason."""
        if not self._killed:
            self._killed = True
            log.error("The worker process %s %s.", self.pid, reason)
            self.signal(signal.SIGKILL)

    def close(self) -> None:
        self._end.close()


def describe_ending(code: int) -> str:
    """Describe how a process ended, from its exit code or the negative number of its signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
