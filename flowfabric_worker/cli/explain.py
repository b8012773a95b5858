"""The command `explain`: say why an execution is not running."""

from __future__ import annotations

import click

from flowfabric_worker.cli.exit_codes import missing_execution
from flowfabric_worker.cli.options import (
    json_option,
    with_client,
)
from flowfabric_worker.cli.output import console, print_json, shown
from flowfabric_worker.client import Client
from flowfabric_worker.engine.plain_ids import with_plain_ids


@click.command()
@click.argument("execution_id", metavar="ID")
@json_option()
@with_client
def explain(client: Client, *, execution_id: str, as_json: bool) -> None:
    """Explain why an execution is not running."""
    explanation = client.explain(execution_id)
    if explanation is None:
        raise missing_execution(execution_id)
    if as_json:
        print_json(explanation)
    else:
        console().print(shown(with_plain_ids(explanation.text)), soft_wrap=True)
