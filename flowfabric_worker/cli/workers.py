"""The command `workers`: list workers."""

from __future__ import annotations

from collections.abc import Sequence

import click

from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.output import print_json, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.workers import WorkerInfo

_HEADERS = ("WORKER", "STATE", "STARTED", "THREADS", "LANES", "CAPABILITIES")


@click.command()
@json_option("Print one JSON document per line.")
@with_client
def workers(client: Client, *, as_json: bool) -> None:
    """List the workers of the last day and the lanes they serve."""
    found = list(client.workers())
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        now = client.engine.server_time()
        rows = [_worker(each, now) for each in found]
        headers: Sequence[str] = _HEADERS
        if not any(capabilities for *_, capabilities in rows):
            headers, rows = headers[:-1], [row[:-1] for row in rows]
        print_table(headers, rows, folded={"STATE", "LANES", "CAPABILITIES"}, counts={"THREADS"})
    else:
        click.echo("No workers found.", err=True)


def _worker(row: WorkerInfo | DamagedRow, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, f"damaged: {row.corruption}", "", "", "", ""
    since = span(now - row.registered_at_ms)
    return (
        row.worker_instance_id,
        _life(row, now),
        since,
        row.threads,
        ", ".join(row.lanes),
        ", ".join(row.capabilities),
    )


def _life(row: WorkerInfo, now: int) -> str:
    """Describe whether a worker is alive, or why and how long ago it ended."""
    if row.alive:
        return "alive"
    over = span(now - row.expires_at_ms)
    return f"{row.death_reason} {over} ago" if row.death_reason else f"lost: silent for {over}"
