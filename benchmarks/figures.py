"""Arithmetic of measurements; nothing but the standard library, since peers use it too."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of all values does not exceed (0 < share <= 1)."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def advantage(ours: float, theirs: float, *, more_is_better: bool) -> float:
    """Return how many times as good our figure is; above 1 is better for every unit."""
    return ours / theirs if more_is_better else theirs / ours


def per_item(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Split a cost into what each item adds and what a batch costs besides, from two batches `(items, cost)`."""
    each = (large[1] - small[1]) / (large[0] - small[0])
    return each, small[1] - each * small[0]
