"""The command `submit`: submit an execution of a task."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import click

from flowfabric_worker.cli.options import (
    duration,
    header,
    json_object,
    json_option,
    json_value,
    tag_option,
    timeout_option,
    with_client,
)
from flowfabric_worker.cli.output import print_json
from flowfabric_worker.cli.result import show_result
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.policies import RetryPolicy


@click.command()
@click.argument("task")
@click.argument("args", nargs=-1, type=json_value, metavar="[JSON]...")
@click.option("--kwargs", type=json_object, default="{}", metavar="JSON", help="Arguments by name, as a JSON object.")
@click.option("--lane", help="The queue to wait in; else the task's own.")
@click.option("--priority", type=int, metavar="N", help="0 to 9000, higher first; else the task's own.")
@click.option("--delay", type=duration, metavar="DURATION", help="Begin not before this, such as 30s or 2h.")
@click.option("--key", help="Idempotency key: a second submission under it finds the first execution.")
@click.option(
    "--retries", type=click.IntRange(min=0), metavar="N", help="Tries after a failed one; else the task's own."
)
@tag_option("A name to find it by; may repeat.")
@click.option(
    "--header",
    "headers",
    type=header,
    multiple=True,
    metavar="NAME=VALUE",
    help="A text that its handler finds in current().headers; may repeat.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["raise", "return"]),
    help="If --key was used with other arguments: an error, or the first execution; else the task's own.",
)
@click.option("--force", is_flag=True, help="Submit also what no worker has published, with the default options.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@timeout_option
@json_option()
@with_client
def submit(
    client: Client,
    *,
    task: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tags: tuple[tuple[str, str], ...],
    headers: tuple[tuple[str, str], ...],
    retries: int | None,
    force: bool,
    wait: bool,
    timeout: timedelta | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit an execution of TASK and print its id.

    TASK is a name such as shop.send_receipt, or send_receipt where one task alone has it. Options that are not given
    are as the task's worker has published them.

    Each further argument is a JSON value: submit send_receipt 7 '"a@b.c"'. Negative numbers stand behind "--".
    """
    given = {name: value for name, value in options.items() if value is not None}
    if tags:
        given["tags"] = dict(tags)
    if headers:
        given["headers"] = dict(headers)
    if retries is not None:
        given["retry"] = RetryPolicy(max_retries=retries) if retries else None
    run = client.submit(task, args, kwargs, force=force, **given)
    if wait:
        show_result(run, timeout, as_json)
    elif as_json:
        print_json({"execution_id": run.id, "created": run.created})
    else:
        click.echo(run.id.plain)
        if not run.created:
            click.echo("It was there already, under this key.", err=True)
