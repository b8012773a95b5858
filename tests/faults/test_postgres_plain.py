"""Plain executions, which one statement takes or completes on a Postgres server, get what every other one gets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import attrs
import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.stores.postgres import PostgresStore
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass
from tests.conftest import Clock
from tests.support.executions import BOOM, RETRYING, creation, request
from tests.support.postgres import PostgresServer

SECOND = timedelta(seconds=1)
# Plain and other executions in turns; the lease, the time-outs and the retention differ too.
KINDS: list[dict[str, Any]] = [
    {},
    {"tags": {"a": "1", "b": ""}},
    {"policy": ExecutionPolicy(execution_deadline=timedelta(hours=1))},
    {"idempotency_key": "free", "policy": ExecutionPolicy(frees_key=True)},
    {"payload": None},
    {"delay": SECOND},
    {"policy": RETRYING},
    {"headers": {"x": "y"}},
    {"idempotency_key": "kept"},
    {"priority": 7},
    {"task": "slow", "policy": ExecutionPolicy(attempt_timeout=timedelta(minutes=5), retention=timedelta(minutes=1))},
    {"task": "quick", "policy": ExecutionPolicy(attempt_timeout=SECOND)},
    {"task": "other", "payload": b"x" * 10_000},
]
# A function that a release has for plain executions, made to refuse them all, or one for the others, made to fail.
REFUSAL = "CREATE OR REPLACE FUNCTION {}.is_plain_policy(policy bytea) RETURNS boolean LANGUAGE sql AS 'SELECT false'"
TRAP = "ALTER FUNCTION {0}.checked RENAME TO not_called; ALTER FUNCTION {0}.fenced_record RENAME TO not_called_either"
NUMBERS = [f"01a00000-0000-7000-8000-{number:012}" for number in range(2 * len(KINDS))]
_TABLES = (
    "SELECT to_jsonb(e) FROM {}.executions AS e",
    "SELECT jsonb_build_array(class_id, state, sum(change)) FROM {}.depths GROUP BY class_id, state",
    "SELECT jsonb_build_array(uuid, ended, outcome, class, tags) FROM {}.feed",
    "SELECT jsonb_build_array(due_in, kind, member, due) FROM {}.entries",
)


class Site:
    """An engine on a schema, whose clock stands still."""

    def __init__(self, server: PostgresServer, change: str) -> None:
        self._server = server
        self.schema = f"t{uuid4().hex[:12]}"
        self.engine: Engine = open_engine(f"{server.url}&schema={self.schema}")
        self.engine.prepare(testing=True)
        self.clock = Clock(self.engine)
        store = self.engine.store
        assert isinstance(store, PostgresStore)
        if change:
            with server.session() as session:
                session.execute(change.format(store.library.schema_of(self.schema)))  # type: ignore[arg-type]

    def rows(self) -> list[list[str]]:
        """Return what the tables hold, without what the server numbers."""
        with self._server.session() as session:
            return [
                sorted(str(row) for (row,) in session.execute(query.format(self.schema)))  # type: ignore[arg-type]
                for query in _TABLES
            ]


def told(claimed: list[Claimed]) -> list[object]:
    """Return what a claim told, without the handles."""
    return [attrs.evolve(each, handle=None) for each in claimed]


def run(site: Site, lease: timedelta) -> list[object]:
    """Create executions of every kind, claim them together, and end most of them together; return the replies."""
    engine = site.engine
    ids = [ExecutionId(0, number) for number in NUMBERS]
    for half in (ids[: len(KINDS)], ids[len(KINDS) :]):
        engine.create_executions([creation(execution_id=each, **kind) for each, kind in zip(half, KINDS, strict=True)])
    site.clock.move(2 * SECOND)
    claim_id = "11111111-1111-7111-8111-111111111111"
    claimed = engine.claim_many(request(limit=2 * len(KINDS), claim_id=claim_id, lease=lease))
    handles = [each.handle for each in claimed]
    replies: list[object] = [told(claimed)]
    replies.append(engine.complete_many([Completion(handle=each, payload=b"1") for each in handles[:-4]]))
    replies.append(engine.fail_many([Failure(handle=handles[-1], reason=BOOM, classification=FailureClass.TRANSIENT)]))
    replies.append(engine.complete_many([Completion(handle=each, payload=b"2") for each in handles[:3]]))
    return replies


@pytest.mark.parametrize("lease", [timedelta(seconds=30), SECOND])
def test_plain_executions_get_what_each_would_get_alone(postgres: PostgresServer, lease: timedelta) -> None:
    together, alone = Site(postgres, ""), Site(postgres, REFUSAL)

    assert run(together, lease) == run(alone, lease)
    assert together.rows() == alone.rows()


def test_no_plain_execution_is_handled_by_itself(postgres: PostgresServer) -> None:
    site = Site(postgres, TRAP)
    site.engine.create_executions([creation(tags={"a": "1"}, policy=RETRYING) for _ in NUMBERS])

    claimed = site.engine.claim_many(request(limit=len(NUMBERS)))

    assert site.engine.complete_many([Completion(handle=each.handle) for each in claimed]) == [None] * len(NUMBERS)
