"""The command `resume`: resume suspended executions, whatever they wait for."""

from __future__ import annotations

from datetime import timedelta

import click

from flowfabric_worker.cli.each_execution import for_each, ids_argument
from flowfabric_worker.cli.options import duration, json_option, with_client
from flowfabric_worker.client import Client
from flowfabric_worker.engine.ids import ExecutionId


@click.command()
@ids_argument
@click.option(
    "--delay",
    type=duration,
    default="0",
    show_default=True,
    metavar="DURATION",
    help="Wait at least this long before, such as 30s.",
)
@json_option("Print one JSON document per execution.")
@with_client
def resume(client: Client, *, execution_ids: tuple[str, ...], delay: timedelta, as_json: bool) -> None:
    """Resume suspended executions, whatever they wait for.

    The handler learns that an operator resumed it. To answer what it waits for, use signal or approve instead.

    "-" reads ids from stdin: one per line, or the output of suspended --json. If an execution cannot be resumed, the
    others still are, and the exit code is 1.
    """

    def act(identity: ExecutionId) -> None:
        client.engine.resume_execution(identity, delay)

    for_each(execution_ids, act, "is resumed", as_json)
