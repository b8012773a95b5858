"""The command `list`: list executions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import click

from flowfabric_worker.cli.options import (
    json_option,
    tag_option,
    with_client,
)
from flowfabric_worker.cli.output import print_json, print_table, span
from flowfabric_worker.client import Client, Listing
from flowfabric_worker.engine.types.reads import ExecutionSummary
from flowfabric_worker.engine.types.states import PublicState

# Rows of a table, where no other limit is given.
_ROWS = 50
_STATES = [state.value for state in PublicState]


@click.command("list")
@click.option("--lane", help="Those of one lane.")
@click.option("--state", type=click.Choice(_STATES), metavar="STATE", help="Those in one state, such as failed.")
@click.option("--task", help="Those of one task.")
@tag_option("Those with this tag; may repeat.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"At most so many; {_ROWS}, or all with --json.")
@json_option("Print one JSON document per line.")
@with_client
def list_(
    client: Client, *, tags: tuple[tuple[str, str], ...], limit: int | None, as_json: bool, **filters: str | None
) -> None:
    """List executions, oldest first.

    A table has the first 50. With --json all are printed, as they are found, for other commands to read. A list that
    is cut short says so on stderr, and so does one for which executions were looked at that are not shown: --task,
    --tag and the states waiting and completed have no index; --lane and the other states have one.
    """
    found = client.list(tags=dict(tags), **filters)
    if limit is None and not as_json:
        limit = _ROWS
    chosen = itertools.islice(found, limit)
    if as_json:
        for each in chosen:
            print_json(each)
    else:
        _print_list(list(chosen), client)
    if limit is not None and next(found, None) is not None:
        click.echo(f"There are more than {limit}; ask for them with --limit.", err=True)
    _tell_what_it_took(found, filters["state"])


def _print_list(rows: Sequence[ExecutionSummary], client: Client) -> None:
    if not rows:
        click.echo("There are none.", err=True)
        return
    now = client.engine.server_time()
    cells = [_row(each, now) for each in rows]
    print_table(("ID", "STATE", "AGE", "LANE", "TASK"), cells, cut={"LANE", "TASK"})


def _tell_what_it_took(found: Listing, state: str | None) -> None:
    """Say on stderr how many executions were looked at for options that have no index."""
    if found.unindexed:
        options = {"state": f"--state {state}", "task": "--task", "tags": "--tag"}
        which = " and ".join(options[name] for name in found.unindexed)
        verb = "has" if len(found.unindexed) == 1 else "have"
        click.echo(f"Looked at {found.looked_at:,} executions: {which} {verb} no index, --lane has one.", err=True)


def _row(summary: ExecutionSummary, now: int) -> tuple[object, ...]:
    if summary.corruption is not None:
        return summary.execution_id, "damaged", "", "", summary.corruption
    age = span(now - (summary.created_at_ms or now))
    return summary.execution_id, summary.public_state, age, summary.lane, summary.task
