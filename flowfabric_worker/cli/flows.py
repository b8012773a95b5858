"""The commands `flows`, which lists flows, and `flow`, which shows and cancels one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import timedelta

import click
from rich.text import Text

from flowfabric_worker.cli.exit_codes import CommandError, ExitCode
from flowfabric_worker.cli.options import MOST_ROWS, duration, json_option, limit_option, with_client
from flowfabric_worker.cli.output import moment, print_json, shown, span
from flowfabric_worker.cli.tables import console, print_facts, print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.flows import (
    CancelFlowPolicy,
    CancelFlowResult,
    FlowSnapshot,
    FlowState,
    FlowSummary,
)
from flowfabric_worker.engine.types.states import PublicState
from flowfabric_worker.flow import FlowRun

# The rows of a table, or the nodes of a drawing, if --limit is not given.
_ROWS = 50
_NODES = 200

_STYLES = {
    PublicState.ACTIVE: "blue",
    PublicState.COMPLETED: "green",
    PublicState.FAILED: "bold red",
    PublicState.EXPIRED: "red",
    PublicState.CANCELLED: "yellow",
    PublicState.SKIPPED: "bright_black",
    PublicState.SUSPENDED: "magenta",
}


@click.command()
@click.option(
    "--state",
    type=click.Choice([state.value for state in FlowState]),
    metavar="STATE",
    help="List those in one state, such as failed.",
)
@click.option("--name", help="List the flows of one name.")
@limit_option(_ROWS)
@json_option("Print one JSON document per line.")
@with_client
def flows(client: Client, *, state: str | None, name: str | None, limit: int | None, as_json: bool) -> None:
    """List flows, the oldest of each partition first.

    The filters have no index: the command reads every flow.
    """
    found = (each for each in client.flows() if _matches(each, state, name))
    if limit is None and not as_json:
        limit = _ROWS
    chosen = itertools.islice(found, limit)
    if as_json:
        for each in chosen:
            print_json(each)
    else:
        _print_flows(list(chosen), client)
    if limit is not None and next(found, None) is not None:
        click.echo(f"There are more than {limit} flows; set --limit to see more.", err=True)


def _matches(flow: FlowSummary | DamagedRow, state: str | None, name: str | None) -> bool:
    if isinstance(flow, DamagedRow):
        return state is None and name is None
    return state in (None, flow.state.value) and name in (None, flow.kind)


def _print_flows(found: Sequence[FlowSummary | DamagedRow], client: Client) -> None:
    if not found:
        click.echo("No flows found.", err=True)
        return
    now = client.engine.server_time()
    print_table(("ID", "STATE", "AGE", "NAME"), [_row(each, now) for each in found], cut={"NAME"})


def _row(flow: FlowSummary | DamagedRow, now: int) -> tuple[object, ...]:
    if isinstance(flow, DamagedRow):
        return flow.row_id, "damaged", "", flow.corruption
    return flow.flow_id, flow.state, span(now - flow.created_at_ms), flow.kind


@click.command()
@click.argument("action", type=click.Choice(["show", "cancel"]))
@click.argument("flow_id", metavar="ID")
@click.option(
    "--picture",
    type=click.Choice(["text", "mermaid", "svg"]),
    metavar="FORM",
    help="For show: print only a picture: text, mermaid or svg.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    default=_NODES,
    show_default=True,
    metavar="N",
    help="For show: draw at most N nodes as text.",
)
@click.option("--reason", help="For cancel: the reason, which is stored with the flow.")
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in CancelFlowPolicy]),
    default=CancelFlowPolicy.CANCEL_ALL.value,
    show_default=True,
    metavar="POLICY",
    help="For cancel: cancel_all, cancel_pending to let running members end, or flow_only.",
)
@click.option(
    "--wait",
    type=duration,
    metavar="DURATION",
    help="For cancel: wait this long until the cancelled members have ended, such as 30s.",
)
@json_option()
@with_client
def flow(
    client: Client,
    *,
    action: str,
    flow_id: str,
    picture: str | None,
    limit: int,
    reason: str | None,
    policy: str,
    wait: timedelta | None,
    as_json: bool,
) -> None:
    """Show a flow with its graph, or cancel it.

    Each node stands behind the nodes that it depends on, with its state.
    """
    run = client.flow_run(flow_id)
    if action == "cancel":
        _cancelled(run.cancel(reason, policy=policy, wait=wait or timedelta(0)), flow_id, as_json)
    elif picture is not None:
        click.echo(shown(run.picture(picture)))  # type: ignore[arg-type]  # one of the forms
    else:
        _show(run, limit, as_json)


def _show(run: FlowRun, limit: int, as_json: bool) -> None:
    snapshot = run.describe()
    if snapshot is None:
        raise CommandError(
            f"The flow {run.id} does not exist: the id or the namespace is wrong, or its retention is over.",
            ExitCode.FAILED,
        )
    if as_json:
        print_json(snapshot)
        return
    print_facts(list(_described(snapshot)))
    click.echo()
    _draw(run, limit)


def _described(snapshot: FlowSnapshot) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of a flow, a line each."""
    counts = (f"{count} {state.value}" for state, count in snapshot.member_counts.items() if count)
    said = {
        "id": snapshot.flow_id,
        "name": snapshot.kind,
        "state": snapshot.state,
        "nodes": f"{snapshot.node_count} ({', '.join(counts)})" if snapshot.node_count else "0",
        "edges": snapshot.edge_count,
        "tags": ", ".join(f"{name}={value}" for name, value in snapshot.tags.items()),
        "submitted": moment(snapshot.created_at_ms),
        "cancelled": moment(snapshot.cancelled_at_ms),
        "policy": snapshot.cancellation_policy,
        "reason": snapshot.cancel_reason,
        "failed": ", ".join(each.plain for each in snapshot.failed_execution_ids),
    }
    yield from ((name, str(value)) for name, value in said.items() if value not in (None, ""))


def _draw(run: FlowRun, limit: int) -> None:
    """Print the graph with its states in colour, at most `limit` nodes of it."""
    out = console()
    head, *lines = shown(run.picture()).splitlines()
    out.print(head, style="bold", soft_wrap=True)
    for line in lines[:limit]:
        text = Text(line)
        for state, style in _STYLES.items():
            text.highlight_words([f"[{state.value}]"], style)
        out.print(text, soft_wrap=True)
    if len(lines) > limit:
        click.echo(f"There are {len(lines) - limit} more nodes; set --limit to see more.", err=True)


def _cancelled(result: CancelFlowResult, flow_id: str, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        click.echo(f"{flow_id} is cancelled ({result.policy}, {result.member_count} members: {result.status}).")
