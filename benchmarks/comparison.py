"""This library beside its peers: rounds in which each takes the same steps on the same empty server."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from benchmarks.environments import Script, ask, python_for
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.rows import OURS, ROWS, Row, Target


class Measured(Protocol):
    """The server that peers are measured on."""

    @property
    def url(self) -> str: ...

    def clear(self) -> None: ...


Figures: TypeAlias = dict[str, dict[str, list[float]]]
"""By row and peer: what each round gave."""

JUDGED = ("must reach", "reached", "goal", "goal met")
_ALLOWED = (
    '"Must reach" and "goal" say what a rate must be at least, and a time at most: at 1.6 x huey it may take '
    "1.6 times as long as huey does, since 0.8 ms (p50) and 2 ms (p99) are allowed where huey takes 0.5 and 1."
)
_ODDITIES = {
    "dbos": "polls its queue once a second",
    "huey": "promises at most once, and so acknowledges nothing",
    "pgqueuer": "runs coroutines on one loop and keeps no results; the time of a start is that of its log",
    "procrastinate": "keeps no results; the time of a start is that of its event",
    "rq": "has no threads; eight forking workers stand for one process of 8 threads",
}

Tell: TypeAlias = Callable[[str], None]


def versions(server: Measured, chosen: Sequence[Script], cache: Path, tell: Tell) -> dict[str, str]:
    """Return the measured versions by peer; make the environments that do not exist yet."""
    tell("Preparing the environments")
    answers = {script.name: ask(script, python_for(script, cache), "versions", 0, server.url) for script in chosen}
    return {
        name: ", ".join(f"{package} {version}" for package, version in answer["versions"].items())
        for name, answer in answers.items()
    }


def compare(
    server: Measured,
    chosen: Sequence[Script],
    rows: Collection[Row],
    *,
    tasks: int,
    rounds: int,
    cache: Path,
    tell: Tell,
) -> Figures:
    """Measure every peer.

    Args:
        tasks: how many each gets, or its share of them.
        rounds: the order is drawn again for each, so that no peer is always first, or always behind the same one.
        cache: where their environments are kept.
        tell: is told how far it is.
    """
    pythons = {script: python_for(script, cache) for script in chosen}
    figures: Figures = {row.name: {} for row in ROWS}
    steps = list(dict.fromkeys(row.step for row in rows))
    for number_ in range(1, rounds + 1):
        for script in random.sample(chosen, len(chosen)):
            for step in steps:
                tell(f"Round {number_} of {rounds}: {script.name}, {step}")
                server.clear()
                answer = ask(script, pythons[script], step, script.tasks(tasks), server.url)
                for name, value in answer["figures"].items():
                    figures[name].setdefault(script.name, []).append(value)
    return figures


def table(
    figures: Figures,
    chosen: Sequence[Script],
    rows: Collection[Row],
    *,
    tasks: int,
    rounds: int,
    title: str = "Beside its peers",
) -> Table:
    """Return the medians, how many times as good ours is, and whether that is enough."""
    names = sorted((script.name for script in chosen), key=lambda name: (name != OURS, name))
    peers = [name for name in names if name != OURS]
    counts = ", ".join(f"{script.tasks(tasks):,} for {script.name}" for script in chosen)
    return Table(
        title=title,
        headings=["what", "unit", *names, *(f"x {peer}" for peer in peers), *JUDGED],
        rows=[_line(row, _medians(figures[row.name]), names, peers) for row in rows],
        notes=[
            f"Rounds: {rounds}, of which these are the medians. Tasks: {counts}.",
            '"x peer" is how many times as good ours is: above 1 is better, of rates and of times.',
            *([_ALLOWED] if "huey" in names else []),
            *(f"{name}: {why}." for name, why in _ODDITIES.items() if name in names),
        ],
    )


def _medians(rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rounds.items()}


def _line(row: Row, medians: Mapping[str, float], names: Sequence[str], peers: Sequence[str]) -> list[str]:
    return [
        row.title,
        row.unit,
        *(number(medians.get(name)) for name in names),
        *(number(row.advantage(medians, peer)) for peer in peers),
        *_judged(row, row.targets, medians, names),
        *_judged(row, row.goals, medians, names),
    ]


def _judged(row: Row, targets: Sequence[Target], medians: Mapping[str, float], names: Sequence[str]) -> list[str]:
    """Return what a row must reach, and whether it does; a peer that was not measured asks for nothing."""
    asked = [target for target in targets if target.against is None or target.against in names]
    return [
        ", ".join(row.describe(target) for target in asked) or NOTHING,
        verdict([row.reaches(medians, target) for target in asked]),
    ]
