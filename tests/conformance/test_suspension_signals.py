"""Signals: which of them count, which are repeats, how many there may be, and what a race of them does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.ids import ExecutionId, SignalId
from flowfabric_worker.engine.limits import MAX_OPEN_WAITPOINTS, MAX_WAITPOINTS, Limits
from flowfabric_worker.engine.types.admin import CancelExecutionArgs
from flowfabric_worker.engine.types.conditions import AllOf, Count, CountKind, SignalMatcher, Single
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    SignalAccepted,
    SignalDuplicate,
    SignalEffect,
    SignalSource,
    Suspended,
    TimeoutBehavior,
)
from tests.conftest import Clock
from tests.support.dumps import Dump
from tests.support.executions import LANE, claim_one, claimed_ids, info_of, raw_client, raw_key, refused, running
from tests.support.suspension_operations import approval
from tests.support.suspensions import MINUTE, SECOND, signal, suspend, suspended, waiting_for

RESUMED = SignalEffect.RESUME_CONDITION_SATISFIED
APPENDED = SignalEffect.APPENDED_TO_WAITPOINT
MILLISECOND = timedelta(milliseconds=1)


def effects(*answers: Any) -> list[Any]:
    return [getattr(answer, "effect", answer) for answer in answers]


# Repeats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["resumed", "cancelled", "completed", "while it waits"])
def test_a_signal_under_a_known_key_is_a_duplicate_of_the_first(engine: Engine, dump: Dump, then: str) -> None:
    condition = Count(n=1 if then in ("resumed", "completed") else 2, kind=CountKind.SIGNALS, waitpoint_keys=["go"])
    execution, waitpoint = suspended(engine, condition=condition)
    first = signal(engine, execution, waitpoint, idempotency_key="k")
    assert isinstance(first, SignalAccepted)
    if then == "cancelled":
        engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
    if then == "completed":
        engine.complete(claim_one(engine).handle)
    before = dump()

    again = signal(engine, execution, waitpoint, "other", payload=b"other", idempotency_key="k")

    assert again == SignalDuplicate(existing_signal_id=first.signal_id)
    assert dump() == before


def test_a_key_with_a_wrong_token_is_refused_before_it_is_looked_up(engine: Engine) -> None:
    execution, waitpoint = suspended(engine)
    signal(engine, execution, waitpoint, idempotency_key="k")

    with refused("invalid_token"):
        signal(engine, execution, waitpoint, token="k1:" + "0" * 64, idempotency_key="k")


def test_a_signal_that_was_buffered_is_a_duplicate_after_the_suspension(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    signal(engine, claimed.execution_id, pending, "no", idempotency_key="k")
    suspend(engine, claimed, "go", condition=Single("go", SignalMatcher("go")))

    assert isinstance(signal(engine, claimed.execution_id, pending, idempotency_key="k"), SignalDuplicate)
    assert effects(signal(engine, claimed.execution_id, pending, idempotency_key="k2")) == [RESUMED]


def test_a_key_belongs_to_its_waitpoint_and_is_forgotten_after_its_window(engine: Engine, clock: Clock) -> None:
    claimed = running(engine, lane=LANE)
    condition = Count(n=4, kind=CountKind.SIGNALS, waitpoint_keys=["a", "b"])
    a, b = suspend(engine, claimed, "a", "b", condition=condition)
    execution = claimed.execution_id

    assert effects(signal(engine, execution, a, idempotency_key="k", dedup_window=SECOND)) == [APPENDED]
    assert effects(signal(engine, execution, b, idempotency_key="k", dedup_window=SECOND)) == [APPENDED]
    clock.move(SECOND - MILLISECOND)
    assert isinstance(signal(engine, execution, a, idempotency_key="k"), SignalDuplicate)
    clock.move(MILLISECOND)
    assert effects(signal(engine, execution, a, idempotency_key="k", dedup_window=timedelta())) == [APPENDED]
    assert effects(signal(engine, execution, a, idempotency_key="k")) == [RESUMED]
    clock.move(60 * 24 * MINUTE)
    assert isinstance(signal(engine, execution, b, idempotency_key="k"), SignalDuplicate)


def test_a_signal_under_a_known_id_is_a_duplicate_without_a_key(engine: Engine) -> None:
    condition = Count(n=2, kind=CountKind.SIGNALS, waitpoint_keys=["go"])
    execution, waitpoint = suspended(engine, condition=condition)
    signal(engine, execution, waitpoint, signal_id=SignalId("s1"))

    again = signal(engine, execution, waitpoint, signal_id=SignalId("s1"))

    assert again == SignalDuplicate(existing_signal_id=SignalId("s1"))
    assert info_of(engine, execution).public_state == "suspended"


# Counting -------------------------------------------------------------------------------------------------------------


def test_a_repeated_match_is_appended_and_does_not_count_again(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    a, b = suspend(engine, claimed, "a", "b")

    answers = [signal(engine, claimed.execution_id, each) for each in (a, a, b)]

    assert effects(*answers) == [APPENDED, APPENDED, RESUMED]


def test_each_count_counts_for_itself(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    condition = AllOf(
        [
            Count(n=2, kind=CountKind.SOURCES, waitpoint_keys=["go"], matcher=SignalMatcher("approve")),
            Count(n=1, kind=CountKind.SOURCES, waitpoint_keys=["go"], matcher=SignalMatcher("legal")),
        ]
    )
    (go,) = suspend(engine, claimed, "go", condition=condition)
    senders = [("approve", "ann"), ("approve", "bob"), ("approve", "ann"), ("legal", "ann")]

    answers = [
        signal(engine, claimed.execution_id, go, name, source=SignalSource("user", who)) for name, who in senders
    ]

    assert effects(*answers) == [APPENDED, APPENDED, APPENDED, RESUMED]


def test_sources_of_two_types_are_two(engine: Engine) -> None:
    execution, go = suspended(engine, condition=Count(n=2, kind=CountKind.SOURCES, waitpoint_keys=["go"]))

    answers = [signal(engine, execution, go, source=SignalSource(kind, "x")) for kind in ("user", "user", "system")]

    assert effects(*answers) == [APPENDED, APPENDED, RESUMED]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_nested_condition_resumes_on_its_last_signal(engine: Engine, depth: int) -> None:
    condition: Any = AllOf([Single("a"), Single("b")])
    for _ in range(depth - 1):
        condition = AllOf([condition])
    claimed = running(engine, lane=LANE)
    a, b = suspend(engine, claimed, "a", "b", condition=condition)

    answers = [signal(engine, claimed.execution_id, each) for each in (b, a)]

    assert effects(*answers) == [APPENDED, RESUMED]


# Limits ---------------------------------------------------------------------------------------------------------------


def test_the_cap_of_signals_is_fixed_at_creation(engine: Engine, clock: Clock) -> None:
    strict = Engine(lambda: (engine.store, None), limits=Limits(signals_per_execution=3))
    claimed = running(strict, lane=LANE)
    behavior = TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
    condition = Single("a", SignalMatcher("never"))
    (a,) = suspend(engine, claimed, "a", condition=condition, timeout=MINUTE, timeout_behavior=behavior)
    first = signal(engine, claimed.execution_id, a, idempotency_key="k")
    for _ in range(2):
        signal(engine, claimed.execution_id, a)

    with refused("signal_limit_exceeded") as caught:
        signal(engine, claimed.execution_id, a)

    assert (caught.value.retryable, caught.value.details["limit"]) == (False, "3")
    assert isinstance(first, SignalAccepted)
    again = signal(engine, claimed.execution_id, a, idempotency_key="k")
    assert again == SignalDuplicate(existing_signal_id=first.signal_id)
    clock.move(MINUTE)
    assert claimed_ids(engine) == [claimed.execution_id]


def test_a_suspension_takes_64_waitpoints_and_no_more(engine: Engine) -> None:
    keys = [f"w{number}" for number in range(MAX_WAITPOINTS + 1)]
    claimed = running(engine, lane=LANE)
    with refused("invalid_input"):
        engine.suspend(claimed.handle, waiting_for(*keys))

    outcome = engine.suspend(claimed.handle, waiting_for(*keys[1:]))

    assert isinstance(outcome, Suspended)
    answers = [signal(engine, claimed.execution_id, each) for each in outcome.details.waitpoints]
    assert effects(*answers) == [APPENDED] * 63 + [RESUMED]


def test_an_execution_has_1000_open_waitpoints_and_no_more(engine: Engine, clock: Clock, dump: Dump) -> None:
    claimed = running(engine, lane=LANE, lease=10 * MINUTE)
    for number in range(MAX_OPEN_WAITPOINTS):
        engine.create_waitpoint(claimed.handle, f"w{number}", MINUTE if number else SECOND)
    before = dump()
    with refused("too_many_waitpoints"):
        engine.create_waitpoint(claimed.handle, "more", MINUTE)
    with refused("too_many_waitpoints"):
        engine.suspend(claimed.handle, waiting_for("more"))
    assert dump() == before
    assert engine.create_waitpoint(claimed.handle, "w7", MINUTE).waitpoint_key == "w7"

    clock.move(SECOND)

    assert engine.create_waitpoint(claimed.handle, "more", MINUTE).waitpoint_key == "more"
    seen, cursor = 0, None
    while True:
        page = engine.list_pending_waitpoints(claimed.execution_id, cursor, 300)
        seen, cursor = seen + len(page.waitpoints), page.next_cursor
        if cursor is None:
            break
    assert seen == MAX_OPEN_WAITPOINTS


def cost_of(engine: Engine, deliveries: int, execution: ExecutionId, waitpoint: Any) -> float:
    """Return the shortest time that a delivery takes, in seconds."""
    shortest = 1.0
    for _ in range(deliveries):
        began = time.perf_counter()
        signal(engine, execution, waitpoint)
        shortest = min(shortest, time.perf_counter() - began)
    return shortest


def test_the_last_of_many_signals_costs_what_the_first_did(engine: Engine) -> None:
    execution, waitpoint = suspended(engine, condition=Count(n=10_000, kind=CountKind.SIGNALS, waitpoint_keys=["go"]))
    first = cost_of(engine, 100, execution, waitpoint)
    for _ in range(1_000):
        signal(engine, execution, waitpoint)

    last = cost_of(engine, 100, execution, waitpoint)

    assert last < 3 * first


# Races ----------------------------------------------------------------------------------------------------------------


def together(count: int, act: Any) -> list[Any]:
    """Call `act(number)` in so many threads at one moment; return what each returned or raised."""
    gate = threading.Barrier(count)

    def run(number: int) -> Any:
        gate.wait(10)
        try:
            return act(number)
        except EngineError as error:
            return error.code

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_however_many_last_signals_race_there_is_one_resume(engine: Engine) -> None:
    for _ in range(10):
        execution, waitpoint = suspended(engine)

        def send(_: int, execution: ExecutionId = execution, waitpoint: Any = waitpoint) -> Any:
            return signal(engine, execution, waitpoint)

        answers = effects(*together(8, send))

        assert sorted(answers) == sorted([RESUMED, *["waitpoint_closed"] * 7])
        assert claimed_ids(engine) == [execution]


def test_only_one_of_several_racing_decisions_is_accepted(engine: Engine) -> None:
    for _ in range(10):
        execution, waitpoint = suspended(engine)

        def decide(number: int, execution: ExecutionId = execution, waitpoint: Any = waitpoint) -> Any:
            name = "approved" if number % 2 else "rejected"
            return engine.deliver_approval_signal(approval(execution, waitpoint, name=name, operator=f"o{number}"))

        answers = together(4, decide)

        accepted = [answer for answer in answers if isinstance(answer, SignalAccepted)]
        assert len(accepted) == 1
        observed = engine.observe_signals(claim_one(engine).handle).signals
        assert [each.signal_id for each in observed] == [accepted[0].signal_id]


def test_a_signal_that_races_with_the_suspension_is_never_lost(engine: Engine) -> None:
    for _ in range(20):
        claimed = running(engine, lane=LANE)
        pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)

        def act(number: int, claimed: Any = claimed, pending: Any = pending) -> Any:
            if number:
                return signal(engine, claimed.execution_id, pending)
            return engine.suspend(claimed.handle, waiting_for("go"))

        outcome, answer = together(2, act)

        if isinstance(outcome, AlreadySatisfied):
            assert effects(answer) == [SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT]
            engine.complete(claimed.handle)
        else:
            assert effects(answer) == [RESUMED]
            assert claimed_ids(engine) == [claimed.execution_id]


@pytest.mark.parametrize("other", ["cancel", "resume"])
def test_a_signal_and_an_operator_that_race_have_one_winner(engine: Engine, other: str) -> None:
    for _ in range(10):
        execution, waitpoint = suspended(engine)

        def act(number: int, execution: ExecutionId = execution, waitpoint: Any = waitpoint) -> Any:
            if number:
                return signal(engine, execution, waitpoint)
            if other == "cancel":
                return engine.cancel_execution(CancelExecutionArgs(execution_id=execution))
            return engine.resume_execution(execution)

        by_operator, by_signal = together(2, act)

        state = info_of(engine, execution).public_state
        if other == "cancel":
            assert state == "cancelled"
        else:
            assert state == "waiting"
            assert (by_operator == "execution_not_suspended") == (by_signal != "waitpoint_closed")
        claimed_ids(engine)


def test_a_steady_flow_of_signals_keeps_no_execution_from_its_end(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "news", MINUTE)

    def act(number: int) -> Any:
        if number == 0:
            return engine.complete(claimed.handle)
        answers = []
        for _ in range(60):
            try:
                answers.append(effects(signal(engine, claimed.execution_id, pending))[0])
            except EngineError as error:
                answers.append(error.details["why"])
        return answers

    completed, *answers = together(8, act)

    assert completed is None
    buffered = SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    told = [answer for each in answers for answer in each]
    assert set(told) <= {buffered, "completed"}
    client, uuid = raw_client(engine, claimed.execution_id.partition_number), claimed.execution_id.uuid
    kept = client.hget(raw_key(engine, claimed.execution_id.partition_number, f"g:{uuid}"), "last")
    assert int(kept or 0) == told.count(buffered)


def test_what_a_newer_release_added_to_a_waitpoint_is_kept(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    pending = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    partition, uuid = claimed.execution_id.partition_number, claimed.execution_id.uuid
    client, key = raw_client(engine, partition), raw_key(engine, partition, f"w:{uuid}")
    field = f"w{pending.waitpoint_id}"
    client.hset(key, field, (client.hget(key, field) or b"") + b"5:newer")

    signal(engine, claimed.execution_id, pending, "no")
    suspend(engine, claimed, "go", condition=Single("go", SignalMatcher("go")))

    assert (client.hget(key, field) or b"").endswith(b"5:newer")
    assert effects(signal(engine, claimed.execution_id, pending)) == [RESUMED]
