"""The memory limit of a worker process: an allocation fails, the process lives on, and one that stays close is worn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowfabric_worker._runtime import memory_limit as memory
from flowfabric_worker._runtime.memory_limit import CHECK_EVERY, CLOSE, MemoryWatch, resident_bytes

ROOT = Path(__file__).parents[2]
LIMIT = 100 << 20


class Looks:
    """A clock and a use of memory that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moment = 0.0
        self.used = 0
        self.worn: list[str] = []
        monkeypatch.setattr(memory, "now", lambda: self.moment)
        monkeypatch.setattr(memory, "resident_bytes", lambda: self.used)
        self.watch = MemoryWatch(LIMIT, self.worn.append)

    def look(self, part: float) -> None:
        """Look at the memory, at a part of the limit."""
        self.used = int(part * LIMIT)
        self.watch()
        self.moment += CHECK_EVERY


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_a_process_restarts_at_the_third_measure_close_to_its_limit(looks: Looks) -> None:
    looks.look(0.95)
    looks.look(0.95)
    assert looks.worn == []
    looks.look(0.95)

    assert looks.worn == ["it uses 95 MiB of 100 MiB"]


def test_a_measure_that_is_not_close_resets_the_count(looks: Looks) -> None:
    for part in (0.95, 0.95, 0.5, 0.95, 0.95):
        looks.look(part)
    assert looks.worn == []
    looks.look(0.95)

    assert len(looks.worn) == 1


def test_a_process_just_at_the_mark_is_not_close(looks: Looks) -> None:
    for _ in range(10):
        looks.look(CLOSE)

    assert looks.worn == []


def test_memory_is_measured_once_a_second_however_often_it_is_asked(looks: Looks) -> None:
    looks.used = LIMIT
    for _ in range(100):
        looks.watch()
    assert looks.worn == []
    looks.moment += CHECK_EVERY * 0.9
    looks.watch()
    looks.watch()

    assert looks.worn == []


def test_the_memory_of_this_process_is_known() -> None:
    before = resident_bytes()
    kept = b"x" * (50 << 20)
    after = resident_bytes()

    assert before > 5 << 20
    assert after - before > 40 << 20
    assert len(kept) == 50 << 20


def run_limited(program: str) -> str:
    """Return what a process prints that may use 100 MiB more than it does."""
    preamble = """
import threading
from flowfabric_worker import WorkerSettings, Runtime, RetryPolicy, Worker, ExecutionFailed
from flowfabric_worker._runtime.memory_limit import MemoryLimit, resident_bytes
HUNDRED = 100 << 20
"""
    done = subprocess.run(
        [sys.executable, "-c", preamble + program],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_allocation_beyond_the_limit_fails_and_the_process_lives_on() -> None:
    printed = run_limited("""
MemoryLimit(resident_bytes() + HUNDRED)
kept = bytearray(HUNDRED // 2)
try:
    bytearray(2 * HUNDRED)
except MemoryError:
    print("refused")
again = bytearray(HUNDRED // 4)
thread = threading.Thread(target=print, args=("a thread",))
thread.start()
thread.join()
print(len(kept) + len(again) == HUNDRED // 4 * 3)
""")

    assert printed.split("\n")[:3] == ["refused", "a thread", "True"]


def test_what_is_reserved_but_not_used_does_not_count() -> None:
    printed = run_limited("""
import mmap
reserved = mmap.mmap(-1, 20 * HUNDRED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
MemoryLimit(resident_bytes() + HUNDRED)
print(len(bytearray(HUNDRED // 2)) == HUNDRED // 2)
""")

    assert printed == "True\n"


def test_a_handler_that_takes_too_much_memory_fails_and_others_go_on() -> None:
    printed = run_limited("""
worker = Worker("shop", "memory://")
@worker.task(retry=RetryPolicy(max_retries=1, backoff="fixed", initial=__import__("datetime").timedelta()))
def greedy() -> int:
    kept = []
    while True:
        kept.append(bytearray(HUNDRED // 10))

@worker.task(permanent=(MemoryError,), retry=RetryPolicy(max_retries=5))
def greedy_for_good() -> int:
    return len(bytearray(50 * HUNDRED))

@worker.task
def add(a: int) -> int:
    return a + 1

worker.engine.prepare()
runtime = Runtime(worker, WorkerSettings(threads=2, memory_limit=resident_bytes() + 2 * HUNDRED))
runtime.start()
for task in (greedy, greedy_for_good):
    run = task.submit()
    try:
        run.result(30)
    except ExecutionFailed as error:
        print(error.reason.partition(":")[0], worker.engine.read_execution_info(run.id).total_attempt_count)
print([add.submit(number).result(10) for number in range(3)])
runtime.stop()
""")

    assert printed == "MemoryError 2\nMemoryError 1\n[1, 2, 3]\n"
