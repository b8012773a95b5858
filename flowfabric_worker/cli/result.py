"""The command `result`: wait for an execution and print its result."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from flowfabric_worker.cli.options import id_argument, json_option, timeout_option, with_client
from flowfabric_worker.cli.output import print_json
from flowfabric_worker.client import Client
from flowfabric_worker.outcomes import ResultError
from flowfabric_worker.run import Run


@click.command()
@id_argument
@timeout_option
@json_option("Print one JSON document, also for a failure.")
@with_client
def result(client: Client, *, execution_id: str, timeout: timedelta | None, as_json: bool) -> None:
    """Wait for an execution and print its result as JSON."""
    show_result(client.run(execution_id), timeout, as_json)


def show_result(run: Run[Any], timeout: timedelta | None, as_json: bool) -> None:
    """Wait for a run and print its result; raise its failure after printing it as JSON, if that is asked for."""
    try:
        value = run.result(timeout)
    except ResultError as error:
        if as_json:
            print_json(
                {"execution_id": run.id, "state": run.state(), "error": error.reason, "error_detail": error.detail}
            )
        raise
    print_json({"execution_id": run.id, "state": run.state(), "result": value} if as_json else value)
