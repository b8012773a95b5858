"""The command `bench`: measure how fast a store is, and what limits it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import click
from rich.progress import BarColumn, Progress, TextColumn

from flowfabric_worker.cli.bench.measures import STEPS, Bench, Told
from flowfabric_worker.cli.bench.verdict import Figures, Pace, Spread, bound_of_all, bound_of_one, verdict
from flowfabric_worker.cli.exit_codes import debug_option
from flowfabric_worker.cli.options import json_option, url_option
from flowfabric_worker.cli.output import plain, print_json
from flowfabric_worker.cli.tables import console, print_table
from flowfabric_worker.cli.trial_store import trial_store
from flowfabric_worker.config import DEFAULT_THREADS, store_url


@click.command()
@url_option
@click.option(
    "--tasks", type=click.IntRange(1, 100_000), default=5000, show_default=True, help="The most tasks to submit."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1000),
    default=DEFAULT_THREADS,
    show_default=True,
    help="How many handlers run at the same time.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    default=10,
    show_default=True,
    help="About how long to measure.",
)
@json_option()
@debug_option
def bench(*, url: str | None, tasks: int, threads: int, seconds: float, as_json: bool) -> None:
    """Measure how fast the store is, and say what limits it.

    It measures the round trip, submitting one by one and in bulk, draining, and the latency of a single task.

    This process submits and runs tasks that do nothing, under a separate prefix, and removes everything at the end,
    also after Ctrl-C. Other work in the store lowers the figures.
    """
    with _endings(), trial_store(store_url(url), "bench") as trial, _progress() as tell:
        figures = Bench(trial, tasks=tasks, threads=threads, seconds=seconds, tell=tell).run()
    if as_json:
        print_json(_document(figures))
        return
    headers = ("", "PER SECOND", "P50", "P99")
    print_table(headers, _rows(figures, threads), counts=set(headers[1:]))
    click.echo()
    console().print(verdict(figures))


@contextlib.contextmanager
def _endings() -> Iterator[None]:
    """Turn signals that would end this process into KeyboardInterrupt, so that it cleans up first."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    previous = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress() -> Iterator[Told]:
    """Provide a progress bar per step, if stderr is a terminal."""
    out = console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )
    with progress:
        bars = {step: progress.add_task(step, total=1.0) for step in STEPS}
        yield lambda step, done: progress.update(bars[step], completed=done)


def _rows(figures: Figures, threads: int) -> Iterator[tuple[str, str, str, str]]:
    spreads = {
        "round trip": figures.ping,
        "call of an empty function": figures.call,
        "submit to start": figures.start,
        "submit to result": figures.result,
    }
    paces = {
        "submit one by one": figures.submit,
        "submit in bulk": figures.submit_bulk,
        f"drain with {threads} thread{'s' if threads != 1 else ''}": figures.drain,
    }
    yield from ((name, f"{pace.per_second:,.0f}", "", "") for name, pace in paces.items())
    yield from ((name, "", f"{each.p50_ms:.2f} ms", f"{each.p99_ms:.2f} ms") for name, each in spreads.items())


def _document(figures: Figures) -> dict[str, object]:
    measured = {name: getattr(figures, name) for name in ("ping", "call", "start", "result")}
    paces = {name: getattr(figures, name) for name in ("submit", "submit_bulk", "drain")}
    return {
        **{name: _spread(each) for name, each in measured.items()},
        **{name: _pace(each) for name, each in paces.items()},
        "submit_bound_by": bound_of_one(figures)[0],
        "drain_bound_by": bound_of_all(figures),
        "verdict": verdict(figures),
    }


def _spread(spread: Spread) -> dict[str, float]:
    return {name: round(value, 3) for name, value in plain(spread).items()}


def _pace(pace: Pace) -> dict[str, float | None]:
    return {
        "count": pace.count,
        "seconds": round(pace.seconds, 3),
        "per_second": round(pace.per_second, 1),
        "python_share": round(pace.python_share, 3),
        "server_share": None if pace.server_seconds is None else round(pace.server_share, 3),
    }
