"""The command `explain`: say why an execution is not running."""

from __future__ import annotations

import click

from flowfabric_worker.cli.exit_codes import existing
from flowfabric_worker.cli.options import id_argument, json_option, with_client
from flowfabric_worker.cli.output import one_line, print_json
from flowfabric_worker.cli.tables import console
from flowfabric_worker.client import Client
from flowfabric_worker.engine.plain_ids import with_plain_ids


@click.command()
@id_argument
@json_option()
@with_client
def explain(client: Client, *, execution_id: str, as_json: bool) -> None:
    """Explain why an execution is not running."""
    explanation = existing(client.explain(execution_id), execution_id)
    if as_json:
        print_json(explanation)
    else:
        console().print(one_line(with_plain_ids(explanation.text)), soft_wrap=True)
