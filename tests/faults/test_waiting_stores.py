"""Handlers that wait while replies are lost, and while their store is killed and started again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from datetime import timedelta
from uuid import uuid4

import pytest

from flowfabric_worker import Client, Runtime, StateError, Worker, WorkerSettings, current
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.stores.valkey import ValkeyStore
from flowfabric_worker.engine.types.states import PublicState
from tests.faults.test_restarts import cut, killed_and_started
from tests.support.lossy_store import LosingStore
from tests.support.observation import info_of
from tests.support.servers import ValkeyServer, wait_until

MANY = 40


class TenthLost(LosingStore):
    """A store of which every tenth reply is lost, whichever call it belongs to."""

    _calls = 0

    def _lose(self, *_: Hashable) -> bool:
        self._calls += self._loses
        lost = self._loses and self._calls % 10 == 0
        self.lost += lost
        return lost


class Waiting:
    """A worker whose task waits for two answers, with a step before each; what it did."""

    def __init__(self, url: str) -> None:
        self.worker = Worker("waiting", url)
        self.tokens: dict[tuple[int, str], str] = {}
        self.ran: Counter[tuple[int, str]] = Counter()

        @self.worker.task
        def wait(number: int) -> list[str]:
            answers = []
            for name in ("first", "second"):
                current().step(f"ask {name}", self.ran.update, [(number, name)])
                self.tokens[number, name] = current().waitpoint(name)
                answers.append(current().wait_for(name, type=str))
            return answers

        self.wait = wait

    def answer(self, client: Client, name: str) -> None:
        """Answer every run, as soon as it has handed its token out."""
        for number in range(MANY):
            token = wait_until(lambda number=number: self.tokens.get((number, name)), "the token is told", 30)
            client.signal(token, name, f"{name} {number}", key="once")


@pytest.fixture
def waiting(server: ValkeyServer) -> Iterator[Waiting]:
    waiting = Waiting(f"{server.url}?prefix=w{uuid4().hex[:8]}")
    waiting.worker.engine.prepare()
    yield waiting
    waiting.worker.close()


def test_lost_replies_repeat_no_step_and_lose_no_answer(waiting: Waiting) -> None:
    behind = waiting.worker.engine.store
    assert isinstance(behind, ValkeyStore)
    losing = TenthLost(behind)
    waiting.worker._engine = Engine(lambda: (losing, None))
    runs = waiting.wait.submit_many((number,) for number in range(MANY))
    # A claim whose replies are all lost is made again when its leases are over.
    runtime = Runtime(waiting.worker, WorkerSettings(threads=4, lease=timedelta(seconds=5)))
    with losing.losing():
        runtime.start()
        with Client(waiting.worker.url) as client:
            waiting.answer(client, "first")
            waiting.answer(client, "second")
        results = [run.result(30) for run in runs]
    runtime.stop(timedelta(seconds=5))

    assert results == [[f"first {number}", f"second {number}"] for number in range(MANY)]
    assert set(waiting.ran.values()) == {1}
    assert losing.lost > 10


@pytest.mark.parametrize("harm", [cut, killed_and_started])
def test_waits_survive_a_disturbed_store(server: ValkeyServer, waiting: Waiting, harm: object) -> None:
    runs = waiting.wait.submit_many((number,) for number in range(MANY))
    runtime = Runtime(waiting.worker, WorkerSettings(threads=4))
    runtime.start()
    try:
        wait_until(lambda: all(run.state() is PublicState.SUSPENDED for run in runs), "all wait", 30)
        assert callable(harm)
        harm(server)
        with Client(waiting.worker.url, retry_for=30) as client:
            waiting.answer(client, "first")
            waiting.answer(client, "second")
            with pytest.raises(StateError, match="why="):
                client.signal(waiting.tokens[0, "first"], "first", "again", key="other")
        results = [run.result(30) for run in runs]
    finally:
        runtime.stop(timedelta(seconds=5))

    assert results == [[f"first {number}", f"second {number}"] for number in range(MANY)]
    assert set(waiting.ran.values()) == {1}
    assert {info_of(waiting.worker, run).retry_count for run in runs} == {0}
