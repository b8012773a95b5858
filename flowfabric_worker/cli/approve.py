"""The command `approve`: approve or reject what an execution waits for."""

from __future__ import annotations

import click

from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.signal import tell_delivery
from flowfabric_worker.client import Client


@click.command()
@click.argument("token", metavar="TOKEN|ID")
@click.option("--yes/--no", "approved", default=None, help="Approve, or reject.")
@click.option("--by", required=True, metavar="WHO", help="Who decides; it is kept with the decision.")
@click.option("--reason", default="", help="A text for the handler.")
@click.option("--waitpoint", metavar="NAME", help="Of an execution that takes signals at several waitpoints, the one.")
@json_option()
@with_client
def approve(
    client: Client, *, token: str, approved: bool | None, by: str, reason: str, waitpoint: str | None, as_json: bool
) -> None:
    """Approve or reject what an execution waits for.

    TOKEN is what the handler handed out; an operator may give the ID of the execution instead. The first decision
    stands; a second one is told who made it.

    \b
      flowfabric-worker approve "$TOKEN" --yes --by ann
    """
    if approved is None:
        raise click.UsageError("Give --yes to approve, or --no to reject.")
    tell_delivery(token, client.approve(token, approved, by=by, reason=reason, waitpoint=waitpoint), as_json)
