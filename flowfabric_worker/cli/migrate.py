"""The command `migrate`: prepare a store for this release."""

from __future__ import annotations

from collections.abc import Iterator

import click

from flowfabric_worker._version import __version__
from flowfabric_worker.cli.options import json_option, with_client
from flowfabric_worker.cli.output import print_json
from flowfabric_worker.cli.tables import print_facts
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.maintenance import PrepareResult


@click.command()
@click.option("--prune", is_flag=True, help="Also remove the functions of other releases.")
@json_option()
@with_client
def migrate(client: Client, *, prune: bool, as_json: bool) -> None:
    """Prepare the store for this release.

    This loads the functions of this release, and sets up a new store. Workers and clients do the same at their first
    call; run this command before that if their user lacks the rights. It is safe to repeat, also while workers run.

    Functions of several releases exist side by side. Use --prune once the workers of the other releases have stopped:
    a worker that still runs loads its functions again.
    """
    prepared = client.engine.prepare()
    pruned = client.engine.prune_libraries() if prune else None
    if as_json:
        print_json(_document(prepared, pruned))
    else:
        print_facts(list(_described(prepared, pruned)))
        if pruned:
            click.echo("Workers of those releases that are still running load their functions again.", err=True)


def _document(prepared: PrepareResult, pruned: tuple[str, ...] | None) -> dict[str, object]:
    return {
        "release": __version__,
        "product": prepared.product,
        "version": prepared.version,
        "loaded": prepared.loaded,
        "created": prepared.created,
        "partitions": prepared.partitions,
        "warnings": prepared.warnings,
        "pruned": pruned,
    }


def _described(prepared: PrepareResult, pruned: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Yield what the command found and did, line by line."""
    yield "store", f"{prepared.product} {prepared.version}"
    yield "functions", f"of release {__version__}, {'loaded now' if prepared.loaded else 'already loaded'}"
    partitions = f"{prepared.partitions} partition{'s' if prepared.partitions != 1 else ''}"
    yield "set-up", f"{partitions}, {'set up now' if prepared.created else 'already set up'}"
    yield from (("warning", warning) for warning in prepared.warnings)
    if pruned is not None:
        yield "removed", ", ".join(pruned) or "nothing: there are no functions of other releases"
