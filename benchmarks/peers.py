"""This library beside its peers: rounds in which each takes the same steps on the same empty server."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from benchmarks.environments import Script, ask, python_for
from benchmarks.report import NOTHING, Table, number, verdict
from benchmarks.rows import OURS, ROWS, Row
from benchmarks.server import Server

Figures: TypeAlias = dict[str, dict[str, list[float]]]
"""By row and contestant: what each round gave."""

Tell: TypeAlias = Callable[[str], None]


def compare(
    server: Server, chosen: Sequence[Script], rows: Collection[Row], *, tasks: int, rounds: int, cache: Path, tell: Tell
) -> tuple[Figures, dict[str, str]]:
    """Measures everyone; returns the figures, and what was measured in which versions.

    Args:
        tasks: how many each gets, or its share of them.
        rounds: in each of them the order is drawn anew, so that nobody always comes first, or behind the same one.
        cache: where their environments are kept.
        tell: is told how far it is.
    """
    tell("Preparing the environments")
    pythons = {script: python_for(script, cache) for script in chosen}
    versions = {script.name: _versions(script, python, server) for script, python in pythons.items()}
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
    return figures, versions


def _versions(script: Script, python: Path, server: Server) -> str:
    versions: dict[str, str] = ask(script, python, "versions", 0, server.url)["versions"]
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def table(figures: Figures, chosen: Sequence[Script], rows: Collection[Row], *, tasks: int, rounds: int) -> Table:
    """The medians, how many times as good ours is, and whether that is enough."""
    names = sorted((script.name for script in chosen), key=lambda name: (name != OURS, name))
    peers = [name for name in names if name != OURS]
    counts = ", ".join(f"{script.tasks(tasks):,} for {script.name}" for script in chosen)
    return Table(
        title="Beside its peers",
        headings=["what", "unit", *names, *(f"x {peer}" for peer in peers), "must reach", "reached"],
        rows=[_line(row, _medians(figures[row.name]), names, peers) for row in rows],
        notes=[
            f"Rounds: {rounds}, of which these are the medians. Tasks: {counts}.",
            '"x peer" is how many times as good ours is: above 1 is better, of rates and of times.',
        ],
    )


def _medians(rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rounds.items()}


def _line(row: Row, medians: Mapping[str, float], names: Sequence[str], peers: Sequence[str]) -> list[str]:
    # A target against somebody who does not take part says nothing here.
    targets = [target for target in row.targets if target.against is None or target.against in names]
    return [
        row.title,
        row.unit,
        *(number(medians.get(name)) for name in names),
        *(number(row.advantage(medians, peer)) for peer in peers),
        ", ".join(row.describe(target) for target in targets) or NOTHING,
        verdict([row.reaches(medians, target) for target in targets]),
    ]
