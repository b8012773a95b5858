"""A PgBouncer before a Postgres server, whose program $FLOWFABRIC_TEST_PGBOUNCER names."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support.servers import wait_until

PROGRAM = os.environ.get("FLOWFABRIC_TEST_PGBOUNCER")
# PgBouncer refuses to run as root, so root runs it as this user.
_USER = "nobody"  # lint-english: quoted
_SETTINGS = """
[databases]
postgres = host={server} dbname=postgres user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 5432
auth_type = any
pool_mode = {mode}
default_pool_size = {sessions}
max_client_conn = 100
logfile = {folder}/log
pidfile = {folder}/pid
"""
# In session mode, each connection of a client takes a session.
_SESSIONS = {"transaction": 3, "session": 20}


class PgBouncer:
    """One pooler, in the mode "session" or "transaction"."""

    def __init__(self, server: Path, mode: str) -> None:
        assert PROGRAM is not None, "name the program by FLOWFABRIC_TEST_PGBOUNCER"
        self.folder = Path(tempfile.mkdtemp(prefix="ff-"))
        settings = self.folder / "pgbouncer.ini"
        settings.write_text(_SETTINGS.format(server=server, folder=self.folder, mode=mode, sessions=_SESSIONS[mode]))
        as_user: dict[str, str] = {}
        if os.geteuid() == 0:
            shutil.chown(self.folder, _USER)
            as_user = {"user": _USER}
        self._process = subprocess.Popen(
            [PROGRAM, "-q", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user
        )
        wait_until(self._answers, "the pooler answers")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.folder / ".s.PGSQL.5432"))
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"
