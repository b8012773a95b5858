"""Damage to rows of Postgres is told with a typed error, and stops no other work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from tests.support.executions import claim_one, created, refused, running
from tests.support.postgres import PostgresServer

MOST = 2**63 - 1


@pytest.fixture
def engine(postgres: PostgresServer, schema: str) -> Iterator[Engine]:
    engine = open_engine(f"{postgres.url}&schema={schema}", retry_for=0)
    engine.prepare(testing=True)
    yield engine
    engine.close()


def damage(postgres: PostgresServer, schema: str, change: str) -> None:
    with postgres.session() as session:
        session.execute(f"UPDATE {schema}.{change}")  # type: ignore[arg-type]


def test_counters_beyond_what_the_server_counts_are_damage(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    created(engine, lane="other")
    damage(postgres, schema, f"depths SET change = {MOST}")
    created(engine, lane="other")
    damage(postgres, schema, f"depths SET change = {MOST}")

    with refused("corruption") as caught:
        engine.list_lanes()

    assert str(MOST) not in str(caught.value)
    created(engine)
    engine.complete(claim_one(engine).handle)


def test_an_execution_that_has_lost_its_class_is_damage(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    damaged = running(engine, lane="a")
    damage(postgres, schema, "executions SET class_id = NULL")

    with refused("corruption"):
        engine.complete(damaged.handle)

    created(engine, lane="b")
    engine.complete(claim_one(engine, "b").handle)


def test_a_secret_whose_name_is_damaged_is_passed_over(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    claimed = running(engine)
    damage(postgres, schema, r"secrets SET kid = kid || '\xff'::bytea")

    pending = engine.create_waitpoint(claimed.handle, "approval", timedelta(hours=1))

    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints[0].waitpoint_id == pending.waitpoint_id  # type: ignore[union-attr]
