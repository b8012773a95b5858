"""Commands about executions: submit, status, result, list, explain."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import click

from flowfabric_worker.cli.exits import CommandError, ExitCode
from flowfabric_worker.cli.output import console, moment, print_facts, print_json, print_table, shown, span
from flowfabric_worker.cli.parameters import (
    duration,
    header,
    json_object,
    json_option,
    json_value,
    tag_option,
    timeout_option,
    with_client,
)
from flowfabric_worker.client import Client, Listing
from flowfabric_worker.engine.ids import with_plain_ids
from flowfabric_worker.engine.types.policies import RetryPolicy
from flowfabric_worker.engine.types.reads import ExecutionInfo, ExecutionSummary, PastAttempt
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.outcomes import ResultError
from flowfabric_worker.task import Run

# Rows of a table, where no other limit is given.
_ROWS = 50
_STATES = [state.value for state in PublicState]


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
        _show_result(run, timeout, as_json)
    elif as_json:
        print_json({"execution_id": run.id, "created": run.created})
    else:
        click.echo(run.id.plain)
        if not run.created:
            click.echo("It was there already, under this key.", err=True)


@click.command()
@click.argument("execution_id", metavar="ID")
@json_option()
@with_client
def status(client: Client, *, execution_id: str, as_json: bool) -> None:
    """Show everything about an execution but its arguments and result."""
    info = client.get(execution_id)
    if info is None:
        raise _missing(execution_id)
    if as_json:
        print_json(info)
        return
    print_facts(list(_described(info)))
    if info.error_detail and not _succeeded(info):
        click.echo()
        click.echo(shown(info.error_detail.decode("utf-8", "replace").rstrip()))


@click.command()
@click.argument("execution_id", metavar="ID")
@timeout_option
@json_option("Print one JSON document, also of a failure.")
@with_client
def result(client: Client, *, execution_id: str, timeout: timedelta | None, as_json: bool) -> None:
    """Wait for an execution and print what it returned, as JSON."""
    _show_result(client.run(execution_id), timeout, as_json)


@click.command("list")
@click.option("--lane", help="Those of one lane.")
@click.option("--state", type=click.Choice(_STATES), metavar="STATE", help="Those in one state, such as failed.")
@click.option("--task", help="Those of one task.")
@tag_option("Those with this tag; may repeat.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help=f"At most so many; {_ROWS}, or all with --json.")
@json_option("Print one JSON document per line.")
@with_client
def list_(
    client: Client, *, tags: tuple[tuple[str, str], ...], limit: int | None, as_json: bool, **filters: str | None
) -> None:
    """List executions, oldest first.

    A table has the first 50. With --json all are printed, as they are found, for other commands to read. A list that
    is cut short says so on stderr, and so does one for which executions were looked at that are not shown: --task,
    --tag and the states waiting and completed have no index; --lane and the other states have one.
    """
    found = client.list(tags=dict(tags), **filters)
    if limit is None and not as_json:
        limit = _ROWS
    chosen = itertools.islice(found, limit)
    if as_json:
        for each in chosen:
            print_json(each)
    else:
        _print_list(list(chosen), client)
    if limit is not None and next(found, None) is not None:
        click.echo(f"There are more than {limit}; ask for them with --limit.", err=True)
    _tell_what_it_took(found, filters["state"])


@click.command()
@click.argument("execution_id", metavar="ID")
@json_option()
@with_client
def explain(client: Client, *, execution_id: str, as_json: bool) -> None:
    """Say why an execution is not running."""
    explanation = client.explain(execution_id)
    if explanation is None:
        raise _missing(execution_id)
    if as_json:
        print_json(explanation)
    else:
        console().print(shown(with_plain_ids(explanation.text)), soft_wrap=True)


def _missing(execution_id: str) -> CommandError:
    return CommandError(
        f"There is no execution {execution_id}: the id or the namespace is wrong, or its retention is over.",
        ExitCode.FAILED,
    )


def _show_result(run: Run[Any], timeout: timedelta | None, as_json: bool) -> None:
    """Wait for a run and print its result; a failure goes on to the caller."""
    try:
        value = run.result(timeout)
    except ResultError as error:
        if as_json:
            print_json(
                {"execution_id": run.id, "state": run.state(), "error": error.reason, "error_detail": error.detail}
            )
        raise
    print_json({"execution_id": run.id, "state": run.state(), "result": value} if as_json else value)


def _print_list(rows: Sequence[ExecutionSummary], client: Client) -> None:
    if not rows:
        click.echo("There are none.", err=True)
        return
    now = client.engine.server_time()
    cells = [_row(each, now) for each in rows]
    print_table(("ID", "STATE", "AGE", "LANE", "TASK"), cells, cut={"LANE", "TASK"})


def _tell_what_it_took(found: Listing, state: str | None) -> None:
    """Say on stderr how many executions were looked at for options that have no index."""
    if found.unindexed:
        options = {"state": f"--state {state}", "task": "--task", "tags": "--tag"}
        which = " and ".join(options[name] for name in found.unindexed)
        verb = "has" if len(found.unindexed) == 1 else "have"
        click.echo(f"Looked at {found.looked_at:,} executions: {which} {verb} no index, --lane has one.", err=True)


def _row(summary: ExecutionSummary, now: int) -> tuple[object, ...]:
    if summary.corruption is not None:
        return summary.execution_id, "damaged", "", "", summary.corruption
    age = span(now - (summary.created_at_ms or now))
    return summary.execution_id, summary.public_state, age, summary.lane, summary.task


def _described(info: ExecutionInfo) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of an execution, a line each."""
    said = {
        "id": info.execution_id.plain,
        "task": info.task,
        "lane": info.lane,
        "state": info.public_state,
        "priority": info.priority,
        "key": info.idempotency_key,
        "tags": ", ".join(f"{name}={value}" for name, value in info.tags.items()),
        "headers": ", ".join(f"{name}={value}" for name, value in info.headers.items()),
        "submitted": moment(info.created_at_ms),
        "not before": moment(info.delay_until_ms),
        "started": moment(info.started_at_ms),
        "suspended": moment(info.suspended_at_ms),
        "waits until": moment(info.suspended_until_ms),
        "ended": moment(info.ended_at_ms),
        "kept until": moment(info.remove_at_ms),
        "deadline": moment(info.deadline_at_ms),
        "worker": info.current_lease and info.current_lease.worker_instance_id,
        "lease until": info.current_lease and moment(info.current_lease.expires_at_ms),
        "attempts": info.total_attempt_count,
        "retries": info.retry_count,
        "lost workers": info.reclaim_count or None,
        "replays": info.replay_count or None,
        "progress": _progress(info),
        "cancelled": info.cancel_reason,
        # A success may come after failures; they stand with their attempts.
        "error": None if _succeeded(info) else info.error,
    }
    yield from ((name, str(value)) for name, value in said.items() if value not in (None, ""))
    if info.past_attempts and (first := info.past_attempts[0].attempt_index):
        yield f"attempts 0 to {first - 1}", "not kept: only the last ones are"
    yield from ((f"attempt {past.attempt_index}", _past(past)) for past in info.past_attempts)


def _succeeded(info: ExecutionInfo) -> bool:
    return info.public_state is PublicState.COMPLETED


def _progress(info: ExecutionInfo) -> str:
    percent = "" if info.progress_percent is None else f"{info.progress_percent} %"
    return " ".join(filter(None, (percent, info.progress_message)))


def _past(attempt: PastAttempt) -> str:
    ending = f"{attempt.ending} after {attempt.ended_at_ms - attempt.started_at_ms} ms at {attempt.worker_instance_id}"
    return f"{ending}: {attempt.error}" if attempt.error else ending
