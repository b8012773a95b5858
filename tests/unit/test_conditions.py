"""The resume conditions: what they mean, what is refused, and how they travel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.conditions import (
    evaluate,
    from_postfix,
    matching_signals,
    referenced_waitpoint_keys,
    to_postfix,
    validate,
)
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import SignalId, WaitpointId
from flowfabric_worker.engine.limits import MAX_CONDITION_BYTES, MAX_CONDITION_DEPTH, MAX_WAITPOINTS, Limits
from flowfabric_worker.engine.types.conditions import (
    DECISION,
    OWN_NAME,
    AllOf,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    SignalMatcher,
    Single,
    TimeoutOnly,
)
from flowfabric_worker.engine.types.suspension import ResumeSignal, SignalSource

KEYS = ("a", "b", "c", "d")
NAMES = ("approve", "legal")
APPROVE, LEGAL = SignalMatcher("approve"), SignalMatcher("legal")


def signal(
    key: str, name: str = "approve", source: str = "user:ann", signal_id: str = "", category: str = "signal"
) -> ResumeSignal:
    kind, _, identity = source.partition(":")
    return ResumeSignal(
        signal_id=SignalId(signal_id or f"{key}/{name}/{source}"),
        waitpoint_id=WaitpointId(f"id of {key}"),
        waitpoint_key=key,
        name=name,
        category=category,
        source=SignalSource(kind, identity),
        accepted_at_ms=0,
    )


def count(n: int, kind: CountKind, *keys: str, matcher: SignalMatcher | None = None) -> Count:
    return Count(n=n, kind=kind, waitpoint_keys=keys, matcher=matcher or SignalMatcher())


def nested(depth: int, innermost: ResumeCondition) -> ResumeCondition:
    return innermost if depth == 0 else AllOf((nested(depth - 1, innermost),))


# ── meaning ──

MEANINGS: list[tuple[str, ResumeCondition, Sequence[ResumeSignal], bool]] = [
    ("nothing meets a single", Single("a"), [], False),
    ("any name meets a wildcard", Single("a"), [signal("a", "x")], True),
    ("the name meets a named single", Single("a", APPROVE), [signal("a", "approve")], True),
    ("another name does not", Single("a", APPROVE), [signal("a", "Approve")], False),
    ("another waitpoint does not", Single("a", APPROVE), [signal("b", "approve")], False),
    ("no signal meets operator only", OperatorOnly(), [signal("a", "__operator_only__")], False),
    ("no signal meets timeout only", TimeoutOnly(), [signal("a", "__timeout_only__")], False),
    ("all of needs each", AllOf((Single("a"), Single("b"))), [signal("a")], False),
    ("all of has each", AllOf((Single("a"), Single("b"))), [signal("b"), signal("a")], True),
    ("one signal serves two members", AllOf((Single("a"), Single("a", APPROVE))), [signal("a")], True),
    (
        "two signals at one waitpoint are one waitpoint",
        count(2, CountKind.WAITPOINTS, "a", "b"),
        [signal("a", signal_id="1"), signal("a", signal_id="2")],
        False,
    ),
    ("two waitpoints", count(2, CountKind.WAITPOINTS, "a", "b"), [signal("a"), signal("b")], True),
    (
        "the same signal twice is one signal",
        count(2, CountKind.SIGNALS, "a"),
        [signal("a", signal_id="1"), signal("a", signal_id="1")],
        False,
    ),
    (
        "two signals",
        count(2, CountKind.SIGNALS, "a"),
        [signal("a", signal_id="1"), signal("a", signal_id="2")],
        True,
    ),
    (
        "one source at two waitpoints is one source",
        count(2, CountKind.SOURCES, "a", "b"),
        [signal("a"), signal("b")],
        False,
    ),
    (
        "a user and a system of one name are two sources",
        count(2, CountKind.SOURCES, "a"),
        [signal("a", source="user:ann"), signal("a", source="system:ann")],
        True,
    ),
    (
        "a count sees only its own waitpoints",
        count(1, CountKind.SIGNALS, "a"),
        [signal("b")],
        False,
    ),
    (
        "a count sees only its own names",
        count(1, CountKind.SIGNALS, "a", matcher=LEGAL),
        [signal("a", "approve")],
        False,
    ),
]


@pytest.mark.parametrize(
    ("condition", "signals", "met"), [row[1:] for row in MEANINGS], ids=[row[0] for row in MEANINGS]
)
def test_a_condition_is_met_by_these_signals_and_no_others(
    condition: ResumeCondition, signals: Sequence[ResumeSignal], met: bool
) -> None:
    assert evaluate(condition, signals) is met


def test_two_counts_of_sources_do_not_share_what_they_counted() -> None:
    both = AllOf(
        (
            count(2, CountKind.SOURCES, "a", matcher=APPROVE),
            count(1, CountKind.SOURCES, "a", matcher=LEGAL),
        )
    )
    approvals = [signal("a", "approve", "user:ann"), signal("a", "approve", "user:bob")]

    assert not evaluate(both, approvals)
    assert evaluate(both, [*approvals, signal("a", "legal", "user:ann")])


def test_two_counts_of_waitpoints_do_not_share_what_they_counted() -> None:
    both = AllOf((count(2, CountKind.WAITPOINTS, "a", "b"), count(2, CountKind.WAITPOINTS, "c", "d")))

    assert not evaluate(both, [signal("a"), signal("c")])
    assert not evaluate(both, [signal("a"), signal("b"), signal("c")])
    assert evaluate(both, [signal("a"), signal("b"), signal("c"), signal("d")])


@pytest.mark.parametrize("depth", range(1, MAX_CONDITION_DEPTH + 1))
def test_every_depth_is_met_by_the_last_signal_and_not_before(depth: int) -> None:
    condition = nested(depth - 1, AllOf((Single("a"), Single("b"))))

    validate(condition, ["a", "b"])
    assert not evaluate(condition, [signal("a")])
    assert evaluate(condition, [signal("a"), signal("b")])


def test_matching_signals_are_those_that_count_in_the_order_given() -> None:
    condition = AllOf((Single("a", APPROVE), count(1, CountKind.SIGNALS, "b", "c", matcher=LEGAL)))
    signals = [signal("c", "legal"), signal("a", "legal"), signal("a", "approve"), signal("d", "approve")]

    assert matching_signals(condition, signals) == [signals[0], signals[2]]
    assert matching_signals(OperatorOnly(), signals) == []


def test_referenced_keys_come_once_in_the_order_of_first_mention() -> None:
    condition = AllOf((Single("c"), count(1, CountKind.SIGNALS, "a", "c"), AllOf((Single("b"), Single("a")))))

    assert referenced_waitpoint_keys(condition) == ("c", "a", "b")
    assert referenced_waitpoint_keys(TimeoutOnly()) == ()


# ── fitness ──

WRONG: Any = "signals"
UNFIT: list[tuple[str, ResumeCondition, Sequence[str], str]] = [
    ("an empty all of", AllOf(()), [], "at the root: an AllOf needs a member"),
    ("an empty all of inside", AllOf((Single("a"), AllOf(()))), ["a"], "at members[1]: an AllOf needs"),
    ("a count of none", count(0, CountKind.SIGNALS, "a"), ["a"], "an int of at least 1"),
    ("a count of less than none", count(-1, CountKind.SIGNALS, "a"), ["a"], "an int of at least 1"),
    ("a count of yes", count(True, CountKind.SIGNALS, "a"), ["a"], "an int of at least 1"),
    ("a count of nothing", count(1, CountKind.SIGNALS), [], "a Count needs a waitpoint"),
    ("too few waitpoints", count(3, CountKind.WAITPOINTS, "a", "b"), ["a", "b"], "3 waitpoints has only 2"),
    ("one waitpoint twice", count(2, CountKind.WAITPOINTS, "a", "a"), ["a"], "2 waitpoints has only 1"),
    ("more signals than come", count(10_001, CountKind.SIGNALS, "a"), ["a"], "accepts only 10000 signals"),
    ("more sources than come", count(10_001, CountKind.SOURCES, "a"), ["a"], "accepts only 10000 signals"),
    ("operator only inside", AllOf((Single("a"), OperatorOnly())), ["a"], "at members[1]: no signal meets"),
    (
        "timeout only deep inside",
        AllOf((AllOf((Single("a"), TimeoutOnly())),)),
        ["a"],
        "at members[0].members[1]: no signal meets TimeoutOnly",
    ),
    ("a key without a waitpoint", Single("a"), ["b"], "no waitpoint has the key 'a'"),
    ("a waitpoint without a mention", Single("a"), ["a", "b"], "does not name the waitpoint 'b'"),
    ("two waitpoints of one key", Single("a"), ["a", "a"], "two waitpoints have the key 'a'"),
    ("something else", WRONG, [], "at the root: str is not a condition"),
    ("something else inside", AllOf((WRONG,)), [], "at members[0]: str is not a condition"),
    ("a name in place of a matcher", Single("a", WRONG), ["a"], "needs a SignalMatcher"),
    ("a word in place of a kind", count(1, WRONG, "a"), ["a"], "and a Count a CountKind"),
]


@pytest.mark.parametrize(("condition", "keys", "why"), [row[1:] for row in UNFIT], ids=[row[0] for row in UNFIT])
def test_what_can_never_be_met_is_refused(condition: ResumeCondition, keys: Sequence[str], why: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        validate(condition, keys)

    assert refusal.value.code == "invalid_condition"
    assert why in str(refusal.value)


def test_the_refusal_carries_the_path() -> None:
    with pytest.raises(ValidationError) as refusal:
        validate(AllOf((AllOf((Single("a"),)), AllOf((AllOf(()),)))), ["a"])

    assert refusal.value.details["path"] == "members[1].members[0]"


@pytest.mark.parametrize("innermost", [Single("a"), count(1, CountKind.SIGNALS, "a")], ids=["single", "count"])
def test_a_condition_is_nested_four_deep_at_most(innermost: ResumeCondition) -> None:
    deepest = MAX_CONDITION_DEPTH - isinstance(innermost, Count)

    validate(nested(deepest, innermost), ["a"])
    with pytest.raises(ValidationError, match="nested at most 4 deep"):
        validate(nested(deepest + 1, innermost), ["a"])


def test_a_condition_far_too_deep_is_refused_like_any_other() -> None:
    condition: ResumeCondition = Single("a")
    for _ in range(5_000):
        condition = AllOf((condition,))

    with pytest.raises(ValidationError, match="nested at most 4 deep"):
        validate(condition, ["a"])


def test_a_suspension_takes_sixty_four_waitpoints_at_most() -> None:
    keys = [f"key {number}" for number in range(MAX_WAITPOINTS + 1)]

    validate(count(1, CountKind.WAITPOINTS, *keys[:-1]), keys[:-1])
    with pytest.raises(ValidationError, match="at most 64 waitpoints"):
        validate(count(1, CountKind.WAITPOINTS, *keys), keys)


def test_a_condition_takes_eight_kib_at_most() -> None:
    def of_size(filler: str) -> ResumeCondition:
        return AllOf((*[Single("a", SignalMatcher("n" * 240))] * 32, Single("a", SignalMatcher(filler))))

    spare = MAX_CONDITION_BYTES - sum(len(word) + 1 for word in to_postfix(of_size("n"))) + 1
    at_the_limit = of_size("é" * (spare // 2) + "n" * (spare % 2))

    validate(at_the_limit, ["a"])
    with pytest.raises(ValidationError, match="takes 8193 bytes; at most 8192"):
        validate(of_size("é" * (spare // 2) + "n" * (spare % 2 + 1)), ["a"])


def test_the_number_of_signals_that_an_engine_accepts_bounds_a_count() -> None:
    few = Limits(signals_per_execution=3)

    validate(count(3, CountKind.SIGNALS, "a"), ["a"], limits=few)
    with pytest.raises(ValidationError, match="accepts only 3 signals"):
        validate(count(4, CountKind.SIGNALS, "a"), ["a"], limits=few)


def test_timeout_only_needs_a_timeout() -> None:
    validate(TimeoutOnly(), [], has_timeout=True)
    validate(OperatorOnly(), [], has_timeout=False)
    with pytest.raises(ValidationError, match="TimeoutOnly needs a timeout"):
        validate(TimeoutOnly(), [], has_timeout=False)


@pytest.mark.parametrize("condition", [OperatorOnly(), TimeoutOnly()])
def test_waitpoints_may_stand_beside_a_condition_that_speaks_of_none(condition: ResumeCondition) -> None:
    validate(condition, ["a", "b"])


# ── travel ──


def test_a_condition_is_described_in_words() -> None:
    condition = AllOf((Single("a", APPROVE), AllOf((Single("b"), count(2, CountKind.SOURCES, "c", "d")))))

    assert to_postfix(condition) == [
        *("single", "a", "approve"),
        *("single", "b", ""),
        *("count", "2", "sources", "", "2", "c", "d"),
        *("all_of", "2"),
        *("all_of", "2"),
    ]
    assert to_postfix(OperatorOnly()) == ["operator_only"]
    assert to_postfix(TimeoutOnly()) == ["timeout_only"]
    assert to_postfix(Single("a", OWN_NAME)) == ["single", "a", "\t"]
    assert to_postfix(Single("a", DECISION)) == ["single", "a", "\n"]


def test_keys_that_look_like_operators_round_trip() -> None:
    condition = AllOf((Single("all_of", SignalMatcher("2")), count(1, CountKind.SIGNALS, "single", "count")))

    assert from_postfix(to_postfix(condition)) == condition


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["single"],
        ["single", "a"],
        ["single", "", "x"],
        ["single", "a", "", "single", "b", ""],
        ["none_of", "1"],
        ["all_of", "1"],
        ["single", "a", "", "all_of", "2"],
        ["single", "a", "", "all_of", "-1"],
        ["single", "a", "", "all_of", "01"],
        ["count", "x", "signals", "", "1", "a"],
        ["count", "1", "stars", "", "1", "a"],
        ["count", "1", "signals", "", "2", "a"],
        ["count", "1", "signals", "", "1"],
        ["count", "٣", "signals", "", "1", "a"],
    ],
    ids=" ".join,
)
def test_a_damaged_condition_is_reported_as_damaged(words: Sequence[str]) -> None:
    with pytest.raises(ValidationError) as refusal:
        from_postfix(words)

    assert refusal.value.code == "corruption"


# ── for every condition and every set of signals ──

matchers = st.sampled_from([SignalMatcher(), OWN_NAME, DECISION, *map(SignalMatcher, NAMES)])
keys = st.lists(st.sampled_from(KEYS), min_size=1, unique=True).map(tuple)
counts = st.builds(Count, n=st.integers(1, 4), kind=st.sampled_from(CountKind), waitpoint_keys=keys, matcher=matchers)
leaves = st.builds(Single, st.sampled_from(KEYS), matchers) | counts
trees = st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=3).map(AllOf), max_leaves=8)
conditions = trees | st.builds(OperatorOnly) | st.builds(TimeoutOnly)
signals_of = st.lists(
    st.builds(
        signal,
        st.sampled_from(KEYS),
        st.sampled_from(NAMES),
        st.sampled_from(["user:ann", "user:bob", "system:ann"]),
        st.sampled_from(["1", "2", "3", ""]),
        st.sampled_from(["signal", "approval"]),
    ),
    max_size=8,
)


def naive(condition: ResumeCondition, signals: Sequence[ResumeSignal]) -> bool:
    """Return the meaning said another way: a count is met when some `n` of its signals differ pairwise."""
    if isinstance(condition, AllOf):
        return not any(not naive(member, signals) for member in condition.members)
    if isinstance(condition, Single):
        condition = count(1, CountKind.SIGNALS, condition.waitpoint_key, matcher=condition.matcher)
    if not isinstance(condition, Count):
        return False
    of_kind: dict[CountKind, list[str]] = {
        CountKind.WAITPOINTS: [s.waitpoint_key for s in signals],
        CountKind.SIGNALS: [str(s.signal_id) for s in signals],
        CountKind.SOURCES: [f"{s.source.type}:{s.source.identity}" for s in signals],
    }
    wanted = condition.matcher
    own = [
        identity
        for identity, s in zip(of_kind[condition.kind], signals, strict=True)
        if s.waitpoint_key in condition.waitpoint_keys
        and (
            s.category == "approval" or (wanted == OWN_NAME and s.name == s.waitpoint_key)
            if wanted in (OWN_NAME, DECISION)
            else wanted.name in (None, s.name)
        )
    ]
    return any(len(set(some)) == condition.n for some in itertools.combinations(own, condition.n))


@given(conditions, signals_of)
def test_evaluate_agrees_with_a_naive_reading(condition: ResumeCondition, signals: list[ResumeSignal]) -> None:
    assert evaluate(condition, signals) is naive(condition, signals)


@given(conditions, signals_of, st.randoms(use_true_random=False))
def test_the_order_of_signals_does_not_matter(
    condition: ResumeCondition, signals: list[ResumeSignal], random: Random
) -> None:
    shuffled = list(signals)
    random.shuffle(shuffled)

    assert evaluate(condition, shuffled) is evaluate(condition, signals)


@given(conditions, signals_of, signals_of)
def test_further_signals_never_undo_a_condition(
    condition: ResumeCondition, signals: list[ResumeSignal], further: list[ResumeSignal]
) -> None:
    assert evaluate(condition, [*signals, *further]) >= evaluate(condition, signals)


@given(st.lists(counts, min_size=1, max_size=3), signals_of)
def test_counts_side_by_side_are_met_just_when_each_alone_is(
    side_by_side: list[Count], signals: list[ResumeSignal]
) -> None:
    alone = [evaluate(one, signals) for one in side_by_side]

    assert evaluate(AllOf(side_by_side), signals) is all(alone)


@given(conditions, signals_of)
def test_only_matching_signals_decide(condition: ResumeCondition, signals: list[ResumeSignal]) -> None:
    assert evaluate(condition, matching_signals(condition, signals)) is evaluate(condition, signals)


@given(conditions)
def test_a_condition_round_trips_unchanged(condition: ResumeCondition) -> None:
    assert from_postfix(to_postfix(condition)) == condition


@given(st.lists(st.sampled_from(["single", "count", "all_of", "operator_only", "a", "", "1", "2", "signals"])))
def test_any_words_are_a_condition_or_reported_as_damaged(words: list[str]) -> None:
    try:
        travelled, code = to_postfix(from_postfix(words)), None
    except ValidationError as error:
        travelled, code = words, error.code

    assert (travelled, code) in [(words, None), (words, "corruption")]
