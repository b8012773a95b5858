"""The guardian of an embedded server, a small process that starts, restarts and stops the server.

It runs as a script, by path, in the directory that it guards, and needs only the standard library. The directory has:

    valkey.sock      the socket of the server
    valkey.log       the log of the server and its guardian
    appendonlydir/   the data
    start.lock       held while a process decides to start or to stop the server
    users.lock       held, shared, by every process that uses the server
    guard.lock       held by a running guardian
    server.lock      held by a running server

The locks are `flock`s, which the kernel releases however their holder ends: a free lock proves that its holder has
ended. A process that needs both start.lock and users.lock takes start.lock first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

SOCKET = "valkey.sock"
LOG = "valkey.log"
START_LOCK = "start.lock"
USERS_LOCK = "users.lock"
GUARD_LOCK = "guard.lock"
SERVER_LOCK = "server.lock"
DATA = "appendonlydir"
NAMES = (SOCKET, LOG, START_LOCK, USERS_LOCK, GUARD_LOCK, SERVER_LOCK, DATA)

# All times are in seconds.
LOOK_EVERY = 0.2
STOP_TIMEOUT = 5.0
LONGEST_PAUSE = 5.0
STEADY_AFTER = 60.0

SERVER_OPTIONS = {
    "port": "0",
    "unixsocket": SOCKET,
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "logfile": LOG,
    "loglevel": "warning",
    "daemonize": "no",
}


def open_private(path: Path | str) -> FileIO:
    """Open a file for appending, and create it for this user alone if it does not exist; programs do not inherit it.

    Raises:
        OSError: it cannot be opened, or its path is a link.
    """
    return FileIO(path, "a", opener=_open_no_link)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, mode=0o600)


def take(lock: FileIO, *, shared: bool = False) -> bool:
    """Take the lock on an open file if it is free; return True if it is taken now."""
    import fcntl  # A platform without fcntl must be able to import this module.

    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release(lock: FileIO) -> None:
    """Release the lock on an open file, even if a forked child has inherited the file."""
    import fcntl  # See take().

    fcntl.flock(lock, fcntl.LOCK_UN)


def ask(socket_path: Path | str, command: bytes, timeout: float = 1.0) -> bytes:
    """Send one command to a server, and return the beginning of its reply; empty if the server hangs up.

    Raises:
        OSError: no server listens, or no reply came within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(socket_path))
        connection.sendall(command + b"\r\n")
        return connection.recv(256)


def answers(socket_path: Path | str) -> bool:
    """Return True if a server listens there, has loaded its data and answers.

    Raises:
        OSError: this user may not call the server.
    """
    try:
        return ask(socket_path, b"PING").startswith(b"+PONG")
    except (ConnectionError, FileNotFoundError, BlockingIOError, TimeoutError):
        return False


class Guardian:
    """Keeps the server of the current directory running while a process uses it.

    Paths are relative to the current directory on purpose: if the directory is removed and created again under the same
    path, this guardian and its server cannot affect the new one.
    """

    def __init__(self, binary: str, guard_lock: int) -> None:
        self._binary = binary
        self._guard_lock = guard_lock
        self._start_lock = open_private(START_LOCK)
        self._users_lock = open_private(USERS_LOCK)
        self._server_lock = open_private(SERVER_LOCK)
        self._server: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause = 0.0
        self._answered = False

    def run(self) -> None:
        """Run until the server was stopped because no process uses it, or cannot be kept running."""
        while not (self._directory_is_gone() or self._stopped_unused() or self._server_refuses()):
            time.sleep(LOOK_EVERY)

    def _directory_is_gone(self) -> bool:
        """Return True if the guarded files were deleted, after killing the server, which no process can reach."""
        if os.fstat(self._guard_lock).st_nlink:
            return False
        if self._server is not None:
            self._server.kill()
        return True

    def _stopped_unused(self) -> bool:
        """Stop the server if no process uses it, and let no process begin to; return True if it was stopped."""
        try:
            return take(self._start_lock) and take(self._users_lock) and self._stop()
        finally:
            release(self._users_lock)
            release(self._start_lock)

    def _stop(self) -> bool:
        # NOSAVE stops even a function that still runs for a process that has ended; the data is flushed anyway.
        with contextlib.suppress(OSError):
            ask(SOCKET, b"SHUTDOWN NOSAVE FORCE", STOP_TIMEOUT)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self._server_lives():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _server_refuses(self) -> bool:
        """Start the server if none runs; return True if it ended without ever answering (its log says why).

        A server that was killed or crashed is started again, after a pause that grows while it keeps crashing.
        """
        if self._server_lives():
            self._answered = self._answered or answers(SOCKET)
            return False
        if self._server is not None:
            if self._server.wait() > 0 and not self._answered:
                return True
            self._pause_after_crash()
        self._start()
        return False

    def _server_lives(self) -> bool:
        if not take(self._server_lock):
            return True
        release(self._server_lock)
        return False

    def _pause_after_crash(self) -> None:
        if time.monotonic() - self._started_at > STEADY_AFTER:
            self._pause = 0.0
        time.sleep(self._pause)
        self._pause = min(2 * self._pause + LOOK_EVERY, LONGEST_PAUSE)

    def _start(self) -> None:
        options = [word for name, value in SERVER_OPTIONS.items() for word in (f"--{name}", value)]
        # Only the server, which inherits the locked file, keeps it open, so that the lock is held while the server
        # runs.
        with open_private(SERVER_LOCK) as lock:
            take(lock)
            self._server = subprocess.Popen([self._binary, *options], pass_fds=[lock.fileno()])
        self._started_at = time.monotonic()


def main() -> None:
    """Run in the background as the guardian.

    Arguments: the directory, which is shown by `ps`; the server's binary; the inherited descriptor of guard.lock.
    """
    _, _, binary, guard_lock = sys.argv
    # Ignore signals, so that the guardian ends only when no process uses the server: a service manager that signals all
    # processes of a worker must not stop the store before the worker has sent its results.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Let the started process end here, so that its parent has no child to wait for.
    if os.fork():
        os._exit(0)
    Guardian(binary, int(guard_lock)).run()


if __name__ == "__main__":
    main()
