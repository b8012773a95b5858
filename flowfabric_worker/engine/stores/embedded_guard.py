"""The guardian of an embedded server, a small process that starts, restarts and stops the server.

It runs as a script, by path, in the directory that it guards, and needs only the standard library. The directory has
the socket, the log and the data of the server, whose names its class tells (`Valkey`, `Postgres`), and these files:

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

START_LOCK = "start.lock"
USERS_LOCK = "users.lock"
GUARD_LOCK = "guard.lock"
SERVER_LOCK = "server.lock"

# All times are in seconds.
LOOK_EVERY = 0.2
STOP_TIMEOUT = 5.0
LONGEST_PAUSE = 5.0
STEADY_AFTER = 60.0


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


def ask(socket_path: Path | str, message: bytes, timeout: float = 1.0) -> bytes:
    """Send one message to a server, and return the beginning of its reply; empty if the server hangs up.

    Raises:
        OSError: no server listens, or no reply came within `timeout` seconds.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(str(socket_path))
        connection.sendall(message)
        return connection.recv(256)


class Valkey:
    """How a Valkey server of the current directory is started, asked and stopped."""

    title = "Valkey"
    scheme = "embedded"
    socket = "valkey.sock"
    log = "valkey.log"
    data = "appendonlydir"
    files = (socket, log, data)
    greeting = b"PING\r\n"
    welcome = b"+PONG"
    # Seconds that the first start may take.
    start_timeout = 10.0
    _OPTIONS = {
        "port": "0",
        "unixsocket": socket,
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "logfile": log,
        "loglevel": "warning",
        "daemonize": "no",
    }

    @classmethod
    def command(cls, binary: str) -> list[str]:
        """Return the command that runs the server."""
        return [binary, *(word for name, value in cls._OPTIONS.items() for word in (f"--{name}", value))]

    @classmethod
    def look_after(cls) -> None:
        """Do nothing: a Valkey server that was told to stop stops."""

    @classmethod
    def stop(cls) -> None:
        """Tell the server to stop."""
        # NOSAVE stops even a function that still runs for a process that has ended; the data is flushed anyway.
        with contextlib.suppress(OSError):
            ask(cls.socket, b"SHUTDOWN NOSAVE FORCE\r\n", STOP_TIMEOUT)


class Postgres:
    """How a Postgres server of the current directory is started, asked and stopped."""

    title = "Postgres"
    scheme = "embedded+postgresql"
    socket = ".s.PGSQL.5432"
    log = "postgres.log"
    data = "postgres"
    # A directory that is being created has another name, so that the data is whole or not there.
    unfinished = "postgres.new"
    files = (socket, f"{socket}.lock", log, data, unfinished)
    # The first message of a session: its length, the version 3.0 of the protocol, and who connects.
    _SESSION = b"\0\3\0\0user\0postgres\0database\0postgres\0\0"
    greeting = (len(_SESSION) + 4).to_bytes(4, "big") + _SESSION
    welcome = b"R"
    # The first start creates the data.
    start_timeout = 60.0
    _PID_FILE = f"{data}/postmaster.pid"

    @classmethod
    def command(cls, binary: str) -> list[str]:
        """Return the command that creates the data if there is none, and runs the server."""
        script = Path(__file__).with_name("embedded_postgres_start.py")
        return [sys.executable, "-I", "-S", str(script), binary, cls.data, cls.unfinished]

    @classmethod
    def look_after(cls) -> None:
        """Stop a server at once that was terminated and otherwise waits until every connection is closed."""
        with contextlib.suppress(FileNotFoundError):
            if "stopping" in Path(cls._PID_FILE).read_text("utf-8", "replace"):
                cls.stop()

    @classmethod
    def stop(cls) -> None:
        """Tell the server to end its connections and to stop."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int(Path(cls._PID_FILE).read_text("utf-8", "replace").partition("\n")[0]), signal.SIGINT)


Kind = type[Valkey] | type[Postgres]
KINDS: dict[str, Kind] = {kind.scheme: kind for kind in (Valkey, Postgres)}
NAMES = (START_LOCK, USERS_LOCK, GUARD_LOCK, SERVER_LOCK, *Valkey.files, *Postgres.files)


def answers(kind: Kind, socket_path: Path | str) -> bool:
    """Return True if a server of a kind listens there, has loaded its data and answers.

    Raises:
        OSError: this user may not call the server.
    """
    try:
        return ask(socket_path, kind.greeting).startswith(kind.welcome)
    except (ConnectionError, FileNotFoundError, BlockingIOError, TimeoutError):
        return False


class Guardian:
    """Keeps the server of the current directory running while a process uses it.

    Paths are relative to the current directory on purpose: if the directory is removed and created again under the same
    path, this guardian and its server cannot affect the new one.
    """

    def __init__(self, kind: Kind, binary: str, guard_lock: int) -> None:
        self._kind = kind
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
        self._kind.stop()
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
            self._answered = self._answered or answers(self._kind, self._kind.socket)
            self._kind.look_after()
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
        # Only the server, which inherits the locked file, keeps it open, so that the lock is held while the server
        # runs.
        with open_private(SERVER_LOCK) as lock:
            take(lock)
            self._server = subprocess.Popen(self._kind.command(self._binary), pass_fds=[lock.fileno()])
        self._started_at = time.monotonic()


def main() -> None:
    """Run in the background as the guardian.

    Arguments: the directory, which is shown by `ps`; the scheme of the kind of server; the server's binary; the
    inherited descriptor of guard.lock.
    """
    _, _, scheme, binary, guard_lock = sys.argv
    # Ignore signals, so that the guardian ends only when no process uses the server: a service manager that signals all
    # processes of a worker must not stop the store before the worker has sent its results.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Let the started process end here, so that its parent has no child to wait for.
    if os.fork():
        os._exit(0)
    Guardian(KINDS[scheme], binary, int(guard_lock)).run()


if __name__ == "__main__":
    main()
