"""How values travel: packed texts, marks for None, moments, tags, classes and policies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.limits import MAX_DURATION_MS
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy
from flowfabric_worker.engine.wire import (
    WorkClass,
    decode_class,
    decode_policy,
    encode_policy,
    epoch_ms,
    optional,
    pack,
    pack_moment,
    pack_texts,
    read_optional,
    unpack,
    unpack_pairs,
    unpack_text,
    unpack_texts,
)

MS = timedelta(milliseconds=1)

texts = st.text(st.characters(exclude_categories=("Cs",)))
words = st.text("abcdefg-_ü日", min_size=1, max_size=9)
durations = st.integers(1, MAX_DURATION_MS).map(lambda ms: ms * MS)
counts = st.integers(0, 1_000_000)
retries = st.builds(
    RetryPolicy,
    max_retries=counts,
    backoff=st.sampled_from(["exponential", "fixed"]),
    initial=durations,
    maximum=durations,
    multiplier=st.floats(1, 1000),
    jitter=st.booleans(),
    retryable_categories=st.frozensets(
        st.sampled_from([FailureClass.TRANSIENT, FailureClass.TIMEOUT, FailureClass.INFRA_CRASH])
    ),
)
policies = st.builds(
    ExecutionPolicy,
    retry=st.none() | retries,
    attempt_timeout=st.none() | durations,
    execution_deadline=st.none() | durations,
    max_reclaim_count=counts,
    max_replay_count=counts,
    retention=st.none() | durations,
    dedup_window=st.none() | durations,
    requires=st.frozensets(words, max_size=5),
)


def class_of(policy: ExecutionPolicy) -> WorkClass:
    """Return the class that an execution with this policy lies in."""
    capabilities = tuple(sorted(policy.requires))
    return WorkClass(namespace="n", lane="l", task="t", capabilities=capabilities)


# Packed texts


@given(st.lists(st.binary()))
def test_packed_texts_read_back(parts: list[bytes]) -> None:
    assert unpack(pack(parts)) == parts


@given(st.lists(texts), st.lists(texts))
def test_packed_texts_are_equal_only_when_every_part_is(one: list[str], two: list[str]) -> None:
    assert (pack(one) == pack(two)) == (one == two)
    assert unpack_text(pack(one)) == one


def test_each_packed_part_follows_its_length_in_bytes() -> None:
    assert pack(["a", b"", "ü"]) == b"1:a0:2:\xc3\xbc"


@pytest.mark.parametrize("data", [b"1", b"a:b", b"2:a", b"-1:", b":", b"1:ab", b"99:a"])
def test_bytes_that_are_no_packed_text_are_reported(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        unpack(data)


@given(st.none() | st.binary())
def test_none_and_empty_bytes_differ(value: bytes | None) -> None:
    assert read_optional(optional(value)) == value


def test_an_absent_field_is_none() -> None:
    assert read_optional(None) is None
    assert read_optional(b"") is None
    assert optional(b"") != optional(None)


@given(st.dictionaries(texts, texts))
def test_tags_read_back(tags: dict[str, str]) -> None:
    assert unpack_texts(pack_texts(tags)) == tags


def test_equal_tags_are_equal_bytes() -> None:
    assert pack_texts({"a": "1", "b": "2"}) == pack_texts({"b": "2", "a": "1"})
    assert pack_texts({}) == b""
    assert unpack_texts(None) == {}


def test_pairs_become_a_mapping() -> None:
    assert unpack_pairs([b"a", b"1", "ü".encode(), b"\xff"]) == {"a": b"1", "ü": b"\xff"}
    with pytest.raises(ValueError, match="shorter"):
        unpack_pairs([b"a"])


# Moments


@pytest.mark.parametrize(
    ("after", "at", "packed"),
    [
        (None, None, ""),
        (timedelta(), None, "+0"),
        (timedelta(seconds=1.5), None, "+1500"),
        (timedelta(microseconds=1999), None, "+1"),
        (timedelta(milliseconds=MAX_DURATION_MS), None, f"+{MAX_DURATION_MS}"),
        (None, datetime(1970, 1, 1, tzinfo=UTC), "@0"),
        (None, datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), "@1893456000000"),
        (None, datetime(2030, 1, 1, 0, 0, 0, 1999, tzinfo=UTC), "@1893456000001"),
    ],
    ids=str,
)
def test_a_moment_is_a_duration_from_now_or_absolute(after: timedelta | None, at: datetime | None, packed: str) -> None:
    assert pack_moment(after, at, "it") == packed


@pytest.mark.parametrize(
    ("after", "at"),
    [
        (timedelta(), datetime(2030, 1, 1, tzinfo=UTC)),
        (-MS, None),
        (timedelta(milliseconds=MAX_DURATION_MS + 1), None),
        (5, None),
        (None, datetime(2030, 1, 1)),
        (None, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (None, 1_893_456_000),
        (None, "2030-01-01"),
    ],
    ids=str,
)
def test_a_wrong_moment_is_refused_by_name(after: Any, at: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        pack_moment(after, at, "the delay")

    assert caught.value.code == "invalid_input"
    assert "the delay" in str(caught.value)


@given(st.integers(0, 4_000_000_000_000))
def test_every_millisecond_of_a_moment_counts(ms: int) -> None:
    assert epoch_ms(datetime(1970, 1, 1, tzinfo=UTC) + ms * MS, "it") == ms


# Classes


@given(
    namespace=texts,
    lane=texts,
    task=texts,
    capabilities=st.frozensets(words).map(lambda tokens: tuple(sorted(tokens))),
    quota=texts,
)
def test_a_class_reads_back(namespace: str, lane: str, task: str, capabilities: tuple[str, ...], quota: str) -> None:
    work_class = WorkClass(namespace=namespace, lane=lane, task=task, capabilities=capabilities, quota=quota)

    assert decode_class(work_class.encode()) == work_class


def test_a_class_begins_with_its_lane() -> None:
    assert WorkClass(namespace="n", lane="mail", task="t").encode().startswith(pack(["n", "mail"]))


@pytest.mark.parametrize("data", [b"", b"1:n", b"1:n1:l1:t0:0:", b"junk", pack([b"\xff"] * 6)])
def test_a_damaged_class_is_reported(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_class(data)


@pytest.mark.parametrize(
    ("offered", "tasks", "fits"),
    [
        (["gpu"], None, True),
        (["gpu", "more"], ["t", "u"], True),
        ([], None, False),
        (["cpu"], None, False),
        (["gpu"], ["u"], False),
        (["gpu"], [], False),
    ],
    ids=str,
)
def test_a_class_fits_a_worker_with_its_capabilities_and_task(
    offered: list[str], tasks: list[str] | None, fits: bool
) -> None:
    work_class = WorkClass(namespace="n", lane="l", task="t", capabilities=("gpu",))

    assert work_class.fits(frozenset(offered), None if tasks is None else frozenset(tasks)) == fits


# Policies


@given(policies)
def test_a_policy_reads_back(policy: ExecutionPolicy) -> None:
    assert decode_policy(encode_policy(policy), class_of(policy)) == policy


def test_the_default_policy_takes_no_bytes() -> None:
    policy = ExecutionPolicy()

    assert encode_policy(policy) == b""
    assert decode_policy(None, class_of(policy)) == decode_policy(b"", class_of(policy)) == policy


@pytest.mark.parametrize("zero", ["max_reclaim_count", "max_replay_count"])
def test_a_count_of_nothing_is_not_the_default(zero: str) -> None:
    policy = ExecutionPolicy(**{zero: 0})

    assert decode_policy(encode_policy(policy), class_of(policy)) == policy


def test_fields_of_a_newer_release_are_left_out() -> None:
    policy = ExecutionPolicy(max_replay_count=3)
    work_class = class_of(policy)

    assert decode_policy(encode_policy(policy) + b"9|7|", work_class) == policy
    assert decode_class(work_class.encode() + pack(["new"])) == work_class


@pytest.mark.parametrize("data", [b"x", b"|" * 12, b"|" * 13 + b"x", b"|" * 14 + b"x", b"x" + b"|" * 13, b"\xff|" * 13])
def test_a_damaged_policy_is_reported(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_policy(data, class_of(ExecutionPolicy()))
