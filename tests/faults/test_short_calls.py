"""No call of a stored function does much at once, whatever it is about: large records, wide flows, many due moments.

Commands and bytes are counted, because seconds depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import islice

import pytest

from flowfabric_worker.engine.batches import Item
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import BudgetId, ExecutionId, QuotaPolicyId
from flowfabric_worker.engine.limits import (
    MAX_BUDGET_DIMENSIONS,
    MAX_HEADER_VALUE_BYTES,
    MAX_HEADERS,
    MAX_TAG_VALUE_BYTES,
    MAX_TAGS,
    MIB,
)
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.budgets import BudgetDimension, CreateBudgetArgs, OnHardLimit, UsageDimensions
from flowfabric_worker.engine.types.conditions import AllOf, Count, CountKind
from flowfabric_worker.engine.types.flows import CancelFlowPolicy, CancelFlowWait
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.engine.types.submission import Duplicate
from flowfabric_worker.engine.types.suspension import SignalSource, SuspendArgs, Suspended, WaitpointBinding
from flowfabric_worker.engine.wire import pack
from tests.support.budgets import HOUR, budget, definition, tokens
from tests.support.executions import BOOM, all_created, creation, request, upkeep_all
from tests.support.flows import Run, graph_of
from tests.support.measuring import Measuring, claimed_all, noted
from tests.support.operations import START
from tests.support.streams import append_all, frame, read_all
from tests.support.suspensions import signal
from tests.support.waiters import known_class, register, registered

# A full call uses 300, and twice as many if what it must handle is large.
MOST_COMMANDS = 600
MOST_BYTES = 4 * MIB
TAGS = {f"tag {number}": "x" * MAX_TAG_VALUE_BYTES for number in range(MAX_TAGS)}
HEADERS = {f"header {number}": "x" * MAX_HEADER_VALUE_BYTES for number in range(MAX_HEADERS)}


def complete_all(engine: Engine, *lanes: str) -> None:
    """Run everything that is ready, and what becomes ready by it."""
    while claimed := claimed_all(engine, *lanes):
        assert not any(engine.complete_many([Completion(handle=each.handle) for each in claimed]))
        upkeep_all(engine)


def tags_at_the_limit(engine: Engine) -> None:
    all_created(engine, [creation(tags=TAGS) for _ in range(90)])
    claimed = claimed_all(engine)
    engine.renew_many([each.handle for each in claimed])
    engine.complete_many([Completion(handle=each.handle) for each in claimed])
    ends = list(islice(engine.subscribe_completions("0=0-0", timeout=timedelta()), 100))
    assert len(claimed) == len(ends) == 90
    assert {tuple(each.tags.items()) for each in ends} == {tuple(sorted(TAGS.items()))}


def headers_at_the_limit(engine: Engine) -> None:
    all_created(engine, [creation(headers=HEADERS) for _ in range(12)])
    claimed = claimed_all(engine)
    assert [each.headers for each in claimed] == [HEADERS] * 12


def let_topics_watch(engine: Engine, ids: Sequence[ExecutionId]) -> None:
    """Let as many topics wait for each execution as may."""
    for number in range(64):
        left = list(ids)
        while left:
            watched: Item = [f"topic {number}", pack((engine.namespace,)), *(each.uuid for each in left)]
            replies = engine.store.call("watch_executions", 0, watched)
            left = [each for each, (word,) in zip(left, replies, strict=True) if word == b"left"]


def many_topics_that_wait_for_each_end(engine: Engine) -> None:
    ids = all_created(engine, [creation() for _ in range(50)])
    let_topics_watch(engine, ids)
    complete_all(engine)


def flows_to_remove(engine: Engine) -> None:
    for _ in range(40):
        engine.submit_flow(graph_of(*((("a", f"b{number}")) for number in range(20))))
    upkeep_all(engine)
    complete_all(engine)
    engine.set_clock(START + 48 * HOUR)
    assert engine.claim_many(request("nothing")) == []
    upkeep_all(engine)
    assert engine.list_flows(0).flows == ()


def flow_to_purge(engine: Engine) -> None:
    run = Run(engine, graph_of(*((("a", f"b{number}")) for number in range(200))))
    complete_all(engine)
    engine.purge_flow(run.flow_id)
    assert engine.list_executions().executions == ()


def members_that_many_wait_for(engine: Engine) -> None:
    run = Run(engine, graph_of(*(("a", f"b{number}") for number in range(60)), task="step", tags=TAGS))
    let_topics_watch(engine, list(run.ids.values()))
    engine.cancel_flow(run.flow_id, CancelFlowPolicy.CANCEL_ALL, CancelFlowWait(None))
    upkeep_all(engine)
    assert run.counts() == {"cancelled": 61}


def budgets_that_are_reset_at_once(engine: Engine) -> None:
    for number in range(30):
        name = BudgetId(f"budget {number}")
        budget(engine, 1, name=name, on_hard_limit=OnHardLimit.BLOCK, reset_interval=HOUR)
        policy = ExecutionPolicy(budget_ids=(name,))
        all_created(engine, [creation(lane=f"lane {number}", policy=policy) for _ in range(20)])
        for each in claimed_all(engine, f"lane {number}"):
            engine.report_usage(each.handle, name, tokens(1))
    engine.set_clock(START + HOUR)
    assert engine.claim_many(request("nothing")) == []
    upkeep_all(engine)


def executions_that_wait_for_a_budget(engine: Engine) -> None:
    name = budget(engine, 1, on_hard_limit=OnHardLimit.SUSPEND)
    all_created(engine, [creation(policy=ExecutionPolicy(budget_ids=(name,))) for _ in range(60)])
    for each in claimed_all(engine):
        engine.report_usage(each.handle, name, tokens(1))
    engine.update_budget(name, definition(1000, on_hard_limit=OnHardLimit.SUSPEND))
    upkeep_all(engine)
    assert len(claimed_all(engine)) == 59


def classes_of_one_quota(engine: Engine) -> None:
    quota = QuotaPolicyId("quota")
    engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=quota, policy=QuotaPolicy(max_concurrent=1)))
    policy = ExecutionPolicy(quota_policy_id=quota)
    all_created(engine, [creation(task=f"task {number}", policy=policy) for number in range(600)])
    (held,) = engine.claim_many(request())
    (lane,) = engine.list_lanes().lanes
    assert lane.depths[PublicState.RATE_LIMITED] == 599
    # While a worker waits for other work, the end looks for work behind the quota.
    engine.store.call("read_feed", 0, ["", 1, "waiter", 10_000, ""])
    engine.complete(held.handle)
    engine.update_quota_policy(quota, QuotaPolicy(max_concurrent=1000))
    complete_all(engine)
    engine.delete_quota_policy(quota)
    engine.set_clock(START + 2 * HOUR)
    upkeep_all(engine)


def children_that_a_wait_counts(engine: Engine) -> None:
    all_created(engine, [creation()])
    (parent,) = claimed_all(engine)
    for number in range(300):
        engine.spawn(parent.handle, f"child {number}", creation(lane="children"))
    engine.spawn(parent.handle, "detached", creation(lane="other"), detached=True)
    engine.wait_children(parent.handle)
    complete_all(engine, "children")
    assert [each.execution_id for each in claimed_all(engine)] == [parent.execution_id]


def signals_that_many_counts_count(engine: Engine) -> None:
    all_created(engine, [creation()])
    (held,) = claimed_all(engine)
    waitpoint = engine.create_waitpoint(held.handle, "go", HOUR)
    for number in range(100):
        signal(engine, held.execution_id, waitpoint, source=SignalSource("user", f"user {number}"))
    counts = [Count(n=200, kind=CountKind.SOURCES, waitpoint_keys=["go"]) for _ in range(30)]
    binding = WaitpointBinding(waitpoint_key="go", pending=waitpoint.waitpoint_id)
    outcome = engine.suspend(held.handle, SuspendArgs(condition=AllOf(counts), waitpoints=[binding]))
    assert isinstance(outcome, Suspended)


def many_workers_that_wait(engine: Engine) -> None:
    known_class(engine)
    waiters = register(engine, 0, 200, heard=False)
    all_created(engine, [creation(task="new to all of them")])
    assert len(waiters) == 200
    assert registered(Engine(lambda: (engine.store.behind, None))) == 0


@pytest.mark.parametrize(
    "use",
    [
        tags_at_the_limit,
        headers_at_the_limit,
        many_topics_that_wait_for_each_end,
        flows_to_remove,
        flow_to_purge,
        members_that_many_wait_for,
        budgets_that_are_reset_at_once,
        executions_that_wait_for_a_budget,
        classes_of_one_quota,
        children_that_a_wait_counts,
        signals_that_many_counts_count,
        many_workers_that_wait,
    ],
)
def test_no_call_sends_many_commands_or_replies_many_bytes(measured: Engine, use: Callable[[Engine], None]) -> None:
    use(measured)

    store = measured.store
    assert isinstance(store, Measuring)
    assert {name: count for name, count in store.commands.items() if count > MOST_COMMANDS} == {}
    assert {name: size for name, size in store.bytes.items() if size > MOST_BYTES} == {}


def with_past_attempts(engine: Engine) -> None:
    """Let executions have as many past attempts as a record keeps."""
    retry = RetryPolicy(max_retries=200, backoff="fixed", initial=timedelta())
    all_created(engine, [creation(policy=ExecutionPolicy(retry=retry)) for _ in range(12)])
    for _ in range(100):
        failures = [
            Failure(handle=each.handle, reason=BOOM, classification=FailureClass.TIMEOUT)
            for each in claimed_all(engine)
        ]
        engine.fail_many(failures)


def with_full_journals(engine: Engine) -> None:
    """Let executions have as many steps as a journal may have."""
    all_created(engine, [creation() for _ in range(4)])
    claimed = claimed_all(engine)
    for each in claimed:
        for number in range(1000):
            engine.record_step(each.handle, f"step {number}", b"")
    engine.release_many([each.handle for each in claimed])


@pytest.mark.parametrize(("arrange", "count", "most"), [(with_past_attempts, 12, 9), (with_full_journals, 4, 2)])
def test_work_with_a_long_past_is_claimed_a_few_at_a_time(
    measured: Engine, arrange: Callable[[Engine], None], count: int, most: int
) -> None:
    arrange(measured)
    taken = noted(measured, "claim_many", lambda reply: len(reply[3]))

    assert len(claimed_all(measured)) == count
    assert 1 <= max(taken) <= most


def full_budgets(engine: Engine, count: int) -> tuple[BudgetId, ...]:
    """Create budgets that count as many dimensions as a budget may have."""
    names = [f"dimension {number}" for number in range(MAX_BUDGET_DIMENSIONS)]
    dimensions = [BudgetDimension(name=name, hard_limit=1000) for name in names]
    ids = tuple(BudgetId(f"budget {number:02}") for number in range(count))
    for each in ids:
        engine.create_budget(CreateBudgetArgs(budget_id=each, definition=definition(dimensions=dimensions)))
        engine.report_usage_admin(each, UsageDimensions(custom=dict.fromkeys(names, 1)))
    return ids


def test_budgets_of_many_dimensions_are_listed_a_few_at_a_time(measured: Engine) -> None:
    ids = full_budgets(measured, 40)
    rows = noted(measured, "list_budgets", lambda reply: len(reply) - 1)

    assert [each.budget_id for each in measured.list_budgets().budgets] == list(ids)
    assert max(rows) <= 10


def test_work_under_many_budgets_is_claimed_many_at_a_time(measured: Engine) -> None:
    ids = full_budgets(measured, 110)
    policies = [ExecutionPolicy(budget_ids=ids[at : at + 20]) for at in range(0, 95, 5)]
    all_created(measured, [creation(task=f"task {n}", policy=each) for n, each in enumerate(policies)] * 3)
    taken = noted(measured, "claim_many", lambda reply: len(reply[3]))

    assert len(claimed_all(measured)) == 57
    # The first claim also reads the budgets, and later ones only see that they are as they were.
    assert min(taken[1:-2], default=57) >= 20


def test_frames_are_read_a_few_at_a_time(measured: Engine) -> None:
    all_created(measured, [creation()])
    (held,) = claimed_all(measured)
    append_all(measured, held.handle, [frame(b"x") for _ in range(500)])
    counts = noted(measured, "read_stream", lambda reply: len(reply[11]))

    assert len(read_all(measured, held.execution_id).frames) == 500
    assert max(counts) <= 200


def test_large_executions_under_keys_are_compared_a_few_at_a_time(measured: Engine) -> None:
    keys = [str(number) for number in range(12)]
    all_created(measured, [creation(payload=b"x" * MIB, idempotency_key=key) for key in keys])
    compared = noted(measured, "create_executions", lambda reply: sum(item[0] == b"duplicate" for item in reply))

    results = measured.create_executions([creation(payload=b"y", idempotency_key=key) for key in keys])

    assert all(isinstance(each, Duplicate) and not each.same_request for each in results)
    assert max(compared) <= 4
