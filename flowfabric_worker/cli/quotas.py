"""The command `quotas`: list, create, show, update, reset, remove and watch quota policies."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import click

from flowfabric_worker.cli.options import json_option, live_options, with_client
from flowfabric_worker.cli.output import one_line, print_again, print_json, shown, span
from flowfabric_worker.cli.tables import print_facts, print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.damage import DamagedRow
from flowfabric_worker.engine.types.quotas import AdmissionOutcome, QuotaPolicy, QuotaPolicyStatus, SlotHold

_HEADERS = ("NAME", "RATE", "IN WINDOW", "CONCURRENCY", "RUNNING", "STATE")
_ACTIONS = ("list", "create", "show", "update", "reset", "remove", "live")


@click.command()
@click.argument("action", type=click.Choice(_ACTIONS), default="list")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--rate", metavar="RATE", help="Limit the attempts in a sliding window, such as 10/m or 100/30s.")
@click.option("--concurrency", type=int, metavar="COUNT", help="Limit the executions that run at once.")
@click.option(
    "--hold",
    type=click.Choice([hold.value for hold in SlotHold]),
    default=SlotHold.LEASE.value,
    show_default=True,
    help="Hold a slot while the execution is leased, or until the whole run has ended.",
)
@live_options
@json_option("Print one JSON document per line.")
@with_client
def quotas(
    client: Client,
    *,
    action: str,
    names: tuple[str, ...],
    rate: str | None,
    concurrency: int | None,
    hold: str,
    every: timedelta,
    times: int | None,
    as_json: bool,
) -> None:
    """List quotas; create, show, update, reset, remove or watch them.

    A quota limits how many executions begin and run, over all workers. A task names it as quota=; a task with rate= or
    concurrency= has one of its own, whose name begins with "task:".

    \b
      flowfabric-worker quotas create mail-api --rate 10/s --concurrency 4
    """
    if action in ("list", "live"):
        _watch(client, names, every, 1 if action == "list" else times, as_json)
        return
    if not names:
        raise click.UsageError(f"Name the quotas to {action}.")
    for name in names:
        try:
            said = _act(client, action, name, rate, concurrency, hold)
        except NotFoundError as error:
            hint = did_you_mean(name, map(_name, client.quotas()))
            message = f"There is no quota {name!r}.{hint} Create it: flowfabric-worker quotas create NAME --rate 10/m"
            raise NotFoundError(error.code, message, quota_policy_id=name) from None
        if isinstance(said, QuotaPolicyStatus) and action == "show" and not as_json:
            _show(said, client)
        elif as_json:
            print_json(said if isinstance(said, QuotaPolicyStatus) else {"quota": name, "changed": said})
        else:
            click.echo(shown(f"{name}: {_said(action, said)}."))


def _act(
    client: Client, action: str, name: str, rate: str | None, concurrency: int | None, hold: str
) -> bool | QuotaPolicyStatus:
    """Carry an action out; return the quota, or whether the action changed something.

    Raises:
        NotFoundError: `quota_policy_not_found`.
    """
    if action == "create":
        return client.create_quota(name, rate=rate, concurrency=concurrency, hold=hold)
    if action == "update":
        return client.update_quota(name, rate=rate, concurrency=concurrency, hold=hold)
    if action == "reset":
        return client.reset_quota(name)
    if action == "remove":
        client.remove_quota(name)
        return True
    found = client.quota(name)
    if found is None:
        raise NotFoundError("quota_policy_not_found", quota_policy_id=name)
    return found


def _said(action: str, said: bool | QuotaPolicyStatus) -> str:
    if said is False:
        return "exists already, with these limits"
    return {"create": "created", "update": "updated", "reset": "its window is empty", "remove": "removed"}[action]


def _watch(client: Client, names: tuple[str, ...], every: timedelta, times: int | None, as_json: bool) -> None:
    def print_once() -> None:
        _print([each for each in client.quotas() if not names or _name(each) in names], client, as_json)

    print_again(print_once, every, times)


def _print(found: Iterable[QuotaPolicyStatus | DamagedRow], client: Client, as_json: bool) -> None:
    rows = list(found)
    if as_json:
        for each in rows:
            print_json(each)
    elif rows:
        now = client.engine.server_time()
        print_table(_HEADERS, [_row(each, now) for each in rows], folded={"STATE"})
    else:
        click.echo("No quotas found: create one with flowfabric-worker quotas create NAME --rate 10/m.", err=True)


def _show(quota: QuotaPolicyStatus, client: Client) -> None:
    policy = quota.policy
    print_facts(
        [
            ("quota", one_line(quota.quota_policy_id)),
            ("rate", f"{_rate(policy)}, {quota.admitted_in_window} in the window"),
            ("concurrency", f"{_count(policy.max_concurrent)}, {quota.running} running"),
            ("hold", policy.hold.value),
            ("state", _state(quota, client.engine.server_time())),
        ]
    )


def _name(row: QuotaPolicyStatus | DamagedRow) -> str:
    return row.row_id if isinstance(row, DamagedRow) else row.quota_policy_id


def _row(row: QuotaPolicyStatus | DamagedRow, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, "", "", "", "", f"damaged: {row.corruption}"
    return (
        row.quota_policy_id, _rate(row.policy), row.admitted_in_window, _count(row.policy.max_concurrent), row.running,
        _state(row, now),
    )  # fmt: skip


def _rate(policy: QuotaPolicy) -> str:
    if policy.max_requests_per_window is None:
        return "-"
    return f"{policy.max_requests_per_window} in {span(policy.window.total_seconds() * 1000)}"


def _count(limit: int | None) -> str:
    return "-" if limit is None else str(limit)


def _state(quota: QuotaPolicyStatus, now: int) -> str:
    if quota.closed_by is None:
        return "open"
    if quota.closed_by is AdmissionOutcome.CONCURRENCY_EXCEEDED:
        return "closed until a run ends"
    return f"closed for {span(max(0, (quota.opens_at_ms or now) - now))}"
