"""Any call may be sent again after a lost reply: it gets the same answer and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from flowfabric_worker.engine import claiming, connection, ids
from flowfabric_worker.engine import listener as listening
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.admin import ChangePriorityArgs
from flowfabric_worker.engine.types.submission import Created, Duplicate
from tests.support.dumps import dump_of
from tests.support.executions import created, creation, info_of, raw_client, raw_key
from tests.support.interference import MEANWHILE, NAMED_BY_ITS_CALLER, STILL_SO
from tests.support.lossy_store import LosingStore, empty_store_beside
from tests.support.operations import OPERATIONS, START

# What a store holds does not depend on their number, and each of them loses its replies too.
MOST_PARTITIONS = 5
ASKS_NO_STORE = ("backend_label", "capabilities", "shutdown_prepare")


def fixed_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every new id the next one of a fixed row."""
    numbers = count(1)
    for module in (claiming, connection, listening):
        monkeypatch.setattr(module, "uuid4", lambda: spread_id(next(numbers)))
    monkeypatch.setattr(type(ids.uuid7), "number", lambda _: spread_id(next(numbers)).int)
    monkeypatch.setenv("FLOWFABRIC_WAITPOINT_SECRET", "5" * 64)


def spread_id(number: int) -> UUID:
    """Return a UUIDv7 whose number is spread over all bits, so that the executions spread over the partitions."""
    value = number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128
    return UUID(int=value & ~(0xF << 76 | 0b11 << 62) | 0x7 << 76 | 0b10 << 62)


def outcome_of(
    engine: Engine,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    losing: bool,
    meanwhile: Callable[[Engine], object] = lambda _: None,
    partitions: int = MOST_PARTITIONS,
) -> tuple[Any, dict[str, Any], int]:
    """Return what an operation answers on an empty store, what the store then holds, and how many replies were lost.

    Something else happens after the operation; if its reply is lost, before it is sent again.
    """
    fixed_ids(monkeypatch)
    store = LosingStore(empty_store_beside(engine))
    tried = Engine(lambda: (store, min(engine.partitions, partitions)))
    tried.prepare(testing=True)
    tried.set_clock(START)
    act = OPERATIONS[case](tried)
    if losing:
        with store.losing(lambda: meanwhile(tried)):
            answer = act()
    else:
        answer = act()
        meanwhile(tried)
    tried.close()
    return answer, held_by(store), store.lost


def held_by(store: LosingStore) -> dict[str, Any]:
    """Return what a store holds, but for its name and when it was set up, before its clock stood.

    Nor does it count which turn a waiting worker has: one that asks again stands behind those that came meanwhile.
    """
    dump = dump_of(Engine(lambda: (store.behind, None)))
    for key, value in dump.items():
        if key.endswith(":meta"):
            del value[b"created"]
            value.pop(b"turns", None)
    return {key[key.index("{fp:") :]: value for key, value in dump.items()}


def test_the_walk_goes_through_every_operation(engine: Engine) -> None:
    walked = {case.partition(":")[0] for case in OPERATIONS}

    # A submission in a transaction of the caller is repeated with that transaction, by the caller.
    assert engine.capabilities().operations - walked == {"begin_transaction", "create_in_transaction"}


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation_whose_replies_are_lost_answers_and_does_the_same(
    engine: Engine, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, held, _ = outcome_of(engine, case, monkeypatch, losing=False)
    again, held_again, lost = outcome_of(engine, case, monkeypatch, losing=True)

    assert repr(again) == repr(answer)
    assert held_again == held
    assert lost or case in ASKS_NO_STORE


@pytest.mark.parametrize(("case", "meanwhile"), MEANWHILE)
def test_a_call_that_comes_again_leaves_what_happened_meanwhile_alone(
    engine: Engine, case: str, meanwhile: Callable[[Engine], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # In one partition: what is done in one after another is not done at one moment.
    answer, held, _ = outcome_of(engine, case, monkeypatch, losing=False, meanwhile=meanwhile, partitions=1)
    again, held_again, lost = outcome_of(engine, case, monkeypatch, losing=True, meanwhile=meanwhile, partitions=1)

    assert repr(again) == repr(answer)
    assert held_again == held
    assert lost


def test_every_operation_that_writes_is_repeated_after_another_call(engine: Engine) -> None:
    repeated = {case.partition(":")[0] for case, _ in MEANWHILE}
    waiting = {"tail_stream", "wait_for_result", "subscribe_completions", "feed_cursor", "observe_signals"}
    plain = {*ASKS_NO_STORE, *waiting, "begin_transaction", "resolve_execution_flow_id", "ping", "server_time"}
    reading = ("list_", "read_", "describe_", "explain_", "get_")
    writing = {name for name in engine.capabilities().operations if not name.startswith(reading)} - plain

    assert writing - repeated == NAMED_BY_ITS_CALLER.union(STILL_SO) & writing
    assert not repeated & NAMED_BY_ITS_CALLER.union(STILL_SO)


def test_the_last_eight_calls_of_an_execution_are_answered_again(engine: Engine) -> None:
    execution = created(engine)
    store = LosingStore(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()

    def change(times: int) -> None:
        for priority in range(times):
            engine.change_priority(ChangePriorityArgs(execution_id=execution, priority=priority))

    with store.losing(lambda: change(7)):
        tried.change_priority(ChangePriorityArgs(execution_id=execution, priority=99))
    assert info_of(engine, execution).priority == 6

    with store.losing(lambda: change(8)):
        tried.change_priority(ChangePriorityArgs(execution_id=execution, priority=99))
    assert info_of(engine, execution).priority == 99


@pytest.mark.parametrize("junk", [b"junk", b"", b"5:ab", b"1:a1:b1:c", b"1:a1:b"])
def test_a_damaged_memory_of_calls_is_begun_again(engine: Engine, junk: bytes) -> None:
    execution = created(engine)
    client, key = (
        raw_client(engine, execution.partition_number),
        raw_key(engine, execution.partition_number, f"x:{execution.uuid}"),
    )
    client.hset(key, "answered", junk)  # type: ignore[arg-type]
    store = LosingStore(engine.store)
    tried = Engine(lambda: (store, None))
    tried.prepare()

    with store.losing(lambda: engine.change_priority(ChangePriorityArgs(execution_id=execution, priority=1))):
        tried.change_priority(ChangePriorityArgs(execution_id=execution, priority=99))

    assert info_of(engine, execution).priority == 1


def test_a_creation_under_the_callers_own_id_is_repeated_by_that_id(engine: Engine) -> None:
    store = LosingStore(empty_store_beside(engine))
    tried = Engine(lambda: (store, engine.partitions))
    execution = ExecutionId.mint(tried.partitions)

    with store.losing():
        answer = tried.create_execution(creation(execution_id=execution))

    assert answer == Duplicate(execution_id=execution, same_request=True)
    assert [row.execution_id for row in tried.list_executions().executions] == [execution]


def test_an_engine_that_does_not_retry_reports_a_lost_reply_as_repeatable(engine: Engine) -> None:
    store = LosingStore(empty_store_beside(engine))
    tried = Engine(lambda: (store, engine.partitions), retry_for=0)
    tried.prepare()
    args = creation(idempotency_key="order-7")

    with store.losing(), pytest.raises(TransportError) as caught:
        tried.create_execution(args)
    answer = tried.create_execution(args)

    assert caught.value.retryable
    assert isinstance(answer, Duplicate)
    assert answer.same_request


def test_only_calls_whose_replies_were_lost_are_sent_again(engine: Engine) -> None:
    store = LosingStore(empty_store_beside(engine))
    tried = Engine(lambda: (store, engine.partitions))
    tried.prepare()

    with store.losing():
        answers = tried.create_executions([creation() for _ in range(40)])

    created = {answer.execution_id for answer in answers if isinstance(answer, Created)}
    assert len(created) == 40
    assert {row.execution_id for row in tried.list_executions().executions} == created
    assert 0 < store.lost <= engine.partitions
