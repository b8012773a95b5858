"""No call of a stored function does much at once, whatever it is about: large records, wide flows, many due moments.

Commands and bytes are counted, because seconds depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

import pytest

from flowfabric_worker.engine.engine import Engine, open_engine
from flowfabric_worker.engine.ids import BudgetId
from flowfabric_worker.engine.limits import MAX_HEADER_VALUE_BYTES, MAX_HEADERS, MAX_TAG_VALUE_BYTES, MAX_TAGS, MIB
from flowfabric_worker.engine.stores.base import CALL_TIMEOUT, Argument, Reply
from flowfabric_worker.engine.types.attempts import Completion, Failure
from flowfabric_worker.engine.types.budgets import OnHardLimit
from flowfabric_worker.engine.types.claiming import Claimed
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from tests.support.budgets import HOUR, budget, tokens
from tests.support.executions import BOOM, all_created, creation, raw_client, request, upkeep_all
from tests.support.flows import Run, graph_of
from tests.support.lossy_store import LosingStore
from tests.support.operations import START
from tests.support.servers import ValkeyServer

# A full call of work uses 300, and its last item and the indexes some more.
MOST_COMMANDS = 500
MOST_BYTES = 4 * MIB
TAGS = {f"tag {number}": "x" * MAX_TAG_VALUE_BYTES for number in range(MAX_TAGS)}
HEADERS = {f"header {number}": "x" * MAX_HEADER_VALUE_BYTES for number in range(MAX_HEADERS)}


def size_of(value: object) -> int:
    """Return how many bytes a reply has."""
    if isinstance(value, list | tuple):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, bytes) else 8


class Measuring(LosingStore):
    """A store that keeps the most commands that a call of each function sent, and the most bytes that it replied."""

    def __init__(self, behind: Any, client: Any) -> None:
        super().__init__(behind)
        self.client = client
        self.commands: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def call(
        self, function: str, partition: int, arguments: Sequence[Argument], timeout: float = CALL_TIMEOUT
    ) -> Reply:
        before = self._sent()
        reply = super().call(function, partition, arguments, timeout)
        self.commands[function] = max(self.commands.get(function, 0), self._sent() - before)
        self.bytes[function] = max(self.bytes.get(function, 0), size_of(reply))
        return reply

    def _sent(self) -> int:
        stats = self.client.info("commandstats").items()
        return sum(int(stat["calls"]) for name, stat in stats if "fcall" not in name and name != "cmdstat_info")


@pytest.fixture
def measured(valkey: ValkeyServer) -> Iterator[Engine]:
    """Provide an engine on a server, whose calls are measured."""
    behind = open_engine(f"{valkey.url}?prefix=m{uuid4().hex[:12]}")
    store = Measuring(behind.store, raw_client(behind))
    engine = Engine(lambda: (store, None))
    engine.prepare(testing=True)
    engine.set_clock(START)
    yield engine
    behind.close()


def claimed_all(engine: Engine, *lanes: str) -> list[Claimed]:
    """Claim everything that is ready, by one request after the other."""
    claimed: list[Claimed] = []
    while more := engine.claim_many(request(*lanes, limit=100, lease=10 * HOUR)):
        claimed += more
    return claimed


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


def many_topics_that_wait_for_each_end(engine: Engine) -> None:
    ids = all_created(engine, [creation() for _ in range(50)])
    for number in range(64):
        topic = [f"topic {number}", engine.packed_lane("")[:9], *(each.uuid for each in ids)]
        engine.store.call("watch_executions", 0, topic)
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


@pytest.mark.parametrize(
    "use",
    [
        tags_at_the_limit,
        headers_at_the_limit,
        many_topics_that_wait_for_each_end,
        flows_to_remove,
        flow_to_purge,
        budgets_that_are_reset_at_once,
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
    taken: list[int] = []
    send = measured.store.call

    def call(function: str, *arguments: Any) -> Reply:
        reply = send(function, *arguments)
        if function == "claim_many":
            taken.append(len(reply[3]))
        return reply

    measured.store.call = call  # type: ignore[method-assign]

    assert len(claimed_all(measured)) == count
    assert 1 <= max(taken) <= most
