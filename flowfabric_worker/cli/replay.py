"""The command `replay`: run ended executions again."""

from __future__ import annotations

import click

from flowfabric_worker.cli.each_execution import for_each, ids_argument
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.client import Client


@click.command()
@ids_argument
@json_option("Print one JSON document per execution.")
@with_client
def replay(client: Client, *, execution_ids: tuple[str, ...], as_json: bool) -> None:
    """Run ended executions again.

    "-" reads ids from stdin: one per line, or what list --json prints. The exit code is 1 if one could not be
    replayed; the others are.

    \b
      flowfabric-worker list --state failed --json |
        flowfabric-worker replay -
    """
    for_each(execution_ids, client.replay, "runs again", as_json)
