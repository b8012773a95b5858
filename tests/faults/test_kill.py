"""Workers that are killed or told to stop at any moment: nothing is missing, only what was interrupted runs again."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections import Counter

import pytest

from flowfabric_worker.engine.types.states import PublicState
from tests.support.servers import PATIENCE, wait_until
from tests.support.site import Site, seeds

SEEDS = seeds(10)
COUNT = 200
LEASE = 3.0
LONG_LEASE = 60.0
# Seconds after its lease in which lost work is done again: 2 on a machine that does nothing else.
SOON = 6.0


def lease_of(seed: int) -> float:
    """Return one test waits for a lease as long as they are in earnest; the others need not."""
    return 10.0 if seed == 0 else LEASE


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_in_flight_runs_of_a_killed_worker_run_again_soon(site: Site, seed: int) -> None:
    lease = lease_of(seed)
    doomed, _ = site.start_two(lease)
    instance = site.instance_of(doomed)
    runs = site.tasks.count.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(doomed), "it has begun")
    time.sleep(random.Random(seed).uniform(0.0, 0.6))
    doomed.kill()
    doomed.wait()
    killed_at = time.monotonic()

    in_flight = site.held_by(instance, runs)
    begun = set(site.begun_by(doomed))
    site.wait_for(runs, killed_at + lease + SOON - time.monotonic())

    assert in_flight, "the kill came when it was busy"
    again = site.begun_again()
    assert again == in_flight & begun
    assert site.begun() == Counter(range(COUNT)) + Counter(again)
    assert site.reclaimed(runs) == in_flight
    site.assert_each_ended_once(runs)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_that_is_told_to_stop_loses_and_doubles_nothing(site: Site, seed: int) -> None:
    told, _ = site.start_two(LONG_LEASE)
    runs = site.tasks.count.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(told), "it has begun")
    time.sleep(random.Random(seed).uniform(0.0, 0.6))
    told.send_signal(signal.SIGTERM)

    assert told.wait(PATIENCE) == 0
    # The other worker gets work that had not begun at once, not after a lease of a minute.
    site.wait_for(runs, PATIENCE)
    assert site.begun() == Counter(range(COUNT))
    assert not site.reclaimed(runs)
    site.assert_each_ended_once(runs)


def test_a_second_signal_hands_back_running_work_which_starts_elsewhere(site: Site) -> None:
    told, _ = site.start_two(LONG_LEASE)
    runs = site.tasks.count.submit_many((number,) for number in range(COUNT))
    wait_until(lambda: site.begun_by(told), "it has begun")
    told.send_signal(signal.SIGTERM)
    told.send_signal(signal.SIGINT)

    assert told.wait(PATIENCE) == 0
    site.wait_for(runs, PATIENCE)
    assert site.begun_again() <= set(site.begun_by(told))
    assert not site.reclaimed(runs)
    assert {run.state() for run in runs} == {PublicState.COMPLETED}


def test_what_runs_for_two_leases_while_its_worker_stops_is_begun_once(site: Site) -> None:
    site.start_two(1.0)
    run = site.tasks.last.submit(0, 2.0)
    (holder,) = wait_until(lambda: [each for each in site.processes if site.begun_by(each)], "it has begun")
    holder.send_signal(signal.SIGTERM)

    assert holder.wait(PATIENCE) == 0
    assert run.result(PATIENCE) == 0
    assert site.begun() == site.counted("end") == Counter([0])


def test_a_worker_prints_what_its_threads_do_when_it_is_asked(site: Site) -> None:
    process = site.start(LONG_LEASE, stderr=subprocess.PIPE)
    assert site.tasks.count.submit(0).result(PATIENCE) == 0
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0
    assert printed.count(b"Thread 0x") >= 8 + 3
    assert b"_runtime/handler_pool.py" in printed
    assert b"_runtime/claimer.py" in printed
