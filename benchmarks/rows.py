"""What is compared, and what each figure must reach."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from benchmarks.figures import advantage

OURS = "flowfabric"


@attrs.frozen
class Target:
    """A figure must be so many times as good as a contestant's; or, without one, reach a value.

    Attributes:
        factor: times as good as `against`; without it the value itself, in the row's unit.
    """

    factor: float
    against: str | None = None


@attrs.frozen(kw_only=True)
class Row:
    """One thing that is compared.

    Attributes:
        step: the contestants' step that gives it.
        unit: "per s", where more is better, or "ms".
    """

    name: str
    step: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()

    @property
    def more_is_better(self) -> bool:
        return self.unit == "per s"

    def advantage(self, figures: Mapping[str, float], peer: str) -> float | None:
        """How many times as good ours is; None if one of them was not measured."""
        if OURS not in figures or peer not in figures:
            return None
        return advantage(figures[OURS], figures[peer], more_is_better=self.more_is_better)

    def reaches(self, figures: Mapping[str, float], target: Target) -> bool | None:
        """Whether ours is good enough; None if that cannot be told."""
        if target.against is not None:
            times = self.advantage(figures, target.against)
            return None if times is None else times >= target.factor
        if OURS not in figures:
            return None
        return figures[OURS] >= target.factor if self.more_is_better else figures[OURS] <= target.factor

    def describe(self, target: Target) -> str:
        """A target in a few words."""
        if target.against is not None:
            return f"{target.factor:g} x {target.against}"
        return f"{target.factor:g} {self.unit}"


ROWS = (
    Row(
        name="submit",
        step="one_by_one",
        title="submit one by one",
        unit="per s",
        targets=(Target(1, "dramatiq"),),
    ),
    Row(
        name="bulk",
        step="in_bulk",
        title="submit in bulk",
        unit="per s",
        targets=(Target(1, "dramatiq"), Target(2, "rq")),
    ),
    Row(
        name="drain",
        step="one_by_one",
        title="drain, one process of 8 threads",
        unit="per s",
        targets=(Target(4, "dramatiq"), Target(10, "celery")),
    ),
    Row(
        name="drain_two",
        step="in_bulk",
        title="drain, two processes of 8 threads",
        unit="per s",
        targets=(Target(3, "dramatiq"),),
    ),
    Row(name="start_p50", step="at_rest", title="submit to start, p50", unit="ms", targets=(Target(0.8),)),
    Row(name="start_p99", step="at_rest", title="submit to start, p99", unit="ms", targets=(Target(2),)),
    Row(
        name="result_p50",
        step="at_rest",
        title="submit to result in hand, p50",
        unit="ms",
        targets=(Target(1, "celery"),),
    ),
    Row(name="empty_claim", step="empty_claim", title="empty claim, round trip, p50", unit="ms"),
)
