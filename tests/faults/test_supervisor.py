"""A supervisor and its processes: killed, told to stop, and kept apart, at any moment."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowfabric_worker.cli.exit_codes import ExitCode
from flowfabric_worker.engine.types.states import PublicState
from tests.support import poisoned_app
from tests.support.crew import APP, Crew, await_workers, ends_of, opened_crew, processes_of, runs_now
from tests.support.servers import PATIENCE, ValkeyServer, wait_until
from tests.support.site import ROOT, seeds

COUNT = 200
WITHIN = 40.0
# Work of a killed process is claimed again after this lease.
LEASE = "2s"
# With leases of a minute, only work that is handed back reaches another worker in time.
LONG_LEASE = "60s"


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with opened_crew(f"embedded://{tmp_path}/store", tmp_path) as crew:
        yield crew


# Processes that die


def test_a_killed_process_is_replaced_and_its_running_work_runs_again_once(crew: Crew) -> None:
    supervisor = crew.start(lease=LEASE)
    runs = crew.submit_counts(3 * COUNT)
    (doomed, *_) = wait_until(lambda: crew.pids("begin", 40), "they are in the middle of it")
    (instance,) = (each for each in crew.instances() if f"-{doomed}-" in each)
    os.kill(doomed, signal.SIGKILL)
    wait_until(lambda: not runs_now(doomed), "it is dead")
    held = crew.held_by(instance, runs)

    crew.assert_all_ended_well(runs, WITHIN)
    infos = [crew.info_of(run) for run in runs]
    reclaimed = {number for number, info in enumerate(infos) if info.reclaim_count}
    assert reclaimed == held
    assert held
    begun = crew.begun()
    assert {number for number, times in begun.items() if times > 1} <= held
    for number in held:
        assert [past.error for past in infos[number].past_attempts] == [f"worker {instance}: killed by SIGKILL"]
    await_workers(supervisor, 3)
    assert ends_of(supervisor) == ["killed by SIGKILL"]
    assert len(supervisor.children()) == 2
    assert doomed not in supervisor.children()


def test_processes_that_died_leave_no_zombies_behind(crew: Crew) -> None:
    supervisor = crew.start("--threads", 1)

    for pid in supervisor.children():
        os.kill(pid, signal.SIGKILL)
    await_workers(supervisor, 4)

    states = processes_of(supervisor)
    assert len(states) == 2
    assert not [state for state in states.values() if state.startswith("Z")]


def test_a_process_that_stops_in_order_is_replaced_and_the_others_work_on(crew: Crew) -> None:
    supervisor = crew.start()
    first, second = sorted(supervisor.children())

    os.kill(first, signal.SIGTERM)

    await_workers(supervisor, 3)
    assert second in supervisor.children()
    assert ends_of(supervisor) == ["exit code 0"]


def test_each_start_of_a_process_has_an_identity_of_its_own(crew: Crew) -> None:
    one, other = crew.start("--threads", 1), crew.start("--threads", 1)

    ids = set(crew.instances())
    assert len(ids) == 4
    for pid in one.children():
        os.kill(pid, signal.SIGKILL)
    await_workers(one, 4)
    wait_until(lambda: len(set(crew.instances()) - ids) == 2, "the successors are others")
    # Both call themselves the same, and each holds what it has claimed itself.
    runs = crew.submit_counts(COUNT)
    crew.assert_all_ended_well(runs, WITHIN)
    assert not any(crew.info_of(run).reclaim_count for run in runs)
    assert {each.partition("-")[0] for each in crew.instances()} == {"poisoned"}
    assert not ends_of(other)


# Starts that fail


_RUNNER = """
import os, sys
from flowfabric_worker._runtime.supervisor import Supervisor
before = len(os.listdir("/dev/fd"))
Supervisor([sys.executable, "-S", "-c", sys.argv[1]], int(sys.argv[2]), 1.0, hopeless=(5,)).run()
sys.exit(len(os.listdir("/dev/fd")) - before)
"""
# A process that says when it begins, may say hello, and ends at once.
_SHORT_LIVED = """
import os, socket, time
print(time.monotonic(), file=open(NOTE, "a"))
number = len(open(NOTE).readlines()) - 1
hello, code = ENDS[min(number, len(ENDS) - 1)]
if hello:
    line = socket.socket(fileno=int(os.environ["FLOWFABRIC_SUPERVISOR_CHANNEL"]))
    line.sendall(b"hello an-instance 60.0\\n" + SAID)
if code is None:
    line.recv(100)
    code = 0
os._exit(code)
"""


def starts_of(
    folder: Path, count: int, *ends: tuple[bool, int | None], slots: int = 1, said: bytes = b""
) -> list[float]:
    """Return when a supervisor started processes that end at once, the first `count` times; it leaves no file open.

    Args:
        ends: whether each of them says hello, and its exit code; the last one stands for all that follow. One without
            an exit code goes on.
        slots: how many processes it keeps.
        said: what each says after its hello.
    """
    note = folder / "starts"
    program = _SHORT_LIVED.replace("NOTE", repr(str(note))).replace("ENDS", repr(ends)).replace("SAID", repr(said))

    def moments() -> list[float]:
        return [float(line) for line in note.read_text().split()] if note.exists() else []

    process = subprocess.Popen([sys.executable, "-c", _RUNNER, program, str(slots)], cwd=ROOT)
    try:
        wait_until(lambda: len(moments()) >= count, "it was started so often", WITHIN)
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    return moments()[:count]


@pytest.mark.parametrize("end", [(True, 1), (False, 0), (False, 3)])
def test_a_process_that_dies_at_once_is_started_again_after_growing_pauses(
    tmp_path: Path, end: tuple[bool, int]
) -> None:
    moments = starts_of(tmp_path, 5, end)

    for number, (sooner, later) in enumerate(itertools.pairwise(moments)):
        assert later - sooner >= 0.1 * 2**number


def test_a_process_that_stops_in_order_is_started_again_at_once(tmp_path: Path) -> None:
    # With growing pauses this would take minutes.
    starts_of(tmp_path, 16, (True, 7))


def test_processes_that_die_in_one_slot_delay_no_other_slot(tmp_path: Path) -> None:
    # Eight deaths in four slots: two or three in each, and then all four live.
    moments = starts_of(tmp_path, 12, *[(True, 1)] * 8, (True, None), slots=4)

    assert moments[11] - moments[0] < 15


def test_a_process_that_dies_with_a_suspect_restarts_without_back_off(tmp_path: Path) -> None:
    moments = starts_of(tmp_path, 12, (True, 1), said=b". suspect\n")

    assert moments[11] - moments[0] < 20


def test_processes_that_were_stopped_with_their_supervisor_live_on(crew: Crew) -> None:
    supervisor = crew.start(lease="2s")
    children = supervisor.children()
    everything = [supervisor.popen.pid, *children]
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    # More than the two leases after which silence means death.
    time.sleep(5)
    os.kill(supervisor.popen.pid, signal.SIGCONT)
    time.sleep(0.5)
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    runs = crew.submit_counts(COUNT)
    crew.assert_all_ended_well(runs, WITHIN)

    assert "silent for too long" not in supervisor.log
    assert not ends_of(supervisor), supervisor.log
    assert supervisor.children() == children


def test_a_start_that_fails_does_not_end_the_others_once_a_process_worked(tmp_path: Path) -> None:
    assert len(starts_of(tmp_path, 4, (True, 1), (False, 5))) == 4


@pytest.mark.parametrize("app", ["tests.faults.nowhere:worker", "tests.support.poisoned_app:without_tasks"])
def test_an_application_that_cannot_run_ends_the_supervisor_at_once(crew: Crew, app: str) -> None:
    supervisor = crew.launch(app=app)

    assert supervisor.wait() == ExitCode.APP
    # Others may have been on their way; none was started again.
    assert supervisor.log.count("Started the worker process") == 2


def test_a_store_that_refuses_ends_the_supervisor_at_once(crew: Crew, server: ValkeyServer) -> None:
    server.client().config_set("requirepass", "locked")
    supervisor = crew.launch("--url", server.url)

    assert supervisor.wait() == ExitCode.REFUSED
    assert supervisor.log.count("Started the worker process") == 2


def test_a_store_that_is_away_is_waited_for(crew: Crew, server: ValkeyServer) -> None:
    server.kill()
    supervisor = crew.launch("--url", server.url)
    wait_until(lambda: "exit code 3" in ends_of(supervisor), "it could not be reached", WITHIN)
    server.start()

    await_workers(supervisor, 2)
    supervisor.signal(signal.SIGTERM)
    assert supervisor.wait() == 0


# Stopping


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Provide a crew with one process that lives on, whatever becomes of others."""
    folder = tmp_path_factory.mktemp("busy")
    with opened_crew(f"embedded://{folder}/store", folder) as crew:
        crew.start(processes=1, lease=LONG_LEASE)
        yield crew


@pytest.mark.parametrize("seed", seeds(10))
def test_told_to_stop_at_any_moment_nothing_is_lost_and_nothing_runs_twice(busy: Crew, seed: int) -> None:
    first = seed * COUNT
    told = busy.start(lease=LONG_LEASE)
    runs = busy.submit_counts(COUNT, first)
    wait_until(lambda: busy.pids("begin", first), "they have begun")
    time.sleep(random.Random(seed).uniform(0.0, 0.3))
    told.signal(signal.SIGTERM)

    assert told.wait() == 0
    # The other worker gets handed-back work at once, not after a lease of a minute.
    busy.assert_all_ended_well(runs, PATIENCE, first)
    begun = busy.begun()
    assert {begun[number] for number in range(first, first + COUNT)} == {1}
    assert not any(busy.info_of(run).reclaim_count for run in runs)


@pytest.mark.parametrize("seed", seeds(5))
def test_a_supervisor_stopped_during_start_ends_in_order(crew: Crew, seed: int) -> None:
    supervisor = crew.launch()
    supervisor.await_log("Started the worker process")
    time.sleep(random.Random(seed).uniform(0.0, 0.7))
    supervisor.signal(signal.SIGTERM)

    assert supervisor.wait() == 0
    assert not ends_of(supervisor)


def test_a_second_signal_hands_back_what_runs_at_once(crew: Crew) -> None:
    supervisor = crew.start("--grace", "60s", lease=LONG_LEASE)
    runs = poisoned_app.last.submit_many((number, 60.0) for number in range(8))
    wait_until(lambda: sum(crew.begun().values()) == 8, "all have begun")
    # Two of the same kind that come close together may reach a process as one.
    supervisor.signal(signal.SIGTERM)
    supervisor.signal(signal.SIGINT)

    assert supervisor.wait() == 0
    assert {run.state() for run in runs} == {PublicState.WAITING}
    assert not any(crew.info_of(run).reclaim_count for run in runs)


def test_a_storm_of_signals_ends_it_in_order(crew: Crew) -> None:
    supervisor = crew.start("--grace", "60s", lease=LONG_LEASE)
    run = poisoned_app.last.submit(0, 60.0)
    wait_until(lambda: crew.pids("begin", 0), "it has begun")

    def keep_signalling() -> bool:
        supervisor.signal(signal.SIGTERM)
        return supervisor.popen.poll() is not None

    wait_until(keep_signalling, "it has ended")
    assert supervisor.wait() == 0
    assert run.state() is PublicState.WAITING


def test_a_signal_to_every_process_of_a_service_counts_once(crew: Crew) -> None:
    supervisor = crew.start(lease=LONG_LEASE)
    run = poisoned_app.last.submit(7, 1.0)
    wait_until(lambda: crew.pids("begin", 7), "it has begun")
    for pid in (supervisor.popen.pid, *supervisor.children()):
        os.kill(pid, signal.SIGTERM)

    assert supervisor.wait() == 0
    assert run.result(0.001) == 7
    assert len(crew.pids("begin", 7)) == 1


def test_sigusr1_prints_the_thread_stacks_of_every_process(crew: Crew) -> None:
    supervisor = crew.start("--threads", 5)
    supervisor.signal(signal.SIGUSR1)

    wait_until(lambda: supervisor.log.count("_runtime/handler_pool.py") >= 10, "the handlers of both are shown")
    assert supervisor.log.count("_runtime/claimer.py") >= 2
    assert len(supervisor.children()) == 2
    assert not ends_of(supervisor)


def test_ctrl_c_in_a_terminal_counts_once(crew: Crew) -> None:
    ours, theirs = pty.openpty()
    log = crew.folder / "terminal.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flowfabric_worker", "run", APP, "--processes", "2", "--lease", LONG_LEASE],
            cwd=ROOT,
            stdin=theirs,
            stdout=output,
            stderr=output,
            env={**os.environ, "FLOWFABRIC_URL": crew.url, poisoned_app.JOURNAL_VARIABLE: str(crew.journal)},
            start_new_session=True,
            # The terminal is the session's own, and its foreground is this process and those that it starts.
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        )
    os.close(theirs)
    try:
        run = poisoned_app.last.submit(7, 1.0)
        wait_until(lambda: crew.pids("begin", 7), "it has begun")
        os.write(ours, b"\x03")

        assert process.wait(PATIENCE) == 0
        assert run.result(0.001) == 7
        assert len(crew.pids("begin", 7)) == 1
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_processes_of_a_killed_supervisor_stop_in_order(busy: Crew) -> None:
    first = 1_000_000
    supervisor = busy.start(lease=LONG_LEASE)
    processes = supervisor.children()
    runs = busy.submit_counts(COUNT, first)
    wait_until(lambda: busy.pids("begin", first), "they have begun")
    supervisor.end()

    busy.assert_all_ended_well(runs, PATIENCE, first)
    begun = busy.begun()
    assert {begun[number] for number in range(first, first + COUNT)} == {1}
    assert not any(busy.info_of(run).reclaim_count for run in runs)
    wait_until(lambda: not any(map(runs_now, processes)), "none is left behind")
    assert supervisor.log.count(" stopped; it handed back ") == 2
