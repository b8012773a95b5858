"""Tables for people, fitted to a terminal.

Only a command that prints a table imports this module: loading rich takes time, and memory of a worker process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flowfabric_worker.cli.output import plain, shown

# The width of the gap between two columns, and the least width to which a column is shortened.
_GAP: Final = 2
_LEAST_WIDTH: Final = 8


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts unchanged; it uses no colours without a terminal, or if NO_COLOR is set."""
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


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
