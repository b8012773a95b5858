"""The limits: their values, and that what an operator sets is sensible."""

from __future__ import annotations

import pytest

from flowfabric_worker.engine import limits
from flowfabric_worker.engine.limits import Limits

DAY_MS = 24 * 3600 * 1000

# Promised to users: a change of one is a change of the contract.
PROMISED = {
    "MAX_NAME_BYTES": 256,
    "MAX_LANE_CHARACTERS": 64,
    "MAX_PRIORITY": 9000,
    "MAX_BATCH_ITEMS": 500,
    "MAX_BATCH_BYTES": 8 * 1024 * 1024,
    "MAX_PAGE_SIZE": 1000,
    "MAX_CAPABILITIES": 256,
    "MAX_CAPABILITIES_BYTES": 4096,
    "MAX_CLASSES_PER_LANE": 1024,
    "MAX_CLASSES_PER_CLAIM": 64,
    "MAX_BUDGETS": 64,
    "MAX_STEPS": 1000,
    "MAX_JOURNAL_BYTES": 1024 * 1024,
    "MAX_SIGNAL_PAYLOAD_BYTES": 64 * 1024,
    "MAX_FRAME_BYTES": 64 * 1024,
    "MAX_CONDITION_BYTES": 8 * 1024,
    "MAX_CONDITION_DEPTH": 4,
    "MAX_WAITPOINTS": 64,
    "MAX_SUMMARY_DEPTH": 16,
    "MAX_TAIL_BLOCK_MS": 30_000,
    "MAX_READ_COUNT": 10_000,
    "MAX_BUDGET_DIMENSIONS": 64,
    "DEFAULT_RETENTION_MS": DAY_MS,
    "DEFAULT_DEDUP_WINDOW_MS": DAY_MS,
    "DEFAULT_LEASE_MS": 30_000,
    "DEFAULT_MAX_RECLAIMS": 100,
    "DEFAULT_MAX_REPLAYS": 10,
}


@pytest.mark.parametrize(("name", "value"), PROMISED.items())
def test_a_limit_is_what_is_promised(name: str, value: int) -> None:
    assert getattr(limits, name) == value


def test_an_operators_limits_begin_with_what_is_promised() -> None:
    assert (Limits().payload_bytes, Limits().signals_per_execution) == (1024 * 1024, 10_000)


@pytest.mark.parametrize("name", ["payload_bytes", "signals_per_execution"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_of_nothing_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: value})


def test_the_largest_score_of_a_place_is_exact() -> None:
    # A place is a moment in ms minus the priority times 1e12, kept as a double.
    largest = limits.MAX_PRIORITY * 10**12

    assert largest < 2**53
    assert float(-largest) + 1 != float(-largest)
