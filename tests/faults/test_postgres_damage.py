"""Damage to rows of Postgres is told with a typed error, and stops no other work."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Created
from tests.support.executions import claim_one, claimed_ids, created, creation, refused, request, running
from tests.support.flows import Run, apply, flow_with, graph_of, stage
from tests.support.postgres import PostgresServer
from tests.support.quotas import limited, queued
from tests.support.servers import wait_until
from tests.support.suspensions import signal, suspended, waiting_for

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


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)], ids=["most", "least"])
@pytest.mark.parametrize("counter", ["n", "k", "ok", "bad", "skip", "life"])
def test_a_damaged_group_sets_its_own_member_aside_alone(
    postgres: PostgresServer, engine: Engine, schema: str, counter: str, value: int
) -> None:
    run, other = (Run(engine, graph_of(("a", "b"), ("x", "y"))) for _ in range(2))
    plain = created(engine)
    damage(postgres, schema, f"groups SET {counter} = {value} WHERE down = '{run.ids['b'].uuid}'")

    claimed = engine.claim_many(request(limit=10))
    answers = engine.complete_many([Completion(handle=each.handle) for each in claimed])

    assert (len(claimed), answers) == (5, [None] * 5)
    assert engine.read_execution_state(plain) == PublicState.COMPLETED
    assert set(claimed_ids(engine)) == {run.ids["y"], other.ids["b"], other.ids["y"]}
    assert [row.row_id for row in engine.list_damaged().executions] == [run.ids["b"]]


def test_a_damaged_counter_of_one_execution_fails_its_own_end_alone(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    created(engine)
    damaged = suspended(engine)[0]
    engine.resume_execution(damaged)
    claimed = engine.claim_many(request(limit=10))
    damage(postgres, schema, f"waits SET life = {2**31 - 1}")

    answers = engine.complete_many([Completion(handle=each.handle) for each in claimed])

    codes = {each.execution_id: getattr(told, "code", told) for each, told in zip(claimed, answers, strict=True)}
    assert codes.pop(damaged) == "corruption"
    assert list(codes.values()) == [None]
    assert [row.row_id for row in engine.list_damaged().executions] == [damaged]


def test_a_damaged_counter_of_one_execution_stops_no_other_timer(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    damaged = suspended(engine)[0]
    engine.resume_execution(damaged)
    policy = ExecutionPolicy(execution_deadline=timedelta(seconds=1))
    others = [created(engine, policy=policy, lane="other") for _ in range(3)]
    damage(postgres, schema, f"waits SET life = {2**31 - 1}")
    damage(postgres, schema, "executions SET deadline = '1', due = 1, due_in = 'd' WHERE suspension IS NOT NULL")

    wait_until(lambda: engine.read_execution_state(others[0]) and upkeep_is_over(engine, others), "the deadlines pass")

    assert [row.row_id for row in engine.list_damaged().executions] == [damaged]


def upkeep_is_over(engine: Engine, executions: list[ExecutionId]) -> bool:
    engine.run_upkeep()
    return {engine.read_execution_state(each) for each in executions} == {PublicState.EXPIRED}


@pytest.mark.parametrize(
    "change",
    [
        *(f"quotas SET {number} = {value}" for number in ("window_ms", "rate", "slots") for value in (MOST, -MOST)),
        f"began SET attempts = {MOST}",
        f"began SET moment = {MOST}",
    ],
)
def test_a_damaged_quota_closes_for_its_own_work_alone(
    postgres: PostgresServer, engine: Engine, schema: str, change: str
) -> None:
    limited(engine, max_requests_per_window=1)
    held = claimed_ids(engine, limit=len(queued(engine, 1)))
    queued(engine, 2)
    damage(postgres, schema, change)
    plain = created(engine, priority=-1)

    assert claimed_ids(engine, limit=5) == [plain]
    assert len(held) == 1


def test_a_number_without_its_signal_is_damage_and_no_endless_search(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    execution, waitpoint = suspended(engine)
    signal(engine, execution, waitpoint)
    claimed = claim_one(engine)
    damage(postgres, schema, f"suspensions SET last = '{2**31 - 1}'")
    with refused("corruption"):
        engine.observe_signals(claimed.handle)

    pending = engine.create_waitpoint(claimed.handle, "again", timedelta(hours=1))
    signal(engine, execution, pending, name="other")
    damage(postgres, schema, f"waits SET last_signal = {2**31 - 1}")
    with refused("corruption"):
        engine.suspend(claimed.handle, waiting_for("again"))
    assert [row.row_id for row in engine.list_damaged().executions] == [execution]


def test_a_damaged_revision_of_a_lane_stops_no_submission(
    postgres: PostgresServer, engine: Engine, schema: str
) -> None:
    created(engine)
    damage(postgres, schema, f"lanes SET revision = {MOST}")

    answers = engine.create_executions([creation(task="another"), creation(lane="another")])

    assert all(isinstance(each, Created) for each in answers)
    assert len(engine.claim_many(request(limit=10))) == 2


def test_an_edge_whose_group_is_gone_is_damage(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    flow, (above, below) = flow_with(engine, 2)
    stage(engine, flow, "e", (above, below))
    damage(postgres, schema, "groups SET down = gen_random_uuid()")

    with refused("corruption"):
        stage(engine, flow, "e", (above, below))
    with refused("corruption"):
        apply(engine, flow, "e")


def test_a_secret_whose_name_is_damaged_is_passed_over(postgres: PostgresServer, engine: Engine, schema: str) -> None:
    claimed = running(engine)
    damage(postgres, schema, r"secrets SET kid = kid || '\xff'::bytea")

    pending = engine.create_waitpoint(claimed.handle, "approval", timedelta(hours=1))

    assert engine.list_pending_waitpoints(claimed.execution_id).waitpoints[0].waitpoint_id == pending.waitpoint_id  # type: ignore[union-attr]
