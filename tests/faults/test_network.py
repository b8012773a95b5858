"""Networks that drop, cut or delay traffic between a worker and its store: work recovers, and nothing runs twice."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import attrs
import pytest

from flowfabric_worker import Run
from flowfabric_worker.engine.engine import open_engine
from flowfabric_worker.engine.errors import TransportError
from tests.support.counting_worker import THREADS
from tests.support.proxy import Proxy
from tests.support.servers import PATIENCE, ValkeyServer, wait_until
from tests.support.site import Process, Site

COUNT = 200
SLOW_COUNT = 50
SILENCE = 30.0
LEASE = 10.0
# Longer than any disturbance but the silence: a run that is begun twice was claimed twice without need.
LONG_LEASE = 60.0
LASTING = 4


@pytest.fixture
def proxy(valkey: ValkeyServer) -> Iterator[Proxy]:
    with closing(Proxy(valkey.socket)) as proxy:
        yield proxy


def behind(proxy: Proxy, site: Site) -> str:
    """Return the URL by which a worker reaches the store of a site through the proxy."""
    return f"valkey://127.0.0.1:{proxy.port}?{site.url.partition('?')[2]}"


@attrs.frozen
class CutOff:
    """A busy worker that can say nothing to its store any more.

    Attributes:
        runs: its work; the first ones last until they are told that they do not count.
        held: what it had under a lease when the silence began, by the places of the runs.
        since: when the silence began.
    """

    runs: list[Run[int]]
    held: set[int]
    since: float


def cut_off(site: Site, proxy: Proxy) -> CutOff:
    """Start a worker behind the proxy, gives it work, and let the proxy swallow everything."""
    process = site.start(LEASE, behind(proxy, site))
    runs = site.tasks.last.submit_many((number, 2 * SILENCE) for number in range(LASTING))
    runs += site.tasks.count.submit_many((number,) for number in range(LASTING, COUNT))
    await_busy(site, process)
    proxy.swallow()
    since = time.monotonic()
    # When the store answers another client, it has read what the worker sent before.
    site.worker.engine.ping()
    held = site.held_by(site.instance_of(process), runs)
    assert held >= set(range(LASTING))
    return CutOff(runs, held, since)


def await_busy(site: Site, process: Process) -> None:
    wait_until(lambda: len(site.begun_by(process)) >= 20, "it is busy")


def await_told(site: Site) -> None:
    """Return when the lasting handlers were told that their leases are over."""
    wait_until(lambda: site.counted("told") == Counter(range(LASTING)), "they are told")


def assert_only_held_work_ran_again(site: Site, work: CutOff) -> None:
    assert site.begun_again() <= work.held
    assert max(site.begun().values()) <= 2
    assert site.reclaimed(work.runs) == work.held
    site.assert_each_ended_once(work.runs)


# Everything is swallowed


def test_a_worker_recovers_from_a_network_that_dropped_everything_for_30_s(served_site: Site, proxy: Proxy) -> None:
    work = cut_off(served_site, proxy)
    await_told(served_site)
    assert time.monotonic() < work.since + SILENCE
    # Half a minute, which is what this test does.
    time.sleep(work.since + SILENCE - time.monotonic())
    proxy.pass_on()

    served_site.wait_for(work.runs, 60)
    assert_only_held_work_ran_again(served_site, work)


def test_another_worker_takes_over_while_one_network_drops_everything(served_site: Site, proxy: Proxy) -> None:
    work = cut_off(served_site, proxy)
    another = served_site.start(LEASE)

    served_site.wait_for(work.runs, work.since + LEASE + 40 - time.monotonic())
    await_told(served_site)
    proxy.pass_on()
    assert_only_held_work_ran_again(served_site, work)
    # The one that was cut off takes part again: there is no other one left.
    another.send_signal(signal.SIGTERM)
    assert another.wait(PATIENCE) == 0
    more = served_site.tasks.count.submit_many((number,) for number in range(COUNT, COUNT + 50))
    served_site.wait_for(more, 60, first=COUNT)
    served_site.assert_each_ended_once([*work.runs, *more])


def test_a_new_connection_into_the_silence_is_given_up_in_time(served_site: Site, proxy: Proxy) -> None:
    proxy.swallow()
    began = time.monotonic()
    with (
        closing(open_engine(behind(proxy, served_site), retry_for=0)) as engine,
        pytest.raises(TransportError) as caught,
    ):
        engine.prepare()

    assert caught.value.code == "store_timeout"
    assert time.monotonic() - began < 20


# Less than everything


def test_calls_whose_replies_are_swallowed_are_neither_lost_nor_made_twice(served_site: Site, proxy: Proxy) -> None:
    process = served_site.start(LONG_LEASE, behind(proxy, served_site))
    runs = served_site.tasks.count.submit_many((number,) for number in range(COUNT))
    await_busy(served_site, process)
    proxy.swallow(calls=False)
    begun = served_site.begun()
    wait_until(lambda: served_site.ended(runs) > begun.total() - THREADS, "outcomes arrive without an answer")
    # For a while, which is what this test does.
    time.sleep(2)
    proxy.pass_on()

    served_site.wait_for(runs, 50)
    assert served_site.begun() == Counter(range(COUNT))
    served_site.assert_each_ended_once(runs)


def test_work_goes_on_while_all_connections_are_cut_every_100_ms(served_site: Site, proxy: Proxy) -> None:
    process = served_site.start(LONG_LEASE, behind(proxy, served_site))
    runs = served_site.tasks.count.submit_many((number,) for number in range(COUNT))
    await_busy(served_site, process)
    cuts = 0
    over = time.monotonic() + 5
    while time.monotonic() < over:
        cuts += proxy.cut()
        time.sleep(0.1)

    served_site.wait_for(runs, 50)
    assert cuts > 10
    assert served_site.begun() == Counter(range(COUNT))
    served_site.assert_each_ended_once(runs)


def test_a_slow_network_delays_work_and_harms_none(served_site: Site, proxy: Proxy) -> None:
    proxy.delay = 0.2
    served_site.start(LONG_LEASE, behind(proxy, served_site))
    runs = served_site.tasks.count.submit_many((number,) for number in range(SLOW_COUNT))

    served_site.wait_for(runs, 60)
    assert served_site.begun() == Counter(range(SLOW_COUNT))
    served_site.assert_each_ended_once(runs)
