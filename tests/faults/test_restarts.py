"""Stores that are restarted, cut off or emptied of their functions while workers are busy: each task runs once."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from flowfabric_worker import Run
from tests.support.servers import PATIENCE, ValkeyServer, running, wait_until
from tests.support.site import Site, opened_site, seeds

SEEDS = seeds(5)
# Enough that there is work for longer than the harm is put off.
COUNT = 250
# Longer than any outage here: what is begun twice was handed out twice.
LEASE = 60.0
AWAY = 10.0
LASTING = 12.0


@pytest.fixture
def site(server: ValkeyServer, tmp_path: Path) -> Iterator[Site]:
    """Provide a site on a server of its own, to do harm to."""
    with opened_site(server.url, tmp_path) as site:
        yield site


def stopped_and_started(server: ValkeyServer) -> None:
    server.stop()
    server.start()


def killed_and_started(server: ValkeyServer) -> None:
    server.kill()
    server.start()


def cut(server: ValkeyServer) -> None:
    client = server.client()
    for kind in ("normal", "pubsub"):
        client.execute_command("CLIENT", "KILL", "TYPE", kind)


def emptied_of_functions(server: ValkeyServer) -> None:
    server.client().function_flush()


def has_begun(site: Site, number: int) -> bool:
    return max(site.begun(), default=-1) >= number


@pytest.mark.parametrize("harm", [stopped_and_started, killed_and_started, cut, emptied_of_functions])
def test_each_task_runs_once_although_its_store_is_disturbed(
    server: ValkeyServer, site: Site, harm: Callable[[ValkeyServer], None]
) -> None:
    site.start_two(LEASE)
    runs: list[Run[int]] = []
    for seed in SEEDS:
        first = len(runs)
        runs += site.tasks.count.submit_many((number,) for number in range(first, first + COUNT))
        wait_until(partial(has_begun, site, first), "it has begun")
        time.sleep(random.Random(seed).uniform(0.0, 0.3))
        assert site.ended(runs[first:]) < COUNT, "the harm comes when there is work"
        harm(server)
        site.wait_for(runs[first:], 30, first)

    assert site.begun() == site.counted("end") == Counter(range(len(runs)))
    assert not site.reclaimed(runs)
    site.assert_each_ended_once(runs)


def test_handlers_run_on_without_their_store_and_results_arrive_later(server: ValkeyServer, site: Site) -> None:
    site.start_two(LEASE)
    through = site.tasks.last.submit_many((number, LASTING) for number in range(4))
    # These end while the store cannot be told.
    meanwhile = site.tasks.last.submit_many((number, AWAY / 2) for number in range(4, 8))
    wait_until(lambda: site.begun().total() == 8, "they have begun")
    server.kill()
    away_since = time.monotonic()
    wait_until(lambda: site.counted("end").keys() == {4, 5, 6, 7}, "they run on")
    # Long enough, which is what this test does.
    time.sleep(max(0.0, away_since + AWAY - time.monotonic()))
    server.start()

    site.wait_for(meanwhile, PATIENCE, first=4)
    site.wait_for(through, PATIENCE)
    assert site.begun() == site.counted("end") == Counter(range(8))
    site.assert_each_ended_once([*through, *meanwhile])


def test_workers_serve_a_store_that_came_back_empty(tmp_path: Path) -> None:
    with running(ValkeyServer("--appendonly", "no")) as server, opened_site(server.url, tmp_path) as site:
        site.start_two(LEASE)
        before = site.tasks.count.submit_many((number,) for number in range(8))
        site.wait_for(before, PATIENCE)
        server.kill()
        server.start()
        # Neither what was done nor the functions nor who waits for work is known to it any more.
        assert {run.state() for run in before} == {None}

        after = site.tasks.count.submit_many((number,) for number in range(8, 8 + COUNT))
        site.wait_for(after, 30, first=8)
        assert site.begun() == Counter(range(8 + COUNT))
