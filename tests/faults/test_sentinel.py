"""A primary that sentinels watch dies, fails over or is cut off under load: its clients follow the new primary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from flowfabric_worker import Run
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.states import PublicState
from tests.support.engines import opened
from tests.support.executions import claim_one, created, refused
from tests.support.servers import PATIENCE, ValkeyServer, WatchedValkey, running, wait_until
from tests.support.site import Site, opened_site

COUNT = 300
LEASE = 10.0
PASSWORD = "hunter2"


@pytest.fixture
def watched() -> Iterator[WatchedValkey]:
    """Provide a primary, a replica, and three sentinels."""
    with running(WatchedValkey()) as watched:
        yield watched


@contextmanager
def patient_site(url: str, folder: Path) -> Iterator[Site]:
    """Provide a site whose producer is patient enough for a failover, with two workers that wait for work."""
    with opened_site(url, folder) as site:
        site.worker.engine.retry_for = 30.0
        site.start_two(LEASE)
        yield site


class Producer:
    """A thread that submits one run after the other.

    Attributes:
        runs: what was acknowledged, in order.
    """

    def __init__(self, site: Site) -> None:
        self.runs: list[Run[int]] = []
        self._site = site
        self._enough = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._submit, daemon=True)
        self._thread.start()

    def _submit(self) -> None:
        try:
            while not self._enough.wait(0.01):
                self.runs.append(self._site.tasks.count.submit(len(self.runs)))
        except BaseException as error:
            self._problem = error
            raise

    def stop(self) -> list[Run[int]]:
        """End it; return what was acknowledged, or raise what reached it."""
        self._enough.set()
        self._thread.join(30)
        if self._problem is not None:
            raise self._problem
        return self.runs


def await_replicated(server: ValkeyServer) -> None:
    """Return when a replica has everything that was acknowledged before."""
    client = server.client()
    client.set("marker", "1")
    assert client.execute_command("WAIT", 1, 5000) == 1


def fail_over(watched: WatchedValkey, is_busy: Callable[[], bool] = lambda: True) -> None:
    """Let the sentinels give the primary's place to a replica; return when all of them say so."""
    watched.sentinels[0].execute("SENTINEL", "FAILOVER", watched.service)
    assert is_busy(), "this happened under load"
    await_failover(watched)


def await_failover(watched: WatchedValkey) -> None:
    wait_until(lambda: watched.primary_port() not in (0, watched.primary.port), "another one is the primary")


def port_of(engine: Engine) -> int:
    """Return the primary that an engine works with."""
    return int(engine.store.pool_of(0).connection_kwargs["port"])  # type: ignore[attr-defined]  # a store with pools


# Failing over under load


def test_work_goes_on_by_itself_when_the_primary_is_killed(watched: WatchedValkey, tmp_path: Path) -> None:
    with patient_site(watched.url, tmp_path) as site:
        producer = Producer(site)
        wait_until(lambda: len(site.begun()) >= COUNT / 10, "they are busy")
        safe = len(producer.runs)
        ended = {number for number, run in enumerate(producer.runs[:safe]) if run.state() is PublicState.COMPLETED}
        await_replicated(watched.primary)
        watched.primary.kill()
        at_risk = len(producer.runs) + 1
        wait_until(lambda: len(producer.runs) >= at_risk + COUNT, "the producer goes on", 60)
        runs = producer.stop()

        # Only work that was acknowledged but not replicated is lost with the primary.
        lost = {number for number, run in enumerate(runs) if site.worker.engine.read_execution_info(run.id) is None}
        assert lost <= set(range(safe, at_risk))
        kept = [run for number, run in enumerate(runs) if number not in lost]
        assert [run.result(60) for run in kept] == [number for number in range(len(runs)) if number not in lost]
        site.assert_each_ended_once(kept)
        assert ended
        assert not site.begun_again() & ended


def test_work_goes_on_by_itself_when_a_replica_takes_over_by_plan(watched: WatchedValkey, tmp_path: Path) -> None:
    with patient_site(watched.url, tmp_path) as site:
        runs = site.tasks.count.submit_many((number,) for number in range(3 * COUNT))
        wait_until(lambda: len(site.begun()) >= COUNT / 10, "they are busy")
        await_replicated(watched.primary)
        fail_over(watched, lambda: site.ended(runs) < len(runs))
        site.wait_for(runs, 60)
        # Work that the old primary acknowledged after the replica had left it ran again.
        site.assert_each_ended_once(runs)


def test_nothing_acknowledged_is_lost_where_a_replica_must_have_it(tmp_path: Path) -> None:
    with running(WatchedValkey(replicas=2)) as watched, patient_site(f"{watched.url}?replicas=1", tmp_path) as site:
        producer = Producer(site)
        wait_until(lambda: len(producer.runs) >= COUNT / 3, "the producer is under way")
        watched.primary.kill()
        submitted = len(producer.runs)
        wait_until(lambda: len(producer.runs) >= submitted + COUNT / 3, "the producer goes on", 60)
        runs = producer.stop()

        site.wait_for(runs, 60)
        site.assert_each_ended_once(runs)


# Following


def test_a_primary_that_was_cut_off_and_still_answers_is_left(watched: WatchedValkey) -> None:
    for server in (watched.primary, *watched.replicas):
        server.client().execute_command("ACL", "SETUSER", "app", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url = watched.url.replace("://", f"://app:{PASSWORD}@")
    with opened(url, retry_for=0) as engine:
        engine.prepare()
        assert port_of(engine) == watched.primary.port
        subscription = engine.store.subscribe("news")

        # From now on only the application is let in, and not its replica nor the sentinels.
        old = watched.primary.client()
        for command in ("ACL SETUSER default off", "CLIENT KILL TYPE replica", "CLIENT KILL USER default"):
            old.execute_command(*command.split(" "))
        await_failover(watched)
        wait_until(lambda: port_of(engine) == watched.primary_port(), "the engine has noticed")

        with refused("store_busy"):
            subscription.wait(0.01)
        subscription.close()
        with closing(engine.store.subscribe("news")) as renewed:
            engine.store.wake("news", b"here")
            assert wait_until(lambda: renewed.wait(0.1), "the message comes") == [b"here"]


def test_threads_that_call_at_once_at_first_all_find_the_primary(watched: WatchedValkey) -> None:
    threads = 8
    begin = threading.Barrier(threads)
    with opened(watched.url, retry_for=0) as engine, ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(lambda: (begin.wait(PATIENCE), engine.store.ping())) for _ in range(threads)]

        assert not [call.exception(PATIENCE) for call in calls if call.exception(PATIENCE)]


def test_functions_that_the_new_primary_lacks_are_loaded(watched: WatchedValkey) -> None:
    with opened(watched.url, retry_for=30) as engine:
        engine.prepare()
        made = created(engine)
        await_replicated(watched.primary)
        (replica,) = watched.replicas
        replica.client().config_set("replica-read-only", "no")
        replica.client().function_flush()
        fail_over(watched)

        assert claim_one(engine).execution_id == made
        assert replica.client().function_list()


def test_work_goes_on_without_sentinels_once_the_primary_is_known(watched: WatchedValkey) -> None:
    with opened(watched.url, retry_for=5) as engine:
        engine.prepare()
        for sentinel in watched.sentinels:
            sentinel.remove()
        watched.primary.client().client_kill_filter(_type="normal")
        wait_until(lambda: created(engine), "it works")

        with opened(watched.url, retry_for=0) as late, refused("transport") as caught:
            late.prepare()
        assert f"127.0.0.1:{watched.sentinel_ports[-1]}" in str(caught.value)


# Authentication of sentinels


def test_sentinels_get_the_user_and_the_password_that_they_want() -> None:
    with running(WatchedValkey(sentinel_password=PASSWORD)) as watched:
        with opened(f"{watched.url}?sentinel_password={PASSWORD}", retry_for=30) as engine:
            engine.prepare()
            assert created(engine)
        for sentinel in watched.sentinels:
            # A user of the sentinels needs no more than this.
            sentinel.execute("ACL", "SETUSER", "ann", "on", f">{PASSWORD}", "+sentinel|master")
        with opened(f"{watched.url}?sentinel_user=ann&sentinel_password={PASSWORD}", retry_for=0) as engine:
            assert created(engine)
        for option, says in (("?sentinel_password=hunter3", "invalid"), ("", "uthentication")):
            with opened(watched.url + option, retry_for=5) as engine, refused("authentication_failed") as caught:
                engine.prepare()
            assert says in str(caught.value)
            for text in (str(caught.value), repr(caught.value), repr(caught.value.details)):
                assert "hunter" not in text


def test_a_service_that_no_sentinel_knows_is_named(watched: WatchedValkey) -> None:
    with opened(watched.url.replace("/shop", "/shoe"), retry_for=0) as engine, refused("transport") as caught:
        engine.prepare()

    assert "watches no service 'shoe'" in str(caught.value)
