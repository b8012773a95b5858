"""The command `replay`: run ended executions again."""

from __future__ import annotations

import click

from flowfabric_worker.cli.each_execution import for_each, ids_argument
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.admin import ReplaySteps


@click.command()
@ids_argument
@click.option(
    "--steps",
    type=click.Choice([each.value for each in ReplaySteps]),
    default=ReplaySteps.KEEP.value,
    show_default=True,
    help="Keep what steps and waits brought, or forget it.",
)
@click.option("--from-step", metavar="NAME", help="Keep what came before this step or wait; forget the rest.")
@json_option("Print one JSON document per execution.")
@with_client
def replay(client: Client, *, execution_ids: tuple[str, ...], steps: str, from_step: str | None, as_json: bool) -> None:
    """Run ended executions again.

    "-" reads ids from stdin: one per line, or the output of list --json. If an execution cannot be replayed, the
    others still are, and the exit code is 1.

    \b
      flowfabric-worker list --state failed --json |
        flowfabric-worker replay -
    """
    if from_step is not None and steps == ReplaySteps.FORGET:
        raise click.UsageError("--from-step keeps some steps, --steps forget none: give one of them.")
    for_each(
        execution_ids,
        lambda identity: client.replay(identity, steps=steps, from_step=from_step),
        "runs again",
        as_json,
    )
