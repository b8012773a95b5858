"""How options are read, and how values are printed."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.cli.options import duration
from flowfabric_worker.cli.output import plain, shown, span
from flowfabric_worker.cli.run import lane_weights
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.types.policies import ExecutionPolicy, FailureClass, RetryPolicy


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), ("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0", 0)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


def test_lanes_have_the_weight_1_where_nothing_is_said() -> None:
    assert lane_weights("mail=3, etl") == {"mail": 3, "etl": 1}


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(-5, "0s"), (59_999, "59s"), (60_000, "1m"), (3_600_000, "1h"), (172_800_000, "2d")]
)
def test_a_span_is_told_in_its_largest_unit(milliseconds: int, text: str) -> None:
    assert span(milliseconds) == text


def test_what_is_shown_keeps_letters_and_lines_and_escapes_the_rest() -> None:
    assert shown("a é 茶\n\t\x1b\x9b\u202e\x00") == "a é 茶\n\t\\u001b\\u009b\\u202e\\u0000"


def test_records_become_what_json_has() -> None:
    policy = ExecutionPolicy(
        retry=RetryPolicy(initial=timedelta(seconds=1.5), retryable_categories={FailureClass.TIMEOUT}),
        requires={"b", "a"},
    )
    identity = ExecutionId.parse("{fp:0}:01890000-0000-7000-8000-000000000000")

    document = plain({"id": identity, "policy": policy, "data": b"x\xff", "pair": (1, None)})

    assert document["id"] == identity.plain
    assert document["policy"]["requires"] == ["a", "b"]
    assert document["policy"]["retry"]["initial"] == 1.5
    assert document["policy"]["retry"]["retryable_categories"] == ["timeout"]
    assert (document["data"], document["pair"]) == ("x�", [1, None])
