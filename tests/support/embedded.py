"""What the tests of the embedded server share; run as a module it is a process that uses such a server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError
from redis.retry import Retry

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.stores.embedded_guard import (
    GUARD_LOCK,
    SERVER_LOCK,
    Postgres,
    open_private,
    release,
    take,
)
from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer
from tests.support.servers import PATIENCE

ROOT = Path(__file__).parents[2]


def client(server: EmbeddedServer) -> Redis:
    """Return a client of the server that never repeats a command by itself."""
    return Redis(
        unix_socket_path=str(server.socket_path),
        socket_timeout=5,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),
    )


def eventually(condition: Callable[[], object], within: float = PATIENCE) -> None:
    """Return when `condition` holds; fail after `within` seconds. A lost connection counts as not yet."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(LostConnectionError):
            if condition():
                return
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def server_pids(directory: Path) -> list[int]:
    """Return the living servers that work in the directory."""
    return _pids_in(directory, b"unixsocket") + _pids_in(directory / Postgres.data, b"listen_addresses")


def guardian_pids(directory: Path) -> list[int]:
    """Return the living guardians of the directory."""
    return _pids_in(directory, b"embedded_guard.py")


def kill_guardian(directory: Path) -> int:
    """Kill the directory's guardian, wait until the kernel has released its lock, and return its process id."""
    (pid,) = guardian_pids(directory)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: _is_free(directory / GUARD_LOCK))
    return pid


def _is_free(path: Path) -> bool:
    """Return True if no process holds the lock: a killed process holds its locks for a moment after its end is seen."""
    with open_private(path) as lock:
        free = take(lock)
        if free:
            release(lock)
        return free


def let_guardian_look(directory: Path) -> None:
    """Return when the directory's guardian has looked several times at what it guards."""
    (pid,) = guardian_pids(directory)
    seen = _times_slept(pid)
    eventually(lambda: _times_slept(pid) >= seen + 3)


def start_process(*arguments: object) -> subprocess.Popen[str]:
    """Start this module in a session of its own, with pipes to talk to it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.embedded", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that the process prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _times_slept(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def _pids_in(directory: Path, word: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
            if entry.name.isdigit() and word in (entry / "cmdline").read_bytes():
                place = os.readlink(entry / "cwd").removesuffix(" (deleted)")
                if place == str(directory):
                    found.append(int(entry.name))
    return found


def _stay(directory: str) -> None:
    """Join, says the server's run id, and stays a member until it is killed or its input ends."""
    server = EmbeddedServer.join(directory)
    print(client(server).info("server")["run_id"], flush=True)  # noqa: T201 - it is read by the test
    sys.stdin.read()


def _visit(directory: str, times: int) -> None:
    """Join, counts one up and leave again, many times."""
    for _ in range(times):
        server = EmbeddedServer.join(directory)
        client(server).incr("visits")
        server.leave()


def nothing_runs(directory: Path) -> bool:
    """Return True if neither a server nor a guardian of the directory runs."""
    if server_pids(directory) or guardian_pids(directory):
        return False
    locks = [directory / name for name in (GUARD_LOCK, SERVER_LOCK)]
    return all(_is_free(lock) for lock in locks if lock.exists() and not lock.is_symlink())


def refusal(directory: Path | str, timeout: float = 10.0) -> str:
    """Return the message with which joining the directory's server is refused."""
    with pytest.raises(UnavailableError) as caught:
        EmbeddedServer.join(directory, timeout=timeout)
    assert caught.value.code == "embedded_unavailable"
    assert caught.value.op == "embedded"
    return str(caught.value)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stay", directory]:
            _stay(directory)
        case ["visit", directory, times]:
            _visit(directory, int(times))
