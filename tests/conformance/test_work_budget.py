"""What one call may do: its items, commands and bytes are bounded, and what is left over goes out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import redis

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.limits import MAX_CALL_ITEMS, MAX_CALL_ROWS, MIB
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Call, Reply
from flowfabric_worker.engine.types.attempts import Completion
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy
from flowfabric_worker.engine.types.reads import ExecutionFilter
from flowfabric_worker.engine.types.schedules import TickScheduleArgs
from flowfabric_worker.engine.types.submission import Created, CreateExecutionArgs
from flowfabric_worker.engine.types.workers import RegisterWorkerArgs, TaskPublication
from tests.conftest import Clock
from tests.support.executions import LANE, all_created, creation, damage, raw_client, raw_key, request
from tests.support.lossy_store import LosingStore
from tests.support.measuring import commands_run

# Calls that carry many items, with the arguments of one; and how many commands one call may send besides.
WIDTHS = {"create_executions": 8, "complete_many": 3, "fail_many": 7, "release_many": 3, "renew_many": 3}
MOST_COMMANDS = 600
# How many commands one claim may send, whatever the classes hold that it asks for.
MOST_CLAIM_COMMANDS = 400
# Listings whose replies are one word and the rows.
LISTINGS = ("list_lanes", "list_workers", "list_tasks", "list_schedules", "list_damaged")


class Counting(LosingStore):
    """A store that counts the items of each call, and the commands that each function sends."""

    def __init__(self, store: Any, client: Any) -> None:
        super().__init__(store)
        self.client = client
        self.items: list[int] = []
        self.together: list[int] = []
        self.commands: list[int] = []
        self.claim_commands: list[int] = []
        self.listing_commands: list[int] = []

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        before = self._sent()
        reply = super().call(function, partition, arguments, timeout)
        self.commands.append(self._sent() - before)
        if function in (*LISTINGS, "list_classes"):
            self.listing_commands.append(self.commands[-1])
        if function == "claim_many":
            self.claim_commands.append(self.commands[-1])
        self._note(function, arguments, reply)
        return reply

    def call_many(self, calls: Sequence[Call], timeout: float = CALL_TIMEOUT) -> list[Any]:
        self.together.append(sum(len(each.arguments) // WIDTHS.get(each.function, 1) for each in calls))
        return super().call_many(calls, timeout)

    def _note(self, function: str, arguments: Sequence[Argument], reply: Reply) -> None:
        if function in WIDTHS:
            self.items.append(len(arguments) // WIDTHS[function])
        elif function == "claim_many":
            self.items.append(len(reply[3]))
        elif function == "list_executions":
            self.items.append(len(reply) - 3)
        elif function == "list_classes":
            self.items.append(sum(len(row[1]) for row in reply if row))
        elif function == "read_feed" or function in LISTINGS:
            self.items.append(len(reply) - 1)

    def _sent(self) -> int:
        try:
            return commands_run(self.client)
        except redis.ResponseError:  # fakeredis keeps no statistics
            return 0


@pytest.fixture
def counting(engine: Engine) -> Engine:
    store = Counting(engine.store, raw_client(engine))
    tried = Engine(lambda: (store, None))
    tried.prepare()
    return tried


def test_a_large_batch_goes_out_in_bounded_calls(counting: Engine) -> None:
    counting.create_executions([creation() for _ in range(500)])
    claimed = counting.claim_many(request(limit=500))
    while len(claimed) < 500:
        claimed += counting.claim_many(request(limit=500 - len(claimed)))
    assert counting.renew_many([each.handle for each in claimed])
    assert counting.complete_many([Completion(handle=each.handle) for each in claimed]) == [None] * 500

    store = counting.store
    assert isinstance(store, Counting)
    assert max(store.items, default=0) <= MAX_CALL_ITEMS
    assert max(store.together, default=0) <= MAX_CALL_ITEMS
    assert max(store.commands, default=0) <= MOST_COMMANDS


def test_large_payloads_go_out_a_few_at_a_time(counting: Engine) -> None:
    counting.create_executions([creation(payload=bytes(MIB)) for _ in range(12)])
    claimed = counting.claim_many(request(limit=12))
    while len(claimed) < 12:
        claimed += counting.claim_many(request(limit=12))

    store = counting.store
    assert isinstance(store, Counting)
    assert max(store.items) <= 3


def test_a_backlog_of_removals_and_timers_keeps_every_call_short(counting: Engine, clock: Clock) -> None:
    kept = ExecutionPolicy(retention=timedelta(seconds=1))
    for _ in range(3):
        counting.create_executions([creation(policy=kept) for _ in range(200)])
        counting.create_executions([creation(delay=timedelta(seconds=2), policy=kept) for _ in range(200)])
        claimed = counting.claim_many(request(limit=200))
        counting.complete_many([Completion(handle=each.handle) for each in claimed])
        clock.move(timedelta(seconds=3))
    while counting.run_upkeep().more:
        pass

    store = counting.store
    assert isinstance(store, Counting)
    assert max(store.items) <= MAX_CALL_ITEMS
    assert max(store.commands, default=0) <= MOST_COMMANDS


def test_a_listing_reads_large_records_a_few_at_a_time_and_all_of_them(counting: Engine) -> None:
    tags = {f"tag {number}": "x" * 1024 for number in range(60)}
    counting.create_executions([creation(tags=tags) for _ in range(150)])
    store = counting.store
    assert isinstance(store, Counting)
    store.items, store.commands = [], []

    page = counting.list_executions(limit=1000, filter=ExecutionFilter(lane=LANE))

    assert (len(page.executions), page.next_cursor, sum(store.items)) == (150, None, 150)
    assert max(store.items) <= 50
    assert max(store.commands, default=0) <= MOST_COMMANDS


def test_the_feed_is_read_a_few_ends_at_a_time_if_they_have_large_tags(counting: Engine) -> None:
    tags = {f"tag {number}": "x" * 1024 for number in range(60)}
    counting.create_executions([creation(tags=tags) for _ in range(100)])
    while claimed := counting.claim_many(request(limit=100)):
        counting.complete_many([Completion(handle=each.handle) for each in claimed])
    store = counting.store
    assert isinstance(store, Counting)
    store.items = []

    ends = list(counting.subscribe_completions("0=0-0", timeout=timedelta()))

    assert len({each.execution_id for each in ends}) == len(ends) == 100
    assert max(store.items) <= 50


def pause_lanes(engine: Engine) -> int:
    for number in range(450):
        engine.pause_lane(f"lane {number}")
    return len(engine.list_lanes(limit=1000).lanes)


def register_large_workers(engine: Engine) -> int:
    tasks = tuple(f"{number:0200}" for number in range(250))
    for number in range(100):
        engine.register_worker(RegisterWorkerArgs(worker_id="pool", worker_instance_id=f"{number}", tasks=tasks))
    return len(engine.list_workers(limit=1000).workers)


def publish_tasks(engine: Engine) -> int:
    engine.publish_tasks([TaskPublication(name=f"task {number}", lane=LANE) for number in range(450)])
    return len(engine.list_tasks(limit=1000).tasks)


def register_schedules(engine: Engine) -> int:
    engine.tick_schedules(
        [TickScheduleArgs(name=f"schedule {number}", spec="every 1m", creation=creation()) for number in range(450)]
    )
    return len(engine.list_schedules(limit=1000).schedules)


def damage_executions(engine: Engine) -> int:
    made = engine.create_executions([creation() for _ in range(450)])
    store = engine.store
    assert isinstance(store, Counting)
    behind = Engine(lambda: (store.behind, None))
    for each in made:
        assert isinstance(each, Created)
        damage(behind, each.execution_id, "priority", b"high")
    assert engine.claim_many(request(limit=500)) == []
    while len(engine.list_damaged(limit=1000).executions) < 450:
        engine.claim_many(request(limit=500))
    return len(engine.list_damaged(limit=1000).executions)


def claim_from_many_classes(engine: Engine) -> int:
    engine.create_executions([creation(task=f"task {number}") for number in range(450)])
    claimed = engine.claim_many(request(limit=500))
    while len(claimed) < 450:
        claimed += engine.claim_many(request(limit=500))
    return len(claimed)


@pytest.mark.parametrize(
    ("list_all", "count"),
    [
        (pause_lanes, 450),
        (register_large_workers, 100),
        (publish_tasks, 450),
        (register_schedules, 450),
        (damage_executions, 450),
        (claim_from_many_classes, 450),
    ],
)
def test_a_listing_reads_all_rows_in_calls_of_bounded_length(
    counting: Engine, list_all: Callable[[Engine], int], count: int
) -> None:
    store = counting.store
    assert isinstance(store, Counting)

    assert list_all(counting) == count
    assert max(store.items) <= (60 if list_all is register_large_workers else MAX_CALL_ROWS)
    assert max(store.listing_commands, default=0) <= MOST_COMMANDS


TASKS = [f"task {number:02}" for number in range(64)]


def of_all_tasks(each: int, **changes: Any) -> list[CreateExecutionArgs]:
    return [creation(task=task, **changes) for task in TASKS for _ in range(each)]


def one_hot_class(engine: Engine, clock: Clock) -> set[ExecutionId]:
    """Put most of the work of 64 classes into one of them, at the head of all."""
    del clock
    hot = all_created(engine, [creation(task=TASKS[7], priority=5) for _ in range(200)])
    return {*hot, *all_created(engine, of_all_tasks(9))}


def ended_heads(engine: Engine, clock: Clock) -> set[ExecutionId]:
    """Put work in front that ends as soon as a claim finds it: its reclaims are used up."""
    policy = ExecutionPolicy(max_reclaim_count=0, retention=timedelta(seconds=1))
    dead = all_created(engine, of_all_tasks(4, policy=policy))
    assert {each.execution_id for each in claimed_all(engine)} == set(dead)
    clock.move(timedelta(minutes=1))
    while engine.run_upkeep().more:
        pass
    return set(all_created(engine, of_all_tasks(2)))


def stale_heads(engine: Engine, clock: Clock) -> set[ExecutionId]:
    """Put entries in front whose records are gone."""
    del clock
    behind = all_created(engine, of_all_tasks(2))
    gone = all_created(engine, of_all_tasks(4, priority=5))
    for each in gone:
        raw_client(engine, each.partition_number).delete(raw_key(engine, each.partition_number, f"x:{each.uuid}"))
    return set(behind)


def claimed_all(engine: Engine) -> list[Claimed]:
    """Claim until nothing is left."""
    claimed: list[Claimed] = []
    while more := engine.claim_many(request(limit=100)):
        claimed += more
    return claimed


@pytest.mark.parametrize("arrange", [one_hot_class, ended_heads, stale_heads])
def test_a_claim_over_many_classes_sends_few_commands_and_finds_all(
    counting: Engine, clock: Clock, arrange: Callable[[Engine, Clock], set[ExecutionId]]
) -> None:
    store = counting.store
    assert isinstance(store, Counting)
    work = arrange(Engine(lambda: (store.behind, None)), clock)

    claimed = claimed_all(counting)

    assert {each.execution_id for each in claimed} == work
    assert max(store.claim_commands) <= MOST_CLAIM_COMMANDS
    for partition in range(counting.partitions):
        here = [each for each in claimed if each.execution_id.partition_number == partition]
        assert [each.priority for each in here] == sorted((each.priority for each in here), reverse=True)


def test_waiting_for_many_classes_sends_few_commands(counting: Engine) -> None:
    store = counting.store
    assert isinstance(store, Counting)
    tasks = [f"task {number}" for number in range(1000)]
    all_created(counting, [creation(task=task, delay=timedelta(hours=1)) for task in tasks])
    store.claim_commands = []

    assert counting.claim_many(request(max_wait=timedelta(milliseconds=500))) == []

    assert max(store.claim_commands) <= MOST_CLAIM_COMMANDS
