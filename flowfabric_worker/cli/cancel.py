"""The command `cancel`: cancel executions."""

from __future__ import annotations

import click

from flowfabric_worker.cli.each_execution import for_each, ids_argument
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.client import Client


@click.command()
@ids_argument
@click.option("--reason", default="", help="The reason, which is stored with the execution.")
@json_option("Print one JSON document per execution.")
@with_client
def cancel(client: Client, *, execution_ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Cancel waiting, running or suspended executions.

    "-" reads ids from stdin: one per line, or the output of list --json. If an execution cannot be cancelled, the
    others still are, and the exit code is 1.
    """
    for_each(execution_ids, lambda identity: client.cancel(identity, reason), "is cancelled", as_json)
