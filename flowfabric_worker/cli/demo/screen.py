"""The output of the demo: progress bars on a terminal, lines elsewhere, and the proof."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from flowfabric_worker.cli.demo.proof import Proof

_COLUMNS = ("submitted", "completed", "failed", "twice", "missing", "retries", "rerun")


class Screen:
    """The progress of the demo on the console.

    Args:
        console: the console to print on.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def print_line(self, text: str) -> None:
        """Print a line above the progress bars, with the seconds since the start."""
        self._console.print(f"{time.monotonic() - self._began:5.1f} s  {text}", soft_wrap=True)

    def add(self, name: str, total: int, note: str = "") -> None:
        """Add a progress bar."""
        self._bars[name] = self._progress.add_task(name, total=total, note=note)

    def advance(self, name: str) -> None:
        """Advance a progress bar by one."""
        self._progress.advance(self._bars[name])

    def note(self, name: str, text: str) -> None:
        """Show a text next to a progress bar."""
        self._progress.update(self._bars[name], note=text)


def show(proof: Proof, completed_by: Mapping[str, int], console: Console) -> None:
    """Print the table of the proof, the executions of each worker, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    table.add_column("task", footer="all")
    for column in _COLUMNS:
        table.add_column(column, justify="right", footer=str(sum(getattr(kind, column) for kind in proof.kinds)))
    for kind in proof.kinds:
        table.add_row(kind.name, *(str(getattr(kind, column)) for column in _COLUMNS))
    console.print()
    console.print(table)
    console.print()
    console.print(f"Completed by {', '.join(f'{name}: {count}' for name, count in completed_by.items())}.")
    console.print(f"The killed worker held {proof.interrupted} executions; {proof.interrupted - proof.left} ran again.")
    if proof.holds:
        console.print(f"Proved: each of the {proof.submitted} executions ended exactly once.", style="bold green")
    else:
        console.print(f"Not proved: {' '.join(proof.objections())}", style="bold red")
