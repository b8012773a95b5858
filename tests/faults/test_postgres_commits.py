"""Which calls wait for the commit to be on disk: every call whose change must outlast the server, and no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.errors import EngineTimeoutError
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from tests.support.executions import claim_one, created, creation, request
from tests.support.postgres import PostgresServer
from tests.support.servers import running, wait_until
from tests.support.suspensions import waiting_for

SHORT = timedelta(seconds=0.1)
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


class Site:
    """An engine on a server of its own, and an execution that is held."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.engine: Engine = open_engine(server.url)
        self.engine.prepare()
        self.execution_id = created(self.engine)
        self.held: Claimed = claim_one(self.engine)
        created(self.engine)
        self.waitpoint = self.engine.create_waitpoint(self.held.handle, "go", SHORT * 1000)
        self.engine.claim_many(request("other", max_wait=SHORT))

    @contextmanager
    def without_a_disk(self) -> Iterator[None]:
        """Let every commit wait that waits for the disk: for a replica that there is not, which comes behind it."""
        self.server.configure("synchronous_standby_names", "nowhere")
        try:
            yield
        finally:
            with self.server.session() as session:
                session.execute("ALTER SYSTEM RESET synchronous_standby_names")
                session.execute("SELECT pg_reload_conf()")

    def waits(self) -> bool:
        with self.server.session() as session:
            return session.execute(WAITS).fetchone() != (0,)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running(PostgresServer("synchronous_commit=on")) as server:
        site = Site(server)
        yield site
        site.engine.close()


def find_nothing(site: Site) -> None:
    assert site.engine.claim_many(request("empty", max_wait=SHORT)) == []


def watch_an_execution(site: Site) -> None:
    with pytest.raises(EngineTimeoutError):
        site.engine.wait_for_result(site.execution_id, SHORT)


def ask_for_a_waitpoint_again(site: Site) -> None:
    assert site.engine.create_waitpoint(site.held.handle, "go", SHORT) == site.waitpoint


def look_for_signals(site: Site) -> None:
    assert site.engine.try_satisfy(site.held.handle, waiting_for("stop")) is None


@pytest.mark.parametrize("call", [find_nothing, watch_an_execution, ask_for_a_waitpoint_again, look_for_signals])
def test_a_call_that_changes_nothing_lasting_does_not_wait_for_the_disk(
    site: Site, call: Callable[[Site], None]
) -> None:
    with site.without_a_disk():
        call(site)


def create(site: Site) -> None:
    site.engine.create_executions([creation()])


def claim(site: Site) -> None:
    site.engine.claim_many(request())


def complete(site: Site) -> None:
    site.engine.complete_many([Completion(handle=site.held.handle)])


@pytest.mark.parametrize("call", [create, claim, complete])
def test_a_call_that_changes_an_execution_waits_for_the_disk(site: Site, call: Callable[[Site], None]) -> None:
    with site.without_a_disk():
        thread = threading.Thread(target=call, args=(site,))
        thread.start()
        wait_until(site.waits, "the commit waits")
    thread.join(20)
    assert not thread.is_alive()
