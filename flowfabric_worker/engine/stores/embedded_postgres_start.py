"""Becomes the Postgres server of an embedded store: creates its data if there is none, then runs the server.

The guardian runs this file as a script, by path, in the directory of the store; it needs only the standard library.
Postgres refuses to run as root, so root runs it in a user namespace, in which the same user has another number. The
files and the process belong to root nevertheless, and no other user can reach them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_NEW_USER_NAMESPACE = 0x10000000
# A number that has a name on every system (initdb looks it up), and no files.
_PLAIN_USER = 65534

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    # What is logged is why the server cannot run, and nothing at each start.
    "log_min_messages": "fatal",
}


def main() -> None:
    """Run the server.

    Arguments: the path of the program postgres; the directories of the data, and of data that is being created.
    """
    _, program, data, unfinished = sys.argv
    # The guardian ignores these signals, and a program inherits that.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if os.geteuid() == 0:
        _leave_root()
    if not os.path.isdir(data):
        _create(program, data, unfinished)
    # The lock of the guardian proves that no server runs. Postgres would ask whether the process with the number in
    # these files lives, which is another one after a restart of a container.
    for left in (f"{data}/postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)
    # The server works in the directory of its data, so its socket is one above.
    options = [word for name, value in _OPTIONS.items() for word in ("-c", f"{name}={value}")]
    os.execv(program, [program, "-D", data, "-k", "..", *options])


def _create(program: str, data: str, unfinished: str) -> None:
    """Create the data under another name first, so that a killed creation leaves nothing that looks like data."""
    shutil.rmtree(unfinished, ignore_errors=True)
    initdb = str(Path(program).with_name("initdb"))
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions"]
    done = subprocess.run([initdb, "-D", unfinished, *options], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(1)
    os.rename(unfinished, data)


def _leave_root() -> None:
    """Enter a user namespace in which this user is not root."""
    import ctypes  # Only root needs it.

    group = os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare") or libc.unshare(_NEW_USER_NAMESPACE):
        sys.exit("Postgres does not run as root, and this system offers root no user namespace: use another user.")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_PLAIN_USER} 0 1"),
        ("gid_map", f"{_PLAIN_USER} {group} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
