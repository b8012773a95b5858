"""`python -m benchmarks [SECTION]...`: print what the sections measure, or what all of them do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from benchmarks import (
    commands,
    comparison,
    flows,
    kills,
    leases,
    listings,
    logs,
    memory,
    postgres,
    quotas,
    report,
    scale,
    schedules,
    server_time,
    steps,
    streams,
    timing,
    waits,
    writes,
)
from benchmarks.environments import ROOT, Script, scripts
from benchmarks.report import Table
from benchmarks.rows import ROWS, Row
from benchmarks.server import Server

SECTIONS = (
    "peers", "kills", "memory", "commands", "server", "writes", "leases", "steps", "streams", "waits", "listings",
    "quotas", "flows", "logs", "scale", "schedules", "timing", "postgres",
)  # fmt: skip
_TABLES = {
    "writes": writes.table,
    "leases": leases.table,
    "steps": steps.table,
    "streams": streams.table,
    "waits": waits.table,
    "listings": listings.table,
    "quotas": quotas.table,
    "flows": flows.table,
    "logs": logs.table,
}
PAGE = ROOT / "docs" / "benchmarks.md"
POSTGRES_PAGE = ROOT / "docs" / "benchmarks-postgres.md"
_NAMES = sorted(
    {script.name for server in ("valkey", "postgres") for script in scripts(server)} | {row.name for row in ROWS}
)


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(SECTIONS))
@click.option(
    "--tasks", type=click.IntRange(1), default=20_000, show_default=True, help="Tasks to submit and to drain."
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Medians of so many rounds.")
@click.option("--only", multiple=True, type=click.Choice(_NAMES), help="Only this peer, or this row; may repeat.")
@click.option("--queued", type=click.IntRange(scale.FEW), default=1_000_000, show_default=True, help="A full store.")
@click.option(
    "--wait-seconds",
    type=click.FloatRange(kills.WITHIN),
    default=60.0,
    show_default=True,
    help="Seconds that a killed worker's tasks are waited for.",
)
@click.option(
    "--cache", type=click.Path(path_type=Path), default=ROOT / ".bench", help="Keeps the peers' environments."
)
@click.option("--markdown", is_flag=True, help="Also write the pages of docs/.")
def main(
    sections: tuple[str, ...],
    *,
    tasks: int,
    rounds: int,
    only: tuple[str, ...],
    queued: int,
    wait_seconds: float,
    cache: Path,
    markdown: bool,
) -> None:
    """Measure this library beside its peers: speed, kills, memory, commands, a full store, and schedules."""
    wanted = sections or SECTIONS
    chosen, rows = _chosen(only)
    cache = cache.absolute()
    # The load is that of others: what is measured here comes later.
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    with Server() as server:
        known = report.facts(command, {"Valkey": server.version})
        tables = []
        if {"peers", "kills", "memory"}.intersection(wanted):
            known |= comparison.versions(server, chosen, cache, _tell)
        if "peers" in wanted:
            figures = comparison.compare(server, chosen, rows, tasks=tasks, rounds=rounds, cache=cache, tell=_tell)
            tables.append(comparison.table(figures, chosen, rows, tasks=tasks, rounds=rounds))
    if "kills" in wanted:
        tables.append(kills.table(chosen, rounds=rounds, wait_seconds=wait_seconds, cache=cache, tell=_tell))
    if "memory" in wanted:
        tables.append(memory.table(chosen, tasks=tasks, cache=cache, tell=_tell))
    if "commands" in wanted:
        _tell("Counting commands")
        tables += commands.tables()
    if "server" in wanted:
        _tell("Measuring time in the server")
        tables += server_time.tables()
    for section, measure in _TABLES.items():
        if section in wanted:
            _tell(f"Measuring {section}")
            tables.append(measure())
    if "scale" in wanted:
        tables += scale.tables(queued=queued, tell=_tell)
    if "schedules" in wanted:
        tables.append(schedules.table(_tell))
    if "timing" in wanted:
        tables.append(timing.table(_tell))
    _show(known, tables, PAGE if markdown and tables else None)
    if "postgres" in wanted:
        peers = [script for script in scripts("postgres") if script.name in only] or scripts("postgres")
        known = report.facts(command, postgres.versions(peers, cache, _tell))
        tables = postgres.tables(peers, tasks=tasks, rounds=rounds, cache=cache, tell=_tell)
        _show(known, tables, POSTGRES_PAGE if markdown else None)


def _show(known: Mapping[str, str], tables: Sequence[Table], page: Path | None) -> None:
    """Print tables, and write the page that shows them."""
    for name, value in known.items():
        click.echo(f"{name}: {value}")
    for table in tables:
        click.echo(f"\n{report.as_text(table)}")
    if page is not None:
        title = "Benchmarks on Postgres" if page == POSTGRES_PAGE else "Benchmarks"
        page.write_text(report.page(known, tables, title), "utf-8")


def _chosen(only: tuple[str, ...]) -> tuple[list[Script], list[Row]]:
    """Return the peers and the rows that are asked for; all of them where none is named."""
    everyone = scripts()
    return (
        [script for script in everyone if script.name in only] or everyone,
        [row for row in ROWS if row.name in only] or list(ROWS),
    )


def _tell(message: str) -> None:
    click.echo(message, err=True)


if __name__ == "__main__":
    main()
