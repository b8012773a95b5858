"""Calls between a call whose reply was lost and its repeat, by the operation of `OPERATIONS`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import (
    CancelExecutionArgs,
    ChangePriorityArgs,
    ReplayExecutionArgs,
    RevokeLeaseArgs,
)
from flowfabric_worker.engine.types.budgets import BudgetStatus, CreateBudgetArgs
from flowfabric_worker.engine.types.claiming import Claimed, ClaimGrant, ReclaimToken
from flowfabric_worker.engine.types.flows import CancelFlowArgs, CancelFlowPolicy, FlowSummary
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy, QuotaPolicyStatus
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs
from tests.support.budgets import TEAM, definition, tokens
from tests.support.executions import LANE, claim_one, created, request
from tests.support.operations import SECOND, START, beat
from tests.support.quotas import QUOTA


def _execution(engine: Engine) -> ExecutionId:
    """Return the one execution that there is."""
    (only,) = engine.list_executions().executions
    return only.execution_id


def _claim(engine: Engine) -> Claimed:
    return claim_one(engine, LANE, worker="w2")


def _claim_later(engine: Engine) -> Claimed:
    engine.set_clock(START + timedelta(hours=1))
    return _claim(engine)


def _complete(engine: Engine) -> None:
    engine.complete(_claim(engine).handle, b"6")


def _cancel(engine: Engine) -> None:
    engine.cancel_execution(CancelExecutionArgs(execution_id=_execution(engine)))


def _replay(engine: Engine) -> None:
    engine.replay_execution(ReplayExecutionArgs(execution_id=_execution(engine)))


def _make_it_again(engine: Engine) -> None:
    """Make an execution under the id of the one that was purged, and end it."""
    (gone,) = engine.subscribe_completions(timeout=timedelta())
    again = created(engine, execution_id=gone.execution_id)
    engine.cancel_execution(CancelExecutionArgs(execution_id=again))


def _redeem(engine: Engine) -> None:
    grant = ClaimGrant(execution_id=_execution(engine), worker_id="w1", expires_at_ms=0)
    assert engine.claim_from_reclaim(ReclaimToken(grant=grant, worker_id="w1", worker_instance_id="w1"))


def _register(engine: Engine) -> None:
    engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id="w1", lanes=(LANE,)))


def _revoke(engine: Engine) -> None:
    engine.revoke_lease(RevokeLeaseArgs(execution_id=_execution(engine)))


def _another_step(engine: Engine) -> None:
    _revoke(engine)
    engine.record_step(_claim(engine).handle, "another", b"6")


def _cancel_all(engine: Engine) -> None:
    for row in engine.list_executions().executions:
        engine.cancel_execution(CancelExecutionArgs(execution_id=row.execution_id))


def _change_budgets(engine: Engine) -> None:
    """Spend from every budget, change its limits and begin its period again."""
    for row in engine.list_budgets().budgets:
        assert isinstance(row, BudgetStatus)
        engine.report_usage_admin(row.budget_id, tokens(3))
        engine.update_budget(row.budget_id, definition(1000))
        engine.reset_budget(row.budget_id)


def _create_budget(engine: Engine) -> None:
    engine.create_budget(CreateBudgetArgs(budget_id=TEAM, definition=definition(7)))


def _change_quotas(engine: Engine) -> None:
    """Change the limits of every quota policy and begin its window again."""
    for row in engine.list_quotas().policies:
        assert isinstance(row, QuotaPolicyStatus)
        engine.update_quota_policy(row.quota_policy_id, QuotaPolicy(max_concurrent=7))
        engine.reset_quota_policy(row.quota_policy_id)


def _create_quota(engine: Engine) -> None:
    engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=QUOTA, policy=QuotaPolicy(max_concurrent=7)))


def _cancel_flows(engine: Engine) -> None:
    for row in engine.list_flows(0).flows:
        assert isinstance(row, FlowSummary)
        engine.cancel_flow_header(CancelFlowArgs(flow_id=row.flow_id, policy=CancelFlowPolicy.CANCEL_ALL))


def _pass_time(engine: Engine) -> None:
    engine.set_clock(START + timedelta(minutes=7))
    while engine.run_upkeep().more:
        pass


_WAITING = (
    "create_waitpoint", "create_waitpoint: of one that closed", "create_waitpoint: that shows a document later",
    "try_satisfy: with signals that came before",
)  # fmt: skip

# The case of OPERATIONS, and what happens before its repeat.
MEANWHILE: list[tuple[str, Callable[[Engine], object]]] = [
    ("create_execution: with a key", _cancel),
    ("claim_many", lambda engine: created(engine)),
    ("claim_many", lambda engine: engine.claim_many(request())),
    ("claim_many", lambda engine: [engine.claim_many(request()) for _ in range(9)]),
    ("claim_for_worker", _redeem),
    ("complete", _replay),
    ("fail", _replay),
    ("fail: and retry", _claim_later),
    ("fail: and retry at once", _claim),
    ("cancel", _replay),
    ("release", _complete),
    ("release_many", lambda engine: engine.set_clock(START + 2 * SECOND)),
    ("delay", _claim_later),
    ("wait_children", _claim),
    ("progress", _cancel),
    ("record_step", _cancel),
    ("record_step", _another_step),
    ("cancel_execution", _replay),
    ("cancel_execution: of running work", _replay),
    (
        "change_priority",
        lambda engine: engine.change_priority(ChangePriorityArgs(execution_id=_execution(engine), priority=1)),
    ),
    ("change_priority", _claim),
    ("replay_execution", _complete),
    ("replay_execution", _cancel),
    ("revoke_lease", _claim),
    ("pause_lane", lambda engine: engine.resume_lane(LANE)),
    ("resume_lane", lambda engine: engine.pause_lane(LANE)),
    ("set_tags", lambda engine: engine.set_tags(_execution(engine), {"b": "3"})),
    ("purge", _make_it_again),
    ("register_worker", lambda engine: engine.mark_worker_dead("w1")),
    ("register_worker: again", lambda engine: engine.mark_worker_dead("w1")),
    ("mark_worker_dead", _register),
    ("tick_schedule", lambda engine: engine.pause_schedule("beat")),
    ("tick_schedule: of an unknown schedule", lambda engine: engine.pause_schedule("beat")),
    ("pause_schedule", lambda engine: engine.resume_schedule("beat")),
    ("resume_schedule", lambda engine: engine.pause_schedule("beat")),
    ("remove_schedule", lambda engine: engine.tick_schedule(beat())),
    *(
        (case, _cancel_all)
        for case in (
            "append_frame",
            "append_frame: with a number",
            "append_frame: to the summary",
            *_WAITING,
            "suspend",
            "deliver_signal",
            "deliver_approval_signal",
            "resume_execution",
            "report_usage",
            "report_usage: with a key",
            "report_usage: above a limit that suspends",
            "reserve_budget",
            "settle_budget",
            "record_spend",
        )
    ),
    *((case, _revoke) for case in _WAITING),
    *(
        (case, _pass_time)
        for case in (*_WAITING, "append_frame", "suspend", "deliver_signal", "reserve_budget", "settle_budget")
    ),
    *(
        (case, _change_budgets)
        for case in (
            "create_budget",
            "update_budget",
            "reset_budget",
            "report_usage_admin",
            "report_usage",
            "record_spend",
            "release_budget",
            "reserve_budget",
            "settle_budget",
        )
    ),
    ("delete_budget", _create_budget),
    *(
        (case, _change_quotas)
        for case in ("create_quota_policy", "update_quota_policy", "reset_quota_policy", "release_admission")
    ),
    ("delete_quota_policy", _create_quota),
    *(
        (case, _cancel_flows)
        for case in (
            "create_flow",
            "add_execution_to_flow",
            "apply_dependency_to_child",
            "set_edge_group_policy",
            "seal_flow",
            "cancel_flow",
        )
    ),
]

# What each other operation that writes leaves is named by its caller, so that its repeat finds it; or it only says that
# something is still so, of which the last call is true.
NAMED_BY_ITS_CALLER = {
    "claim", "claim_resumed_execution", "claim_from_reclaim", "complete_many", "fail_many", "create_executions",
    "create_in_batches", "create_in_transaction", "tick_schedules", "append_frames",
    "stage_dependency_edge", "link", "spawn", "submit_flow", "cancel_flow_header", "ack_cancel_member", "purge_flow",
    "check_admission", "rotate_waitpoint_hmac_secret_all",
}  # fmt: skip
STILL_SO = {
    "renew", "renew_many", "heartbeat_worker", "publish_tasks", "lead_schedules", "resign_schedules", "forward_wakeup",
    "stop_waiting", "run_upkeep", "set_clock", "prepare", "prune_libraries", "erase",
}  # fmt: skip
