"""Quota policies: creating, reading, changing, listing and removing them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import QuotaPolicyId
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.quotas import AdmissionOutcome, CreateQuotaPolicyArgs, QuotaPolicy, SlotHold
from tests.conftest import Clock
from tests.support.executions import claim_one, claimed_ids, created, refused
from tests.support.quotas import QUOTA, UNDER_QUOTA, limited, queued, status

SECOND = timedelta(seconds=1)
MISSING = QuotaPolicyId("missing")


def test_a_quota_policy_is_created_once_and_keeps_its_first_limits(engine: Engine, clock: Clock) -> None:
    policy = QuotaPolicy(window=SECOND, max_requests_per_window=3, max_concurrent=2, hold=SlotHold.RUN)
    args = CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=policy)

    assert [engine.create_quota_policy(args).created for _ in range(2)] == [True, False]
    with refused("conflict"):
        engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=QuotaPolicy(max_concurrent=2)))

    found = status(engine)
    assert (found.policy, found.namespace, found.created_at_ms) == (policy, "default", clock.ms)
    assert (found.admitted_in_window, found.running, found.closed_by, found.opens_at_ms) == (0, 0, None, None)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_concurrent": 0},
        {"max_requests_per_window": 0},
        {"max_concurrent": 10**12},
        {"max_requests_per_window": True},
        {"window": timedelta(0), "max_requests_per_window": 1},
        {"hold": "for ever"},
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any]) -> None:
    with refused("invalid_input"):
        QuotaPolicy(**limits)


def test_an_unknown_quota_policy_is_not_found(engine: Engine) -> None:
    execution = created(engine)

    assert engine.read_quota_policy(MISSING) is None
    for call in (
        lambda: engine.update_quota_policy(MISSING, QuotaPolicy()),
        lambda: engine.reset_quota_policy(MISSING),
        lambda: engine.delete_quota_policy(MISSING),
        lambda: created(engine, policy=ExecutionPolicy(quota_policy_id=MISSING)),
    ):
        with refused("quota_policy_not_found") as caught:
            call()
        assert caught.value.details["quota_policy_id"] == MISSING
    assert [row.execution_id for row in engine.list_executions().executions] == [execution]


def test_raised_limits_hand_out_more_at_once_and_lowered_ones_none(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    executions = queued(engine, 4)
    assert claimed_ids(engine) == executions[:1]

    raised = engine.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=3))
    assert (raised.policy.max_concurrent, raised.running, raised.closed_by) == (3, 1, None)
    assert claimed_ids(engine) == executions[1:3]

    lowered = engine.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=1))
    assert (lowered.running, lowered.closed_by) == (3, AdmissionOutcome.CONCURRENCY_EXCEEDED)
    assert claimed_ids(engine) == []


def test_a_reset_forgets_the_attempts_of_the_window(engine: Engine, clock: Clock) -> None:
    limited(engine, max_requests_per_window=1, window=SECOND)
    executions = queued(engine, 2)
    assert claimed_ids(engine) == executions[:1]
    full = status(engine)
    assert (full.closed_by, full.opens_at_ms) == (AdmissionOutcome.RATE_EXCEEDED, clock.ms + 1000)

    assert engine.reset_quota_policy(QUOTA).admitted_in_window == 0
    assert claimed_ids(engine) == executions[1:]
    assert status(engine).running == 2


def test_quota_policies_are_listed_by_id_in_pages(engine: Engine) -> None:
    names = sorted(f"quota-{number}" for number in range(5))
    for name in reversed(names):
        limited(engine, name, max_concurrent=1)
    seen: list[str] = []
    cursor = None
    while True:
        page = engine.list_quotas(cursor, 2)
        seen += [each.quota_policy_id for each in page.policies]  # type: ignore[union-attr]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == names
    assert engine.list_quotas(limit=0).policies == ()


def test_a_quota_policy_is_removed_only_when_no_execution_needs_it(engine: Engine, clock: Clock) -> None:
    del clock
    limited(engine, max_concurrent=1)
    queued(engine, 1)
    with refused("quota_policy_in_use"):
        engine.delete_quota_policy(QUOTA)
    engine.complete(claim_one(engine).handle, None)

    engine.delete_quota_policy(QUOTA)

    assert engine.read_quota_policy(QUOTA) is None
    assert engine.list_quotas().policies == ()
    with refused("quota_policy_not_found"):
        created(engine, policy=UNDER_QUOTA)


def test_quota_policies_of_two_namespaces_never_meet(engine: Engine, store_url: str) -> None:
    limited(engine, max_concurrent=1)
    other = open_engine(store_url, namespace="other")
    try:
        assert other.read_quota_policy(QUOTA) is None
        with refused("quota_policy_not_found"):
            created(other, policy=UNDER_QUOTA)
        limited(other, max_concurrent=1)
        queued(other, 1)
        assert len(claimed_ids(other)) == 1
        assert status(engine).running == 0
    finally:
        other.close()
