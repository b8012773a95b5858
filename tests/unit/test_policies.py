"""Policies: the arithmetic of retries, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_BUDGETS, MAX_DURATION_MS
from flowfabric_worker.engine.moments import milliseconds
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy

MS = timedelta(milliseconds=1)
LONGEST = timedelta(milliseconds=MAX_DURATION_MS)

durations = st.integers(0, MAX_DURATION_MS).map(lambda ms: ms * MS)
retry_counts = st.integers(0, 1_000_000)
draws = st.floats(0, 1, exclude_max=True)


def retry_policies(*, jitter: tuple[bool, ...] = (False, True)) -> st.SearchStrategy[RetryPolicy]:
    return st.builds(
        RetryPolicy,
        backoff=st.sampled_from(["exponential", "fixed"]),
        initial=durations,
        maximum=durations,
        multiplier=st.floats(1, 1000),
        jitter=st.sampled_from(jitter),
    )


def exponential(initial: int, maximum: int, multiplier: float = 2.0, **changes: Any) -> RetryPolicy:
    return RetryPolicy(
        initial=initial * MS, maximum=maximum * MS, multiplier=multiplier, **{"jitter": False, **changes}
    )


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (exponential(1000, 60_000), [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]),
        (exponential(1000, 60_000, 1.0), [1000, 1000, 1000]),
        (exponential(10, 1000, 10.0), [10, 100, 1000, 1000]),
        # Whole milliseconds: what is behind the point is dropped.
        (exponential(1, 60_000, 1.5), [1, 1, 2, 3, 5, 7, 11]),
        (exponential(333, 60_000, 1.1), [333, 366, 402]),
        # The maximum holds from the first wait on.
        (exponential(5000, 1000), [1000, 1000]),
        (exponential(0, 60_000), [0, 0, 0]),
        (exponential(1000, 0), [0, 0]),
        # A fixed wait neither grows nor minds the maximum.
        (exponential(5000, 1000, backoff="fixed"), [5000, 5000, 5000]),
    ],
)
def test_the_nth_retry_waits_what_the_table_says(policy: RetryPolicy, waits: list[int]) -> None:
    assert [policy.delay_ms(number, draw=0.5) for number in range(len(waits))] == waits


@pytest.mark.parametrize(("draw", "wait"), [(0.0, 500), (0.25, 625), (0.5, 750), (0.999_999, 999)])
@pytest.mark.parametrize("backoff", ["exponential", "fixed"])
def test_jitter_draws_from_half_of_the_wait_to_the_whole(backoff: Any, draw: float, wait: int) -> None:
    policy = exponential(1000, 1000, backoff=backoff, jitter=True)
    assert policy.delay_ms(0, draw) == wait


@given(policy=retry_policies(), retry_count=retry_counts, draw=draws)
def test_a_wait_is_a_whole_number_within_its_bounds_after_any_retries(
    policy: RetryPolicy, retry_count: int, draw: float
) -> None:
    wait = policy.delay_ms(retry_count, draw)
    initial, maximum = milliseconds(policy.initial, "initial"), milliseconds(policy.maximum, "maximum")
    assert type(wait) is int
    assert 0 <= wait <= (initial if policy.backoff == "fixed" else maximum)


@given(policy=retry_policies(jitter=(False,)), retry_count=retry_counts, draw=draws)
def test_jitter_stays_between_half_and_the_whole_of_the_wait_without_it(
    policy: RetryPolicy, retry_count: int, draw: float
) -> None:
    whole = policy.delay_ms(retry_count, draw)
    assert whole // 2 <= attrs.evolve(policy, jitter=True).delay_ms(retry_count, draw) <= whole


@given(policy=retry_policies(jitter=(False,)), retry_count=st.integers(0, 999_999))
def test_waits_never_become_shorter(policy: RetryPolicy, retry_count: int) -> None:
    assert policy.delay_ms(retry_count, 0.0) <= policy.delay_ms(retry_count + 1, 0.0)


@pytest.mark.parametrize("multiplier", [1000.0, 1000])
def test_a_million_retries_overflow_nothing(multiplier: float) -> None:
    policy = RetryPolicy(initial=LONGEST, maximum=LONGEST, multiplier=multiplier, jitter=False)
    assert policy.delay_ms(1_000_000, 0.0) == MAX_DURATION_MS
    nothing = RetryPolicy(initial=timedelta(), maximum=LONGEST, multiplier=multiplier)
    assert nothing.delay_ms(1_000_000, 0.999) == 0


@pytest.mark.parametrize(
    "values",
    [
        {"max_retries": -1},
        {"max_retries": 1_000_001},
        {"max_retries": 2.5},
        {"max_retries": True},
        {"max_retries": None},
        {"backoff": "linear"},
        {"backoff": None},
        {"multiplier": 0.99},
        {"multiplier": 1000.1},
        {"multiplier": float("nan")},
        {"multiplier": float("inf")},
        {"multiplier": "2"},
        {"multiplier": True},
        {"retryable_categories": {FailureClass.PERMANENT}},
        {"retryable_categories": {FailureClass.CANCELLED, FailureClass.TIMEOUT}},
        {"retryable_categories": {"nonsense"}},
    ],
)
def test_a_retry_policy_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        RetryPolicy(**values)
    assert caught.value.code == "invalid_policy"


@pytest.mark.parametrize("field", ["initial", "maximum"])
@pytest.mark.parametrize("value", [-MS, LONGEST + MS, 5, "1s"])
def test_a_wait_that_is_no_duration_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        RetryPolicy(**{field: value})


@pytest.mark.parametrize("field", ["attempt_timeout", "execution_deadline", "dedup_window", "retention"])
@pytest.mark.parametrize("value", [-MS, LONGEST + MS, 5])
def test_a_duration_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        ExecutionPolicy(**{field: value})


@pytest.mark.parametrize("field", ["attempt_timeout", "execution_deadline", "dedup_window"])
def test_nothing_may_be_over_before_it_begins(field: str) -> None:
    too_short: dict[str, Any] = {field: timedelta(microseconds=999)}
    with pytest.raises(ValidationError, match=field):
        ExecutionPolicy(**too_short)
    shortest: dict[str, Any] = {field: MS}
    assert getattr(ExecutionPolicy(**shortest), field) == MS


@pytest.mark.parametrize("field", ["max_reclaim_count", "max_replay_count"])
@pytest.mark.parametrize("value", [-1, 1_000_001, 1.0, "1", None])
def test_a_count_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        ExecutionPolicy(**{field: value})


def test_the_limits_themselves_are_allowed() -> None:
    RetryPolicy(max_retries=1_000_000, initial=LONGEST, maximum=LONGEST, multiplier=1000)
    RetryPolicy(max_retries=0, initial=timedelta(), maximum=timedelta(), multiplier=1)
    ExecutionPolicy(retention=timedelta(), max_reclaim_count=0, max_replay_count=1_000_000, execution_deadline=LONGEST)


def test_an_execution_names_so_many_budgets_and_no_more() -> None:
    budgets = [f"budget {number}" for number in range(MAX_BUDGETS)]
    assert len(ExecutionPolicy(budget_ids=budgets).budget_ids) == MAX_BUDGETS
    with pytest.raises(ValidationError, match="at most 64"):
        ExecutionPolicy(budget_ids=[*budgets, "one more"])


@pytest.mark.parametrize(
    ("duration", "ms"), [(timedelta(), 0), (MS, 1), (timedelta(microseconds=1999), 1), (LONGEST, MAX_DURATION_MS)]
)
def test_a_duration_is_whole_milliseconds(duration: timedelta, ms: int) -> None:
    assert milliseconds(duration, "it") == ms


def test_a_failure_class_can_be_named_by_its_word() -> None:
    policy = RetryPolicy(retryable_categories=frozenset({FailureClass("timeout")}))
    assert policy.retryable_categories == {"timeout"}
