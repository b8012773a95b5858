"""What commands print: tables for people, JSON for programs, and nothing that a terminal would obey."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

import attrs
import click
from rich.console import Console
from rich.table import Table

from flowfabric_worker.engine.ids import ExecutionId

_MOST_IN_PLANE: Final = 0xFFFF


def console(*, stderr: bool = False) -> Console:
    """A console that takes texts as they are; it is plain where nobody looks, and where NO_COLOR is set."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def shown(text: str) -> str:
    """A text without anything that would steer a terminal; what is escaped stays valid inside JSON."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" or ord(each) > _MOST_IN_PLANE else f"\\u{ord(each):04x}"
        for each in text
    )


def plain(value: Any) -> Any:
    """Records, ids, durations and bytes as what JSON has; durations in seconds."""
    if isinstance(value, ExecutionId):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, Set):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    click.echo(shown(json.dumps(plain(value), ensure_ascii=False)))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table: folded into the width of a terminal, or aligned and whole where there is none.

    The first column, which names what a row is about, is never folded: it is there to be copied.
    """
    cells = [[shown(str(cell)) for cell in row] for row in rows]
    out = console()
    if not out.is_terminal:
        _print_plain([list(headers), *cells] if any(headers) else cells)
        return
    table = Table(box=None, pad_edge=False, show_header=any(headers), header_style="bold")
    for place, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=place == 0)
    for row in cells:
        table.add_row(*row)
    out.print(table)


def _print_plain(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def moment(milliseconds: int | None) -> str:
    """A moment of the store's clock in this machine's time zone; nothing for None."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().isoformat(" ", "milliseconds")


def span(milliseconds: float) -> str:
    """A duration in its largest sensible unit, as in 12s, 3m, 5h, 2d."""
    seconds = max(0, int(milliseconds / 1000))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
