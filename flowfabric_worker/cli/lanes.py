"""The command `lanes`: list, pause and resume lanes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.output import print_json, shown, span
from flowfabric_worker.cli.tables import fits, print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.reads import LaneInfo
from flowfabric_worker.engine.types.states import PublicState

# The states that always have a column; the others have one only if a lane holds work in them.
_ALWAYS_SHOWN = (
    PublicState.WAITING,
    PublicState.DELAYED,
    PublicState.ACTIVE,
    PublicState.COMPLETED,
    PublicState.FAILED,
)

_SAID = {
    ("pause", True): "paused",
    ("pause", False): "was already paused",
    ("resume", True): "resumed",
    ("resume", False): "was not paused",
}


@click.command()
@click.argument("action", type=click.Choice(["list", "pause", "resume"]), default="list")
@click.argument("names", nargs=-1, metavar="[LANE]...")
@json_option("Print one JSON document per line.")
@with_client
def lanes(client: Client, *, action: str, names: tuple[str, ...], as_json: bool) -> None:
    """List lanes and the work they hold; pause or resume them.

    Workers take no new work from a paused lane. What it holds is kept.
    """
    if not names and action != "list":
        raise click.UsageError(f"Name the lanes to {action}.")
    report_unknown_lanes(client, names)
    if action == "list":
        found = [lane for lane in client.lanes() if not names or lane.lane in names]
        _list_lanes(found, client.engine.server_time(), as_json)
        return
    for name in names:
        changed = client.pause_lane(name) if action == "pause" else client.resume_lane(name)
        if as_json:
            print_json({"lane": name, "changed": changed})
        else:
            click.echo(shown(f"{name}: {_SAID[action, changed]}."))


def report_unknown_lanes(client: Client, names: Collection[str]) -> None:
    """Report on stderr each name that no lane of the store has, with a similar name."""
    known = {each.lane for each in client.lanes()} if names else set()
    for name in names:
        if name not in known:
            click.echo(shown(f"The store has no lane {name!r} yet.{did_you_mean(name, known)}"), err=True)


def _list_lanes(found: Sequence[LaneInfo], now: int, as_json: bool) -> None:
    if as_json:
        for lane in found:
            print_json(lane)
        return
    if not found:
        click.echo("No lanes found: a lane exists once work was submitted to it.", err=True)
        return
    states = [state for state in PublicState if state in _ALWAYS_SHOWN or any(lane.depths[state] for lane in found)]
    counts = [state.value.upper() for state in states]
    headers = ("LANE", "IS", *counts)
    rows = [(lane.lane, _is(lane, now), *(lane.depths[state] for state in states)) for lane in found]
    if fits(headers, rows):
        print_table(headers, rows, counts=set(counts))
    else:
        held = [(lane.lane, _is(lane, now), _holds(lane)) for lane in found]
        print_table(("LANE", "IS", "HOLDS"), held, folded={"LANE", "HOLDS"})


def _is(lane: LaneInfo, now: int) -> str:
    state = "open" if lane.paused_since_ms is None else f"paused {span(now - lane.paused_since_ms)}"
    return state if lane.corruption is None else f"{state}, counters damaged"


def _holds(lane: LaneInfo) -> str:
    """Describe the work that a lane holds, state by state."""
    return ", ".join(f"{depth} {state}" for state, depth in lane.depths.items() if depth) or "nothing"
