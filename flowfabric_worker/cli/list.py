"""The command `list`: list executions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import click

from flowfabric_worker.cli.lanes import report_unknown_lanes
from flowfabric_worker.cli.options import (
    json_option,
    limit_option,
    tag_option,
    with_client,
)
from flowfabric_worker.cli.output import print_json, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.listing import Listing

# The rows of a table if --limit is not given.
_ROWS = 50
_STATES = [state.value for state in PublicState]


@click.command("list")
@click.option("--lane", help="List the executions of one lane.")
@click.option("--state", type=click.Choice(_STATES), metavar="STATE", help="List those in one state, such as failed.")
@click.option("--task", help="List the executions of one task.")
@tag_option("List the executions with this tag; repeatable.")
@limit_option(_ROWS)
@json_option("Print one JSON document per line.")
@with_client
def list_(
    client: Client, *, tags: tuple[tuple[str, str], ...], limit: int | None, as_json: bool, **filters: str | None
) -> None:
    """List executions, oldest first.

    The table shows the first 50. With --json all executions are printed as they are found, for other commands to
    read. If a limit leaves executions out, a line on stderr says so.

    There is an index for --lane and for most states, but none for --task, --tag and the states waiting and
    completed: to find those, the command scans other executions too, and says on stderr how many it scanned.
    """
    found = client.list(tags=dict(tags), **filters)
    if limit is None and not as_json:
        limit = _ROWS
    chosen = itertools.islice(found, limit)
    if as_json:
        for each in chosen:
            print_json(each)
    else:
        rows = list(chosen)
        _print_list(rows, client)
        if not rows and filters["lane"] is not None:
            report_unknown_lanes(client, [filters["lane"]])
    if limit is not None and next(found, None) is not None:
        click.echo(f"There are more than {limit} executions; set --limit to see more.", err=True)
    _report_scan(found, filters["state"])


def _print_list(rows: Sequence[ExecutionSummary], client: Client) -> None:
    if not rows:
        click.echo("No executions found.", err=True)
        return
    now = client.engine.server_time()
    cells = [_row(each, now) for each in rows]
    print_table(("ID", "STATE", "AGE", "LANE", "TASK"), cells, cut={"LANE", "TASK"})


def _report_scan(found: Listing, state: str | None) -> None:
    """Report on stderr how many executions were scanned, if options have no index."""
    if found.unindexed:
        options = {"state": f"--state {state}", "task": "--task", "tags": "--tag"}
        which = " and ".join(options[name] for name in found.unindexed)
        verb = "has" if len(found.unindexed) == 1 else "have"
        click.echo(f"Scanned {found.looked_at:,} executions: {which} {verb} no index, unlike --lane.", err=True)


def _row(summary: ExecutionSummary, now: int) -> tuple[object, ...]:
    if summary.corruption is not None:
        return summary.execution_id, "damaged", "", "", summary.corruption
    age = span(now - (summary.created_at_ms or now))
    return summary.execution_id, summary.public_state or "newer release", age, summary.lane, summary.task
