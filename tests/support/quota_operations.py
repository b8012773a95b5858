"""Every operation on quota policies at least once, and those that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.types.quotas import (
    CheckAdmissionArgs,
    CreateQuotaPolicyArgs,
    QuotaPolicy,
)
from tests.support.executions import claim_one, claimed_ids
from tests.support.quotas import QUOTA, check, limited, queued

Act: TypeAlias = Callable[[], Any]

POLICY = QuotaPolicy(max_requests_per_window=2, max_concurrent=1)
CREATION = CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=POLICY)
UNKNOWN = QuotaPolicyId("unknown")


def _plain(act: Callable[[Engine], Any]) -> Callable[[Engine], Act]:
    """Return an operation beside a quota policy under which nothing runs."""

    def arrange(engine: Engine) -> Act:
        limited(engine, max_requests_per_window=2, max_concurrent=1)
        return lambda: act(engine)

    return arrange


def _used(act: Callable[[Engine, ExecutionId, ExecutionId], Any]) -> Callable[[Engine], Act]:
    """Return an operation beside a quota policy under which one execution runs and another one waits."""

    def arrange(engine: Engine) -> Act:
        limited(engine, max_requests_per_window=2, max_concurrent=1)
        first, second = queued(engine, 2)
        claimed_ids(engine)
        return lambda: act(engine, first, second)

    return arrange


def _ended(act: Callable[[Engine, ExecutionId], Any]) -> Callable[[Engine], Act]:
    """Return an operation beside a quota policy whose only execution has ended."""

    def arrange(engine: Engine) -> Act:
        limited(engine, max_concurrent=1)
        (execution,) = queued(engine, 1)
        engine.complete(claim_one(engine).handle, None)
        return lambda: act(engine, execution)

    return arrange


QUOTA_OPERATIONS: dict[str, Callable[[Engine], Act]] = {
    "create_quota_policy": lambda engine: lambda: engine.create_quota_policy(CREATION),
    "create_quota_policy: again": _plain(lambda engine: engine.create_quota_policy(CREATION)),
    "create_execution: under a quota": _plain(lambda engine: queued(engine, 1)),
    "read_quota_policy": _used(lambda engine, *_: engine.read_quota_policy(QUOTA)),
    "update_quota_policy": _used(lambda engine, *_: engine.update_quota_policy(QUOTA, QuotaPolicy(max_concurrent=2))),
    "reset_quota_policy": _used(lambda engine, *_: engine.reset_quota_policy(QUOTA)),
    "delete_quota_policy": _ended(lambda engine, _: engine.delete_quota_policy(QUOTA)),
    "list_quotas": _used(lambda engine, *_: engine.list_quotas()),
    "check_admission": _plain(lambda engine: check(engine, *queued(engine, 1))),
    "check_admission: above the limit": _used(lambda engine, _, second: check(engine, second)),
    "release_admission": _used(lambda engine, first, _: engine.release_admission(QUOTA, first)),
    "release_admission: without a slot": _used(lambda engine, _, second: engine.release_admission(QUOTA, second)),
    "claim_many: under a quota": _plain(lambda engine: (queued(engine, 2), claimed_ids(engine))),
    "complete: under a quota": _plain(
        lambda engine: (queued(engine, 2), engine.complete(claim_one(engine).handle, b"5"), claimed_ids(engine))
    ),
}


def _unknown(act: Callable[[Engine], Any]) -> tuple[str, Callable[[Engine], Act]]:
    return "quota_policy_not_found", _plain(act)


QUOTA_REFUSALS: dict[str, tuple[str, Callable[[Engine], Act]]] = {
    "create_quota_policy: with other limits": (
        "conflict",
        _plain(
            lambda engine: engine.create_quota_policy(
                CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=QuotaPolicy(max_concurrent=5))
            )
        ),
    ),
    "read_quota_policy: without a name": ("invalid_input", _plain(lambda engine: engine.read_quota_policy(""))),  # type: ignore[arg-type]
    "update_quota_policy: of an unknown one": _unknown(lambda engine: engine.update_quota_policy(UNKNOWN, POLICY)),
    "reset_quota_policy: of an unknown one": _unknown(lambda engine: engine.reset_quota_policy(UNKNOWN)),
    "delete_quota_policy: of an unknown one": _unknown(lambda engine: engine.delete_quota_policy(UNKNOWN)),
    "delete_quota_policy: while it is used": (
        "quota_policy_in_use",
        _used(lambda engine, *_: engine.delete_quota_policy(QUOTA)),
    ),
    "list_quotas: with a wrong cursor": ("invalid_cursor", _plain(lambda engine: engine.list_quotas(cursor=""))),
    "check_admission: of an ended execution": (
        "execution_not_active",
        _ended(lambda engine, execution: check(engine, execution)),
    ),
    "check_admission: of an unknown execution": (
        "execution_not_found",
        _used(lambda engine, first, _: check(engine, _beside(first))),
    ),
    "check_admission: with a second quota": ("admitted_elsewhere", lambda engine: _second_quota(engine)),
    "release_admission: of an unknown execution": (
        "execution_not_found",
        _used(lambda engine, first, _: engine.release_admission(QUOTA, _beside(first))),
    ),
}


def _beside(execution: ExecutionId) -> ExecutionId:
    """Return the id of no execution, in the partition of one."""
    return ExecutionId(execution.partition_number, "018f0000-0000-7000-8000-000000000000")


def _second_quota(engine: Engine) -> Act:
    """Ask for a slot of one quota policy for an execution that has one of another."""
    limited(engine, max_concurrent=1)
    (execution,) = queued(engine, 1)
    assert check(engine, execution)
    other = next(
        name
        for name in map(QuotaPolicyId, map(str, range(10_000)))
        if engine.home_of_quota(name) == execution.partition_number
    )
    limited(engine, other, max_concurrent=1)
    args = CheckAdmissionArgs(quota_policy_id=other, execution_id=execution)
    return lambda: engine.check_admission(args)
