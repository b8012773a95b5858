"""The command `schedules`: list, pause, resume and remove schedules."""

from __future__ import annotations

from collections.abc import Sequence

import click

from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.output import print_json, shown, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.schedules import ScheduleInfo

_HEADERS = ("NAME", "SPEC", "TASK", "LAST", "NEXT", "MISSED", "STATE")

# If a tick is late by more than this, in ms, no worker is submitting the schedule.
_LATE = 60_000

_SAID = {
    ("pause", True): "paused",
    ("pause", False): "was already paused",
    ("resume", True): "resumed",
    ("resume", False): "was not paused",
    ("remove", True): "removed; a worker that still declares it adds it again",
}


@click.command()
@click.argument("action", type=click.Choice(["list", "pause", "resume", "remove"]), default="list")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option("Print one JSON document per line.")
@with_client
def schedules(client: Client, *, action: str, names: tuple[str, ...], as_json: bool) -> None:
    """List schedules; pause, resume or remove them.

    A paused schedule submits nothing, and the ticks that it skips are not made up for. Remove a schedule when no code
    declares it any more.
    """
    if action == "list":
        _list([each for each in client.schedules() if not names or _name(each) in names], client, as_json)
        return
    if not names:
        raise click.UsageError(f"Name the schedules to {action}.")
    for name in names:
        changed = _act(client, action, name)
        if as_json:
            print_json({"schedule": name, "changed": changed})
        else:
            click.echo(shown(f"{name}: {_SAID[action, changed]}."))


def _act(client: Client, action: str, name: str) -> bool:
    """Pause, resume or remove a schedule; return False if it was paused, or running, already.

    Raises:
        NotFoundError: `schedule_not_found`; the message suggests a similar name.
    """
    try:
        return _changed(client, action, name)
    except NotFoundError as error:
        hint = did_you_mean(name, map(_name, client.schedules()))
        message = f"There is no schedule {name!r}.{hint} A schedule exists once a worker that declares it has started."
        raise NotFoundError(error.code, message, schedule=name) from None


def _changed(client: Client, action: str, name: str) -> bool:
    if action == "remove":
        client.remove_schedule(name)
        return True
    return client.pause_schedule(name) if action == "pause" else client.resume_schedule(name)


def _list(found: Sequence[ScheduleInfo | DamagedRow], client: Client, as_json: bool) -> None:
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        now = client.engine.server_time()
        print_table(_HEADERS, [_row(each, now) for each in found], folded={"SPEC", "TASK", "STATE"})
    else:
        click.echo("No schedules found: a schedule exists once a worker that declares it has started.", err=True)


def _name(row: ScheduleInfo | DamagedRow) -> str:
    return row.row_id if isinstance(row, DamagedRow) else row.name


def _row(row: ScheduleInfo | DamagedRow, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, "", "", "", "", "", f"damaged: {row.corruption}"
    last = "never" if row.submitted_tick_ms is None else f"{span(now - row.submitted_tick_ms)} ago"
    return row.name, row.spec, row.task, last, _next(row, now), row.missed_ticks, _state(row, now)


def _next(row: ScheduleInfo, now: int) -> str:
    if row.paused_since_ms is not None or row.next_tick_ms is None:
        return "-"
    return f"in {span(row.next_tick_ms - now)}" if row.next_tick_ms > now else "now"


def _state(row: ScheduleInfo, now: int) -> str:
    if row.paused_since_ms is not None:
        return f"paused {span(now - row.paused_since_ms)}"
    if row.next_tick_ms is not None and now - row.next_tick_ms > _LATE:
        return f"late by {span(now - row.next_tick_ms)}: no worker submits it"
    return "on"
