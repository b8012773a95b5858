"""Interruptions that come at any moment, also just before, at and after the end of a run: they strike nothing else."""

from __future__ import annotations

import functools
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from flowfabric_worker import Interrupted, Run, Worker, current
from flowfabric_worker._runtime.interruption import Interruption
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.types.admin import RevokeLeaseArgs
from flowfabric_worker.engine.types.states import PublicState
from tests.support.races import hurried
from tests.support.servers import wait_until
from tests.worker.conftest import Start


@pytest.fixture
def hurry() -> Iterator[None]:
    with hurried():
        yield


class Target:
    """One run, whether its interruption is about to come, and whether it was asked for."""

    def __init__(self) -> None:
        self.interruption = Interruption()
        self.near = False
        self.struck = False

    def run(self, function: Callable[[], object]) -> None:
        """Run a function, the beginning of which waits for the interruption to be near."""

        def near() -> None:
            while not self.near:
                pass
            function()

        self.interruption.run(near)


def struck_at_random(rounds: int, steps: Callable[[Target, random.Random], object]) -> Counter[str]:
    """Run something again and again in one thread while another interrupts each run about when it ends.

    Returns:
        How many runs ended whole, how many interrupted, and what came where nothing may come.
    """
    ends: Counter[str] = Counter()
    targets: queue.SimpleQueue[Target | None] = queue.SimpleQueue()
    chance, late = random.Random(26), random.Random(27)

    def strike() -> None:
        while (target := targets.get()) is not None:
            target.near = True
            if late.random() < 0.5:
                # The run goes on meanwhile, and may end.
                time.sleep(0)
            target.struck = True
            target.interruption.interrupt()

    def run_all() -> None:
        try:
            for _ in range(rounds):
                target = Target()
                targets.put(target)
                try:
                    target.run(functools.partial(steps, target, chance))
                    ends["whole"] += 1
                except Interrupted:
                    # An interruption that was not asked for belongs to an earlier run.
                    ends["interrupted" if target.struck else "stray"] += 1
                # From here on, nothing may come: neither now nor in the next round.
                for _ in range(20):
                    pass
        except BaseException as error:  # noqa: BLE001  whatever strays here is what the tests look for
            ends[f"stray {error!r}"] += 1

    threads = [threading.Thread(target=run_all), threading.Thread(target=strike)]
    for thread in threads:
        thread.start()
    threads[0].join(90)
    targets.put(None)
    threads[1].join(10)
    return ends


def test_an_interruption_never_outlives_its_run(hurry: None) -> None:
    def steps(target: Target, chance: random.Random) -> None:
        for _ in range(chance.randrange(10_000)):
            pass

    ends = struck_at_random(10_000, steps)

    assert sum(ends.values()) == 10_000
    assert set(ends) <= {"whole", "interrupted"}
    assert ends["interrupted"]


TRACED = """
import sys
from flowfabric_worker import Interrupted
from flowfabric_worker._runtime.interruption import Interruption

def swallow():
    try:
        interruption.interrupt()
        while True:
            pass
    except Interrupted:
        return "swallowed"

interruption = Interruption()
print(interruption.run(swallow))
sys.settrace(lambda frame, event, value: None)
print((lambda: "traced")())
"""


def test_a_debugger_goes_on_after_an_interruption() -> None:
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=20)

    assert done.stdout.split() == ["swallowed", "traced"], done.stderr


def test_a_shielded_block_is_whole_wherever_the_interruption_comes(hurry: None) -> None:
    halves: list[int] = []

    def steps(target: Target, chance: random.Random) -> None:
        for _ in range(3):
            entered = left = 0
            try:
                with target.interruption.shield():
                    entered = 1
                    for _ in range(chance.randrange(2000)):
                        pass
                    left = 1
            finally:
                if entered != left:
                    halves.append(1)

    ends = struck_at_random(5_000, steps)

    assert sum(ends.values()) == 5_000
    assert set(ends) <= {"whole", "interrupted"}
    assert ends["interrupted"]
    assert halves == []


def test_executions_that_are_interrupted_at_random_harm_no_others(
    served: Worker, start: Start, hurry: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR")
    ran: Counter[int] = Counter()
    lock = threading.Lock()

    @served.task(interrupt=True)
    def short(number: int) -> int:
        with current().shield(), lock:
            ran[number] += 1
        return sum(range(number % 50)) * 0 + number

    runtime = start(served, threads=4)
    held_before = handler_threads()
    holdings = runtime._leases
    chance = random.Random(26)
    lost: set[str] = set()
    runs: list[Run[int]] = []
    over = threading.Event()

    def strike() -> None:
        while not over.is_set():
            for held in list(holdings.executions.values())[:50]:
                if hash(held.key) % 4 == 0 and chance.random() < 0.3:
                    lost.add(held.key)
                    held.lose("stopping")

    def they_ran() -> bool:
        return all(number in ran or str(run.id) in lost for number, run in enumerate(runs))

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        for _ in range(10):
            runs.extend(short.submit_many((number,) for number in range(len(runs), len(runs) + 1000)))
            wait_until(they_ran, "they ran")
    finally:
        over.set()
        striking.join()

    others = [(number, run) for number, run in enumerate(runs) if str(run.id) not in lost]
    assert [run.result(30) for _, run in others] == [number for number, _ in others]
    assert len(lost) > 20
    assert max(ran.values()) == 1
    assert handler_threads() == held_before
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert short.submit(7).result(10) == 7


def handler_threads() -> set[int | None]:
    """Return the handler threads that live."""
    return {thread.ident for thread in threading.enumerate() if "flowfabric-handler" in thread.name}


def test_executions_cancelled_and_revoked_at_random_end_as_the_store_says(
    served: Worker, start: Start, hurry: None
) -> None:
    @served.task(interrupt=True, max_reclaims=1000)
    def short(number: int) -> int:
        return sum(range(number)) * 0 + number

    start(served, threads=4)
    threads = handler_threads()
    chance = random.Random(27)
    runs = short.submit_many((number,) for number in range(600))
    struck = Counter[str]()
    for number, run in enumerate(runs):
        if number % 3 == 2:
            continue
        try:
            if number % 3:
                run.cancel()
            else:
                served.engine.revoke_lease(RevokeLeaseArgs(execution_id=run.id))
        except EngineError:
            # It had ended, or had not begun.
            struck["missed"] += 1
        if chance.random() < 0.2:
            time.sleep(0.001)

    for number, run in enumerate(runs):
        if number % 3 != 1:
            assert run.result(30) == number
    ends = {wait_until(run.state, "it has a state") for run in runs[1::3]}
    assert ends <= {PublicState.CANCELLED, PublicState.COMPLETED}
    assert handler_threads() == threads
    assert short.submit(7).result(10) == 7
