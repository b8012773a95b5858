"""Worker processes of a peer: starting, stopping and killing them, and measuring their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from benchmarks.environments import ROOT

_STOP_WITHIN = 30.0
_KIBIBYTE = 1024


@attrs.frozen(kw_only=True)
class WorkerProcess:
    """One worker: the process that was started, and all that it started itself, which share its session.

    A peer may keep its threads in children, and move these to groups of their own.
    """

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """End all of it with SIGKILL, as when a container dies; return when nothing of it is left."""
        # A process that started while the others died is found by the second look.
        while members := self._members():
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.001)
        self.process.wait()

    def terminate(self) -> float:
        """Send SIGTERM to the process that was started; return how many seconds it took to end, 30 at most."""
        told = time.monotonic()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_WITHIN)
        took = time.monotonic() - told
        self.kill()
        return took

    def resident(self) -> int:
        """Return the resident memory of all its processes, in bytes."""
        return sum(resident_in(status) for status in map(_status, self._members()))

    def _members(self) -> list[int]:
        """Return its living processes."""
        return [pid for pid in _all_pids() if _session(pid) == self.pid and not is_zombie(_status(pid))]


@contextlib.contextmanager
def started(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[WorkerProcess]:
    """Run a worker, which is killed at the end of the block at the latest; what it prints is added to `log`."""
    with log.open("ab") as output:
        worker = WorkerProcess(
            process=subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        )
    try:
        yield worker
    finally:
        worker.kill()


def resident_in(status: str) -> int:
    """Return the resident bytes that a /proc/PID/status tells; 0 for a process that is gone."""
    for line in status.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * _KIBIBYTE
    return 0


def is_zombie(status: str) -> bool:
    """Return True if a /proc/PID/status tells of a process that has ended, or of none."""
    return not status or "\nState:\tZ" in status


def _status(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/status").read_text("utf-8")
    return ""


def _session(pid: int) -> int | None:
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
