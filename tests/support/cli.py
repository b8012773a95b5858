"""How the tests drive the command line: in this process, and as real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import attrs
import click
from click.testing import CliRunner
from redis import Redis

from flowfabric_worker import Runtime, Worker, WorkerSettings
from flowfabric_worker.cli import main
from flowfabric_worker.client import Client
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.states import PublicState
from tests.support import cli_app as application
from tests.support.dumps import dump_of
from tests.support.leaks import LEAKS
from tests.support.servers import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
APP = "tests.support.cli_app:worker"
# The most characters of a log that the report of a failed test shows.
MOST_LOGGED: Final = 20_000
UNKNOWN_ID = "0-01890000-0000-7000-8000-000000000000"


def _command(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None, name
    return command


# Every command by its name, in the order of the help.
COMMANDS: Final = {name: _command(name) for name in main.list_commands(click.Context(main))}


@attrs.frozen(kw_only=True)
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it printed."""
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """The JSON documents that it printed, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


def cli(*arguments: object, stdin: str | bytes | None = None) -> Ran:
    """Run a command in this process."""
    words = [str(argument) for argument in arguments]
    # A command that stops ignores further signals, which processes that a later test starts would inherit.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = CliRunner().invoke(main, words, input=stdin, prog_name="flowfabric-worker")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    LEAKS.note(f"the output of {' '.join(words[:2])}", result.output)
    return Ran(code=result.exit_code, out=result.stdout, err=result.stderr)


def ok(*arguments: object, stdin: str | bytes | None = None) -> Ran:
    """Run a command that has to go well."""
    ran = cli(*arguments, stdin=stdin)
    assert ran.code == 0, ran
    return ran


def submitted(*arguments: object) -> str:
    """Return the id of a new execution of a task that need not be published."""
    return ok("submit", "--force", *arguments).out.strip()


@contextmanager
def serving(url: str) -> Iterator[Worker]:
    """Provide the application's worker in this process, for the length of a block."""
    application.worker.url = url
    runtime = Runtime(application.worker, WorkerSettings(threads=2))
    runtime.start()
    try:
        yield application.worker
    finally:
        runtime.stop()
        application.worker.close()
        application.worker.url = None


def on_terminal(*arguments: str, url: str, **environment: str) -> str:
    """Return what a command that has to go well prints on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowfabric_worker", *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "FLOWFABRIC_URL": url, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    printed = b""
    while select.select([ours], [], [], PATIENCE)[0]:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # on Linux the end of a terminal is an error
            break
    os.close(ours)
    assert process.wait(PATIENCE) == 0, printed
    return printed.decode()


def on_terminal_until(text: str, *arguments: str, url: str) -> str:
    """Return what a command prints on a terminal of 80 columns until it has printed a text; then it is told to stop."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flowfabric_worker", *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "FLOWFABRIC_URL": url, "COLUMNS": "80"},
    )
    os.close(theirs)
    printed = b""
    told = False
    while select.select([ours], [], [], PATIENCE)[0]:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # on Linux the end of a terminal is an error
            break
        if text.encode() in printed and not told:
            told = True
            process.send_signal(signal.SIGTERM)
    os.close(ours)
    assert process.wait(PATIENCE) == 0, printed
    return printed.decode()


def without_escapes(text: str) -> str:
    """Return a text without what steers a terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def everything(engine: Engine) -> dict[str, Any]:
    """Return what the servers of a store hold, under whichever prefix."""
    store = engine.store
    if store.label == "postgresql":
        from tests.support.postgres_view import PostgresView

        schemas = PostgresView(engine).rows("SELECT nspname FROM pg_catalog.pg_namespace ORDER BY nspname")
        return {"schemas": schemas, "own": dump_of(engine)}
    assert isinstance(store, ValkeyStore)
    clients = [Redis(connection_pool=pool) for pool in store.primaries()]
    return {
        "keys": sorted(key for client in clients for key in client.scan_iter(count=1000)),
        "own": dump_of(engine),
    }


class Process:
    """A command as a process of its own."""

    _started: ClassVar[weakref.WeakSet[Process]] = weakref.WeakSet()

    def __init__(self, *arguments: object, log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "flowfabric_worker", *map(str, arguments)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
            )
        self._started.add(self)

    @classmethod
    def explain(cls) -> Iterator[tuple[str, str]]:
        """Abort the processes that still run after a failed test; yield a title and the log with stacks of each."""
        for process in cls._started:
            if process.popen.poll() is None:
                # A forked child that hangs is aborted first, and prints into the same log.
                for pid in (*process.children(), process.popen.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGABRT)
                process.wait()
                yield f"log of process {process.popen.pid}", process.log[-MOST_LOGGED:]

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return its exit code."""
        return self.popen.wait(timeout)

    def await_log(self, text: str) -> None:
        """Wait until it has printed something."""
        wait_until(lambda: text in self.log or self.popen.poll() is not None, f"{text!r} is printed")
        assert text in self.log

    def children(self) -> set[int]:
        """Return the processes that it started and that live."""
        table = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
        return {pid for pid, parent in pairs if parent == self.popen.pid}

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.popen.poll() is None:
            self.signal(signal.SIGKILL)
            self.wait()
        LEAKS.note("the output of a process", self.log)


def await_state(client: Client, execution_id: str, state: PublicState) -> None:
    """Wait until an execution is in a state."""
    wait_until(lambda: client.run(execution_id).state() is state, f"{execution_id} is {state}")


def lives(pid: int) -> bool:
    """Return True if a process lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
