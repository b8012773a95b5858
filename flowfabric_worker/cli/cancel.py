"""The command `cancel`: end executions as cancelled."""

from __future__ import annotations

import click

from flowfabric_worker.cli.each_execution import for_each, ids_argument
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.client import Client


@click.command()
@ids_argument
@click.option("--reason", default="", help="Kept with the execution.")
@json_option("Print one JSON document per execution.")
@with_client
def cancel(client: Client, *, execution_ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    """End executions as cancelled, whatever they are doing.

    "-" reads ids from stdin: one per line, or what list --json prints. The exit code is 1 if one could not be
    cancelled; the others are.
    """
    for_each(execution_ids, lambda identity: client.cancel(identity, reason), "is cancelled", as_json)
