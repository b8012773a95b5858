"""The command `suspended`: list the executions that wait for signals, operators or time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

import click

from flowfabric_worker.cli.options import json_option, limit_option, with_client
from flowfabric_worker.cli.output import print_json, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.limits import MAX_PAGE_SIZE
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.suspension import SuspendedExecutionEntry
from flowfabric_worker.listing import rows_of

# Rows of a table, where no other limit is given.
_ROWS = 50
_HEADERS = ("ID", "SINCE", "UNTIL", "FOR", "LANE", "TASK")

Row = SuspendedExecutionEntry | DamagedRow


@click.command()
@click.option("--lane", help="List the executions of one lane.")
@limit_option(_ROWS)
@json_option("Print one JSON document per line.")
@with_client
def suspended(client: Client, *, lane: str | None, limit: int | None, as_json: bool) -> None:
    """List the executions that wait, longest first.

    SINCE is how long an execution waits, UNTIL when its timeout comes, FOR what it waits for. With --json all are
    printed, with their moments in ms.
    """
    found = (row for row in _of_every_partition(client) if lane is None or _lane(row) in (lane, None))
    if limit is None and not as_json:
        limit = _ROWS
    chosen = itertools.islice(found, limit)
    if as_json:
        for row in chosen:
            print_json(row)
    elif rows := list(chosen):
        now = client.engine.server_time()
        print_table(_HEADERS, [_cells(row, now) for row in rows], cut={"FOR", "LANE", "TASK"})
    else:
        click.echo("No suspended executions found.", err=True)
    if limit is not None and next(found, None) is not None:
        click.echo(f"There are more than {limit}; ask for them with --limit.", err=True)


def _of_every_partition(client: Client) -> Iterator[Row]:
    """Yield the suspended executions of the namespace, the one that has waited longest first."""
    return heapq.merge(*(_of_partition(client, number) for number in range(client.engine.partitions)), key=_place)


def _of_partition(client: Client, partition: int) -> Iterator[Row]:
    def read(cursor: str | None) -> tuple[Sequence[Row], str | None]:
        page = client.engine.list_suspended(partition, cursor, MAX_PAGE_SIZE)
        return page.executions, page.next_cursor

    return rows_of(read)


def _place(row: Row) -> tuple[int, str]:
    # A damaged row does not know its moment, and is shown at once.
    return (0, row.row_id) if isinstance(row, DamagedRow) else (row.suspended_at_ms, row.execution_id.uuid)


def _lane(row: Row) -> str | None:
    return None if isinstance(row, DamagedRow) else row.lane


def _cells(row: Row, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, "", "", "damaged", "", row.corruption
    until = "-" if row.timeout_at_ms is None else f"in {span(row.timeout_at_ms - now)}"
    reason = row.reason.value.removeprefix("waiting_for_").replace("_", " ")
    return row.execution_id, f"{span(now - row.suspended_at_ms)} ago", until, reason, row.lane, row.task
