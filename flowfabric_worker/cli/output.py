"""The output of commands: tables for people, and JSON for programs, without control characters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

import attrs
import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flowfabric_worker.engine.ids import ExecutionId

_MOST_IN_PLANE: Final = 0xFFFF
# The width of the gap between two columns, and the least width to which a column is shortened.
_GAP: Final = 2
_LEAST_WIDTH: Final = 8


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts unchanged; it uses no colours without a terminal, or if NO_COLOR is set."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def shown(text: str) -> str:
    """Escape the characters of a text that would control a terminal; the result stays valid inside JSON."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" or ord(each) > _MOST_IN_PLANE else f"\\u{ord(each):04x}"
        for each in text
    )


def one_line(text: str) -> str:
    """Escape line ends as well, so that a text cannot look like a line of this program."""
    return shown(text).replace("\n", "\\n")


def plain(value: Any) -> Any:
    """Convert records, ids, durations and bytes to JSON values; durations become seconds."""
    if isinstance(value, ExecutionId):
        return value.plain
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


def print_json(value: Any, *, err: bool = False) -> None:
    """Print one JSON document on one line, on stdout or stderr."""
    click.echo(shown(json.dumps(plain(value), ensure_ascii=False)), err=err)


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    cut: Set[str] = frozenset(),
    folded: Set[str] = frozenset(),
    counts: Set[str] = frozenset(),
) -> None:
    """Print a table: fitted to the width of a terminal, or at full width if there is no terminal.

    Args:
        headers: the header of each column; all empty for a table without headers.
        rows: the cells of each row. Columns that are not named below, such as ids, are never shortened or folded.
        cut: the columns that may be shortened if the terminal is too narrow.
        folded: the columns that may be folded onto several lines if the terminal is too narrow.
        counts: the columns of numbers, which are aligned to the right.
    """
    cells = [[shown(str(plain(cell))) for cell in row] for row in rows]
    has_header = any(map(str.strip, headers))
    out = console()
    if not out.is_terminal:
        _print_plain([list(headers), *cells] if has_header else cells, [header in counts for header in headers])
        return
    widths = _fitted([headers, *cells], [header in cut | folded for header in headers], out.width)
    # If the ids alone are wider than the terminal, let it wrap the line: an id must be printed whole.
    out.width = max(out.width, sum(widths) + _GAP * (len(widths) - 1))
    columns = [
        _column(header, width, is_folded=header in folded, is_count=header in counts)
        for header, width in zip(headers, widths, strict=True)
    ]
    out.print(_table(columns, cells, has_header))


def _column(header: str, width: int, *, is_folded: bool, is_count: bool) -> Column:
    return Column(
        header,
        width=width,
        overflow="fold" if is_folded else "ellipsis",
        no_wrap=not is_folded,
        justify="right" if is_count else "left",
    )


def _table(columns: Iterable[Column], cells: Iterable[Sequence[str]], has_header: bool) -> Table:
    table = Table(*columns, box=None, pad_edge=False, show_header=has_header, header_style="bold")
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print a line for each name and text, folded to the width of a terminal."""
    print_table(("", " "), facts, folded={"", " "})


def fits(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> bool:
    """Return True if a table fits into the terminal, or if there is no terminal."""
    out = console()
    widths = _widths([headers, *([shown(str(plain(cell))) for cell in row] for row in rows)])
    return not out.is_terminal or sum(widths) + _GAP * (len(widths) - 1) <= out.width


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    # Count the columns of the terminal: a character may take two of them, or none.
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def _fitted(rows: Iterable[Sequence[str]], flexible: Sequence[bool], total: int) -> list[int]:
    """Return the widths of columns; the flexible columns share what the others leave of the line equally."""
    widths = _widths(rows)
    places = [place for place, is_flexible in enumerate(flexible) if is_flexible]
    left = total - _GAP * (len(widths) - 1) - sum(widths) + sum(widths[place] for place in places)
    # Start with the narrow columns: what they do not need goes to the wider ones.
    for taken, place in enumerate(sorted(places, key=lambda place: widths[place])):
        widths[place] = min(widths[place], max(_LEAST_WIDTH, left // (len(places) - taken)))
        left -= widths[place]
    return widths


def _print_plain(rows: Sequence[Sequence[str]], counts: Sequence[bool]) -> None:
    rows = [[cell.replace("\n", "\\n") for cell in row] for row in rows]
    widths = _widths(rows)
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        padded = [
            space + cell if is_count else cell + space
            for cell, space, is_count in zip(row, spaces, counts, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def moment(milliseconds: int | None) -> str:
    """Format a time of the store's clock, in ms, in this machine's time zone; return "" for None."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().isoformat(" ", "milliseconds")


def span(milliseconds: float) -> str:
    """Format a duration, in ms, in its largest unit, such as 12s, 3m, 5h or 2d."""
    seconds = max(0, int(milliseconds / 1000))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def print_again(print_once: Callable[[], None], every: timedelta, times: int | None) -> None:
    """Print something again and again: so many times, or until the user stops it."""
    printed = 0
    while True:
        print_once()
        printed += 1
        if times is not None and printed >= times:
            return
        time.sleep(every.total_seconds())
