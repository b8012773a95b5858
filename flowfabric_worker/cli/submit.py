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
@click.option("--lane", help="The lane to submit to; defaults to the task's.")
@click.option("--priority", type=int, metavar="N", help="0 to 9000, highest first; defaults to the task's.")
@click.option(
    "--delay", type=duration, metavar="DURATION", help="Wait at least this long before the start, such as 2h."
)
@click.option("--key", help="Idempotency key: submitting again with it returns the first execution.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    metavar="N",
    help="How many retries a failure gets; defaults to the task's.",
)
@tag_option("A tag to find the execution by; repeatable.")
@click.option(
    "--header",
    "headers",
    type=header,
    multiple=True,
    metavar="NAME=VALUE",
    help="A text for the handler, which reads it in current().headers; repeatable.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["raise", "return"]),
    help="Fail, or return the first execution, if --key was used with other arguments; defaults to the task's.",
)
@click.option("--force", is_flag=True, help="Submit even if no worker has published the task, with default options.")
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

    TASK is a full name such as shop.send_receipt, or send_receipt if only one task has that name. Options that are
    not given default to those that the task's worker has published.

    Each further argument is a JSON value: submit send_receipt 7 '"a@b.c"'. Write "--" before negative numbers.
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
            click.echo("This execution was submitted earlier with the same key.", err=True)
