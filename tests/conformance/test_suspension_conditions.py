"""The stored functions give the answer of `evaluate` for random conditions, signals and orders, after every signal."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowfabric_worker.engine.conditions import evaluate, referenced_waitpoint_keys
from flowfabric_worker.engine.engine import Engine
from flowfabric_worker.engine.types.conditions import (
    DECISION,
    OWN_NAME,
    AllOf,
    Count,
    CountKind,
    ResumeCondition,
    SignalMatcher,
    Single,
)
from flowfabric_worker.engine.types.suspension import (
    AlreadySatisfied,
    SignalAccepted,
    SignalEffect,
    SignalSource,
    SuspendArgs,
    WaitpointBinding,
)
from tests.support.executions import LANE, claim_one, claimed_ids, running
from tests.support.suspensions import signal

KEYS = ("a", "b", "c")
NAMES = ("yes", "a")
keys = st.sampled_from(KEYS)
matchers = st.sampled_from([OWN_NAME, DECISION, *map(SignalMatcher, (None, *NAMES))])


@st.composite
def counts(draw: st.DrawFn) -> Count:
    chosen = draw(st.lists(keys, min_size=1, max_size=4))
    kind = draw(st.sampled_from(list(CountKind)))
    most = len(set(chosen)) if kind is CountKind.WAITPOINTS else 4
    return Count(n=draw(st.integers(1, most)), kind=kind, waitpoint_keys=chosen, matcher=draw(matchers))


def conditions(depth: int) -> st.SearchStrategy[ResumeCondition]:
    leaves: st.SearchStrategy[Any] = st.builds(Single, keys, matchers)
    if depth > 1:
        nested = st.builds(AllOf, st.lists(conditions(depth - 1), min_size=1, max_size=3))
        return st.one_of(leaves, counts(), nested)
    return leaves


@attrs.frozen(kw_only=True)
class Sent:
    """A signal as `evaluate` sees it."""

    signal_id: str
    waitpoint_key: str
    name: str
    category: str
    source: SignalSource


SOURCES = st.builds(SignalSource, st.sampled_from(["user", "system"]), st.sampled_from(["x", "y"]))
CATEGORIES = st.sampled_from(["signal", "signal", "approval"])
signals = st.lists(
    st.tuples(keys, st.sampled_from(NAMES), CATEGORIES, SOURCES),
    max_size=12,
    unique_by=lambda each: each[0] if each[2] == "approval" else object(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=conditions(4), sent=signals, split=st.integers(0, 12), asks=st.booleans())
def test_an_execution_resumes_exactly_when_its_condition_is_met(
    engine: Engine, condition: ResumeCondition, sent: list[tuple[str, str, str, SignalSource]], split: int, asks: bool
) -> None:
    bound = referenced_waitpoint_keys(condition)
    claimed = running(engine, lane=LANE)
    pending = {key: engine.create_waitpoint(claimed.handle, key, timedelta(hours=1)) for key in KEYS}
    wanted = [each for each in sent if each[0] in bound]
    so_far: list[Sent] = []

    def send(key: str, name: str, category: str, source: SignalSource) -> SignalEffect:
        answer = signal(engine, claimed.execution_id, pending[key], name, category=category, source=source)
        assert isinstance(answer, SignalAccepted)
        so_far.append(Sent(signal_id=answer.signal_id, waitpoint_key=key, name=name, category=category, source=source))
        return answer.effect

    for each in wanted[:split]:
        assert send(*each) is SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT
    bindings = [WaitpointBinding(waitpoint_key=key) for key in bound]
    wait = SuspendArgs(condition=condition, waitpoints=bindings)
    outcome = (engine.try_satisfy(claimed.handle, wait) if asks else None) or engine.suspend(claimed.handle, wait)
    met = isinstance(outcome, AlreadySatisfied)
    assert met == evaluate(condition, so_far)
    for each in wanted[split:]:
        if met:
            break
        met = send(*each) is SignalEffect.RESUME_CONDITION_SATISFIED
        assert met == evaluate(condition, so_far)

    if met:
        handle = claimed.handle if isinstance(outcome, AlreadySatisfied) else claim_one(engine).handle
        observed = engine.observe_signals(handle)
        assert [each.signal_id for each in observed.signals] == [each.signal_id for each in so_far]
        assert evaluate(condition, observed.matched)
    else:
        assert claimed_ids(engine) == []
