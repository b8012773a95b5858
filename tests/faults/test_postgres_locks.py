"""A call on a Postgres server that waits for a gate holds nothing that the holder of the gate may wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.types.claiming import Claimed
from tests.conftest import Clock
from tests.support.budgets import budget, spend, used
from tests.support.executions import request
from tests.support.postgres import PostgresServer
from tests.support.quotas import limited, queued
from tests.support.servers import wait_until

HOUR = timedelta(hours=1)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%claim_many%'"

Session = psycopg.Connection[Any]


@pytest.fixture
def engine(postgres: PostgresServer, schema: str) -> Iterator[Engine]:
    engine = open_engine(f"{postgres.url}&schema={schema}")
    engine.prepare(testing=True)
    yield engine
    engine.close()


def test_upkeep_leaves_a_budget_that_another_call_holds_for_later(
    engine: Engine, clock: Clock, session: Session
) -> None:
    budget(engine, 100, reset_interval=HOUR)
    spend(engine, 5)
    clock.move(HOUR)

    with session.transaction():
        session.execute("SELECT FROM budgets FOR UPDATE")
        engine.run_upkeep()

    clock.move(timedelta(seconds=1))
    assert engine.run_upkeep().handled > 0
    assert used(engine) == 0


def test_a_claim_that_waits_for_a_quota_holds_no_due_entry(
    postgres: PostgresServer, engine: Engine, clock: Clock, session: Session
) -> None:
    limited(engine, max_concurrent=1)
    queued(engine, 1)
    engine.claim_many(request())
    clock.move(HOUR)
    claimed: list[Claimed] = []

    with postgres.session() as observer, session.transaction():
        session.execute("SELECT FROM quotas FOR UPDATE")
        thread = threading.Thread(target=lambda: claimed.extend(engine.claim_many(request())))
        thread.start()
        wait_until(lambda: observer.execute(WAITING).fetchone() != (0,), "the claim waits for the quota")
        session.execute("SELECT FROM entries FOR UPDATE NOWAIT")
    thread.join()

    assert len(claimed) == 1
