"""The rows of the comparison, and the target of each figure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from benchmarks.figures import advantage

OURS = "flowfabric"


@attrs.frozen
class Target:
    """A figure must be so many times as good as a peer's; or, without one, reach a value.

    Attributes:
        factor: times as good as `against`; without it the value itself, in the row's unit.
    """

    factor: float
    against: str | None = None


@attrs.frozen(kw_only=True)
class Row:
    """One thing that is compared.

    Attributes:
        step: the peers' step that gives it.
        unit: "per s", where more is better, "ms", or "x idle": how many times as long as on a quiet server.
        targets: what it must reach.
        goals: what it should reach one day.
    """

    name: str
    step: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()
    goals: tuple[Target, ...] = ()

    @property
    def more_is_better(self) -> bool:
        return self.unit == "per s"

    def advantage(self, figures: Mapping[str, float], peer: str) -> float | None:
        """Return how many times as good our figure is; None if one of the two was not measured."""
        if OURS not in figures or peer not in figures:
            return None
        return advantage(figures[OURS], figures[peer], more_is_better=self.more_is_better)

    def reaches(self, figures: Mapping[str, float], target: Target) -> bool | None:
        """Return True if our figure reaches the target; None if one of the two was not measured."""
        if target.against is not None:
            times = self.advantage(figures, target.against)
            return None if times is None else times >= target.factor
        if OURS not in figures:
            return None
        return figures[OURS] >= target.factor if self.more_is_better else figures[OURS] <= target.factor

    def describe(self, target: Target) -> str:
        """Return a target in a few words: what a rate must be at least, and a time at most."""
        if target.against is None:
            return f"{target.factor:g} {self.unit}"
        # Twice as good means half of the time.
        times = target.factor if self.more_is_better else 1 / target.factor
        return f"{times:g} x {target.against}"


# Submit to start may take 0.8 / 2 ms (p50 / p99) where huey takes 0.5 / 1 ms.
_START_P50 = 0.5 / 0.8
_START_P99 = 1 / 2

ROWS = (
    Row(
        name="submit",
        step="one_by_one",
        title="submit one by one",
        unit="per s",
        targets=(Target(1, "dramatiq"),),
        goals=(Target(1, "huey"),),
    ),
    Row(
        name="bulk",
        step="in_bulk",
        title="submit in bulk",
        unit="per s",
        targets=(Target(1, "dramatiq"), Target(2, "rq")),
        goals=(Target(4, "rq"),),
    ),
    Row(
        name="drain",
        step="one_by_one",
        title="drain, one process of 8 threads",
        unit="per s",
        targets=(Target(9, "dramatiq"), Target(20, "celery")),
        goals=(Target(12, "dramatiq"),),
    ),
    Row(
        name="drain_two",
        step="in_bulk",
        title="drain, two processes of 8 threads",
        unit="per s",
        targets=(Target(6, "dramatiq"),),
        goals=(Target(8, "dramatiq"),),
    ),
    Row(
        name="start_p50",
        step="at_rest",
        title="submit to start, p50",
        unit="ms",
        targets=(Target(_START_P50, "huey"),),
        goals=(Target(1, "huey"),),
    ),
    Row(
        name="start_p99",
        step="at_rest",
        title="submit to start, p99",
        unit="ms",
        targets=(Target(_START_P99, "huey"),),
        goals=(Target(1, "huey"),),
    ),
    Row(
        name="result_p50",
        step="at_rest",
        title="submit to result in hand, p50",
        unit="ms",
        targets=(Target(1, "celery"),),
        goals=(Target(1),),
    ),
    *(
        Row(
            name=f"beside_{what}_{share}{suffix}",
            step="beside",
            title=f"{title}, {share}, while another lane is drained{told}",
            unit=unit,
            targets=() if limit is None or not suffix else (Target(limit),),
        )
        for what, title, share, limit in (
            ("submit", "submit one", "p50", 2),
            ("submit", "submit one", "p99", 5),
            ("start", "submit to start", "p50", 2),
            ("start", "submit to start", "p99", None),
        )
        for suffix, unit, told in (("", "ms", ""), ("_times", "x idle", ", beside idle"))
    ),
    Row(name="empty_claim", step="empty_claim", title="empty claim, round trip, p50", unit="ms"),
)

POSTGRES_ROWS = (
    Row(name="submit", step="one_by_one", title="submit one by one", unit="per s"),
    Row(name="bulk", step="in_bulk", title="submit in bulk", unit="per s"),
    Row(
        name="drain",
        step="one_by_one",
        title="drain, one process of 8 threads",
        unit="per s",
        targets=(Target(20, "procrastinate"), Target(12, "dbos")),
        goals=(Target(1, "pgqueuer"),),
    ),
    Row(name="drain_two", step="in_bulk", title="drain, two processes of 8 threads", unit="per s"),
    Row(name="start_p50", step="at_rest", title="submit to start, p50", unit="ms"),
    Row(name="result_p50", step="at_rest", title="submit to result in hand, p50", unit="ms"),
)
