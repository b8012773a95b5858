"""Tables, printed as plain text or as Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

NOTHING = "-"


@attrs.frozen(kw_only=True)
class Table:
    """Figures under a title; notes say how they came about."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many digits that count."""
    if value is None:
        return NOTHING
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def verdict(reached: Sequence[bool | None]) -> str:
    """Return True if every target was reached that could be checked."""
    checked = [each for each in reached if each is not None]
    if not checked:
        return NOTHING
    return "yes" if all(checked) else "no"


def as_text(table: Table) -> str:
    """Return a table for a terminal."""
    lines = [table.headings, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    ruler = ["-" * width for width in widths]
    body = [_aligned(line, widths) for line in (table.headings, ruler, *table.rows)]
    return "\n".join([table.title, "", *body, *table.notes])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def as_markdown(table: Table) -> str:
    """Return a table for a page."""
    alignment = ["---", *["---:"] * (len(table.headings) - 1)]
    body = [f"| {' | '.join(line)} |" for line in (table.headings, alignment, *table.rows)]
    return "\n".join([f"## {table.title}", "", *body, *(f"\n{note}" for note in table.notes)])


def facts(command: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Return where and how it was measured."""
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    """Return what the processor calls itself."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def page(known: Mapping[str, str], tables: Sequence[Table], title: str = "Benchmarks") -> str:
    """Return everything as a page of Markdown."""
    head = [f"- {name}: {value}" for name, value in known.items()]
    return "\n\n".join([f"# {title}", "\n".join(head), *map(as_markdown, tables)]) + "\n"
