"""How options are read."""

from __future__ import annotations

from datetime import timedelta

import pytest

from flowfabric_worker.cli.options import duration
from flowfabric_worker.cli.run import lane_weights


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("1.5", 1.5), ("250ms", 0.25), ("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0", 0)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


def test_lanes_have_a_default_weight_of_1() -> None:
    assert lane_weights("mail=3, etl") == {"mail": 3, "etl": 1}
