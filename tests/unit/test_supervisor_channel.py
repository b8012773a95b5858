"""The line between a supervisor and its processes."""

from __future__ import annotations

import os
import queue
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flowfabric_worker._runtime.supervisor_channel import CHANNEL_VARIABLE, SupervisorChannel, socket_from_environment
from flowfabric_worker._runtime.worker_process import WorkerProcess
from tests.support.servers import wait_until

# Says hello, and then what it hears, until the end of its line.
_ECHO = """
import os, socket
line = socket.socket(fileno=int(os.environ["FLOWFABRIC_SUPERVISOR_CHANNEL"]))
line.sendall(b"hello an-instance 60.0\\n")
while heard := line.recv(100):
    open(NOTE, "ab").write(heard)
"""
# Notes which sockets it was given.
_SOCKETS = """
import os, stat, time
given = []
for number in os.listdir("/dev/fd"):
    try:
        status = os.fstat(int(number))
    except OSError:
        continue
    if stat.S_ISSOCK(status.st_mode):
        given.append(str(status.st_ino))
print(*given, file=open(NOTE, "a"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], WorkerProcess]]:
    """Start a program as a child; `NOTE` in it is the file `note`."""
    started: list[WorkerProcess] = []

    def start(program: str) -> WorkerProcess:
        child = WorkerProcess([sys.executable, "-S", "-c", program.replace("NOTE", repr(str(tmp_path / "note")))])
        started.append(child)
        return child

    yield start
    for child in started:
        child.signal(9)
        wait_until(lambda child=child: child.exit_code is not None, "it is gone")
        child.close()


def test_a_child_is_known_by_what_it_says_and_hears_what_it_is_told(
    start: Callable[[str], WorkerProcess], tmp_path: Path
) -> None:
    child = start(_ECHO)
    wait_until(lambda: child.hear() and child.instance_id, "it has said hello")

    assert child.instance_id == "an-instance"
    assert not child.silent()
    assert child.tell("died another killed by SIGKILL")
    child.stop(hurry=False)
    child.stop(hurry=True)
    said = b"died another killed by SIGKILL\nstop\nhurry\n"
    wait_until(lambda: (tmp_path / "note").exists() and (tmp_path / "note").read_bytes() == said, "it has heard all")


def test_the_end_of_a_child_ends_its_line_and_no_other(start: Callable[[str], WorkerProcess]) -> None:
    first, second = start(_ECHO), start(_ECHO)
    wait_until(lambda: first.hear() and first.instance_id, "the first works")
    wait_until(lambda: second.hear() and second.instance_id, "the second works")

    first.signal(9)

    wait_until(lambda: not first.hear(), "the first line has ended")
    assert first.exit_code == -9
    assert not first.tell("died another exit code 1")
    assert second.hear()
    assert second.exit_code is None


def test_a_child_ends_when_its_supervisor_has_closed_the_line(start: Callable[[str], WorkerProcess]) -> None:
    first, second = start(_ECHO), start(_ECHO)
    wait_until(lambda: first.hear() and first.instance_id, "the first works")

    first.close()

    wait_until(lambda: first.exit_code == 0, "the first has ended")
    assert second.exit_code is None


def test_a_child_is_given_its_own_end_of_its_own_line_and_nothing_else(
    start: Callable[[str], WorkerProcess], tmp_path: Path
) -> None:
    for _ in range(3):
        start(_SOCKETS)

    note = tmp_path / "note"
    lines = wait_until(
        lambda: note.exists() and (lines := note.read_text().splitlines()) and len(lines) == 3 and lines, "all noted"
    )
    assert all(len(line.split()) == 1 for line in lines)
    assert len(set(lines)) == 3


def test_a_worker_process_takes_its_channel_from_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    monkeypatch.setenv(CHANNEL_VARIABLE, str(theirs.fileno()))

    line = socket_from_environment()

    assert line is not None
    assert line.fileno() == theirs.detach()
    assert not line.get_inheritable()
    assert CHANNEL_VARIABLE not in os.environ
    assert socket_from_environment() is None
    for end in (ours, line):
        end.close()


def test_a_worker_process_says_hello_and_that_it_lives() -> None:
    ours, theirs = socket.socketpair()
    line = SupervisorChannel(theirs, lambda: None, lambda: None, lambda *_: None)
    line.start("an-instance", 4.0)
    line.beat()
    line.beat()

    assert ours.recv(100) == b"hello an-instance 4.0\n.\n"
    ours.close()


def test_a_worker_process_obeys_its_supervisor_and_stops_without_it() -> None:
    ours, theirs = socket.socketpair()
    heard: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    line = SupervisorChannel(
        theirs, lambda: heard.put(("stop",)), lambda: heard.put(("hurry",)), lambda *told: heard.put(told)
    )
    line.start("an-instance", 4.0)
    # This release ignores words of a later one.
    ours.sendall(b"stop\nsomething new\n\nhurry\ndied another killed by SIGKILL\n")

    assert [heard.get(timeout=10) for _ in range(3)] == [("stop",), ("hurry",), ("another", "killed by SIGKILL")]
    ours.close()
    assert heard.get(timeout=10) == ("stop",)
    # It works on although no supervisor reads the channel.
    line.beat()
