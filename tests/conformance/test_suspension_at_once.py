"""Signals that are there before their wait, and decisions on waitpoints."""

from __future__ import annotations

import pytest

from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.conditions import DECISION, OWN_NAME, Count, CountKind, Single
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    SignalAccepted,
    SignalEffect,
    SignalSource,
    Suspended,
)
from tests.support.dumps import Dump
from tests.support.executions import LANE, running
from tests.support.suspensions import MINUTE, SECOND, signal, suspended, waiting_for


def effect_of(answer: object) -> SignalEffect:
    assert isinstance(answer, SignalAccepted)
    return answer.effect


def test_asking_for_signals_that_are_not_there_changes_nothing(engine: Engine, dump: Dump) -> None:
    claimed = running(engine, lane=LANE)
    waitpoint = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    wait = waiting_for("go", "other", timeout=SECOND)
    signal(engine, claimed.execution_id, waitpoint)
    before = dump()

    assert engine.try_satisfy(claimed.handle, wait) is None
    assert engine.try_satisfy(claimed.handle, waiting_for("third")) is None
    assert {key: value for key, value in dump().items() if ":s1:" not in key} == before
    assert isinstance(engine.suspend(claimed.handle, wait), Suspended)


def test_signals_that_are_there_end_a_wait_and_the_lease_continues(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    waitpoint = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    signal(engine, claimed.execution_id, waitpoint, payload=b"1")
    wait = waiting_for("go", continuation="the wait")

    taken = engine.try_satisfy(claimed.handle, wait)

    assert isinstance(taken, AlreadySatisfied)
    assert [each.payload for each in taken.signals] == [b"1"]
    observed = engine.observe_signals(claimed.handle)
    assert (observed.continuation, observed.matched) == ("the wait", taken.signals)
    assert engine.try_satisfy(claimed.handle, wait) == taken
    engine.complete(claimed.handle, b"done")


def test_signals_over_many_pages_are_counted_once_by_both_calls(engine: Engine) -> None:
    claimed = running(engine, lane=LANE)
    waitpoint = engine.create_waitpoint(claimed.handle, "go", MINUTE)
    for number in range(101):
        signal(engine, claimed.execution_id, waitpoint, source=SignalSource("user", str(number)))
    three = Count(n=102, kind=CountKind.SOURCES, waitpoint_keys=["go"])
    wait = waiting_for("go", condition=three)

    assert engine.try_satisfy(claimed.handle, wait) is None
    outcome = engine.suspend(claimed.handle, wait)
    assert isinstance(outcome, Suspended)
    last = signal(engine, claimed.execution_id, waitpoint, source=SignalSource("user", "101"))
    assert effect_of(last) is SignalEffect.RESUME_CONDITION_SATISFIED


def test_only_a_decision_counts_where_a_decision_is_asked_for(engine: Engine) -> None:
    execution, waitpoint = suspended(engine, "deploy", condition=Single("deploy", DECISION))

    for name in ("deploy", "approved"):
        plain = signal(engine, execution, waitpoint, name)
        assert isinstance(plain, SignalAccepted)
        assert (plain.effect, plain.awaited_names) == (SignalEffect.NO_OP, ("approved", "rejected"))
    answer = signal(engine, execution, waitpoint, "approved", category="approval")
    assert effect_of(answer) is SignalEffect.RESUME_CONDITION_SATISFIED


@pytest.mark.parametrize("decision", ["approved", "rejected"])
def test_a_decision_of_any_name_counts_where_the_own_name_is_asked_for(engine: Engine, decision: str) -> None:
    execution, waitpoint = suspended(engine, "deploy", condition=Single("deploy", OWN_NAME))

    assert effect_of(signal(engine, execution, waitpoint, decision)) is SignalEffect.NO_OP
    answer = signal(engine, execution, waitpoint, decision, category="approval")
    assert effect_of(answer) is SignalEffect.RESUME_CONDITION_SATISFIED
