"""What a call costs does not depend on how much of anything else the store holds."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import BudgetId, QuotaPolicyId
from flowfabric_worker.engine.types.budgets import CreateBudgetArgs
from flowfabric_worker.engine.types.quotas import CreateQuotaPolicyArgs, QuotaPolicy
from flowfabric_worker.engine.types.schedules import TickScheduleArgs
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from tests.support.budgets import definition
from tests.support.executions import all_created, creation, raw_client
from tests.support.flow_operations import FLOW_OPERATIONS
from tests.support.flows import graph_of
from tests.support.measuring import Measuring
from tests.support.operations import OPERATIONS, START
from tests.support.servers import ValkeyServer, running
from tests.support.suspensions import suspended

MANY = 1000
# The longest call of these cases, such as one over a page of signals, sends 125 commands.
MOST_COMMANDS = 200
# One more due entry, for example, that belongs to something else.
A_FEW = 3
# Flows of all namespaces share their ids, so these cases cannot run beside each other; test_flows_large.py has them.
SPARED = ("erase", "prepare", "prune_libraries", "shutdown_prepare")
CASES = [case for case in OPERATIONS if case.partition(":")[0] not in SPARED and case not in FLOW_OPERATIONS]


def prepared(server: ValkeyServer) -> Engine:
    engine = open_engine(f"{server.url}?prefix=z{uuid4().hex[:12]}")
    engine.prepare(testing=True)
    engine.set_clock(START)
    return engine


def fill(engine: Engine) -> None:
    """Let a store hold many of everything."""
    hour = timedelta(hours=1)
    all_created(engine, [creation(lane="b", task=f"t{n % 50}", tags={f"k{n % 99}": "v"}) for n in range(MANY)])
    all_created(engine, [creation(lane="later", delay=hour) for _ in range(MANY)])
    engine.tick_schedules(
        [TickScheduleArgs(name=f"s{n}", spec="every 1h", creation=creation(lane="b")) for n in range(MANY)]
    )
    engine.publish_tasks([TaskPublication(name=f"b.t{n}", lane="b") for n in range(MANY // 2)])
    for n in range(MANY):
        limits = definition(100, 80, reset_interval=hour)
        engine.create_budget(CreateBudgetArgs(budget_id=BudgetId(f"b{n}"), definition=limits))
        quota = QuotaPolicyId(f"q{n}")
        engine.create_quota_policy(CreateQuotaPolicyArgs(quota_policy_id=quota, policy=QuotaPolicy(max_concurrent=1)))
        engine.register_worker(RegisterWorkerArgs(worker_id="w", worker_instance_id=f"b{n}", lanes=("b",)))
        engine.submit_flow(graph_of(("a", "b"), lane="b", task="f"))
    for _ in range(MANY // 10):
        suspended(engine)


def commands(engine: Engine) -> dict[tuple[str, str], int]:
    """Return how many commands each function sent at most in each case, each case in a namespace of its own."""
    sent: dict[tuple[str, str], int] = {}
    for number, case in enumerate(CASES):
        store = Measuring(engine.store, raw_client(engine))
        tried = Engine(lambda store=store: (store, 1), namespace=f"n{number}", retry_for=0)  # type: ignore[misc]
        tried.prepare(testing=True)
        engine.set_clock(START)
        act = OPERATIONS[case](tried)
        store.commands.clear()
        act()
        sent.update({(case, function): count for function, count in store.commands.items()})
    return sent


def test_calls_send_as_many_commands_beside_much_as_beside_nothing() -> None:
    # Commands are counted by the server, so no other test may send any to this one.
    with running(ValkeyServer("--appendfsync", "no")) as server:
        empty, full = prepared(server), prepared(server)
        fill(full)
        alone, beside = commands(empty), commands(full)
        for engine in (empty, full):
            engine.close()

    more = {key: (alone[key], count) for key, count in beside.items() if count > alone[key] + A_FEW}
    assert more == {}
    assert max(beside.values()) < MOST_COMMANDS
