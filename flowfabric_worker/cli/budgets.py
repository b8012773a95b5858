"""The command `budgets`: list, create, show, update, reset, remove and watch budgets."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import click

from flowfabric_worker.cli.options import duration, json_option, live_options, with_client
from flowfabric_worker.cli.output import one_line, print_again, print_json, shown, span
from flowfabric_worker.cli.tables import print_facts, print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.errors import NotFoundError
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.engine.types.budgets import BudgetStatus, OnHardLimit
from flowfabric_worker.engine.types.damage import DamagedRow

_HEADERS = ("NAME", "USED", "RESERVED", "RESET", "STATE")
_ACTIONS = ("list", "create", "show", "update", "reset", "remove", "live")


def _amounts(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """Read amounts by dimension, each given as NAME=COUNT."""
    amounts = {}
    for value in values:
        name, equals, count = value.rpartition("=")
        if not equals or not name or not count.isdecimal():
            raise click.BadParameter(f"{value!r} is not a dimension and a count, such as tokens=1000.", param=parameter)
        amounts[name] = int(count)
    return amounts


@click.command()
@click.argument("action", type=click.Choice(_ACTIONS), default="list")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", "limits", multiple=True, callback=_amounts, metavar="NAME=COUNT", help="Set a hard limit.")
@click.option("--soft", multiple=True, callback=_amounts, metavar="NAME=COUNT", help="Set a soft limit.")
@click.option("--reset-every", type=duration, metavar="DURATION", help="Set the counters to zero so often.")
@click.option(
    "--on-hard-limit",
    type=click.Choice([action.value for action in OnHardLimit]),
    default=OnHardLimit.BLOCK.value,
    show_default=True,
    help="Block, suspend or fail an execution that would pass a hard limit.",
)
@live_options
@json_option("Print one JSON document per line.")
@with_client
def budgets(
    client: Client,
    *,
    action: str,
    names: tuple[str, ...],
    limits: dict[str, int],
    soft: dict[str, int],
    reset_every: timedelta | None,
    on_hard_limit: str,
    every: timedelta,
    times: int | None,
    as_json: bool,
) -> None:
    """List budgets; create, show, update, reset, remove or watch them.

    A budget limits what executions spend together, over all workers. A task names it in budgets=, and its handler
    reports what it uses.

    \b
      flowfabric-worker budgets create team --limit tokens=100000 --reset-every 1d
    """
    if action in ("list", "live"):
        _watch(client, names, every, 1 if action == "list" else times, as_json)
        return
    if not names:
        raise click.UsageError(f"Name the budgets to {action}.")
    if action in ("create", "update") and not limits and not soft:
        raise click.UsageError(f"Give at least one --limit or --soft to {action} a budget.")
    for name in names:
        try:
            if action == "create":
                created = client.create_budget(name, limits, soft=soft, every=reset_every, on_hard_limit=on_hard_limit)
                said = "created" if created else "exists already, with these limits"
            elif action == "update":
                client.update_budget(name, limits, soft=soft, every=reset_every, on_hard_limit=on_hard_limit)
                said = "updated"
            else:
                said = _act(client, action, name)
        except NotFoundError as error:
            hint = did_you_mean(name, map(_name, client.budgets()))
            create = "flowfabric-worker budgets create NAME --limit tokens=1000"
            message = f"There is no budget {name!r}.{hint} Create it: {create}"
            raise NotFoundError(error.code, message, budget_id=name) from None
        _say(client, action, name, said, as_json)


def _act(client: Client, action: str, name: str) -> str:
    """Carry out an action that has no limits; return what was done.

    Raises:
        NotFoundError: `budget_not_found`.
    """
    if action == "reset":
        client.reset_budget(name)
        return "its counters are zero"
    if action == "remove":
        client.remove_budget(name)
        return "removed"
    if client.budget(name) is None:
        raise NotFoundError("budget_not_found", budget_id=name)
    return ""


def _say(client: Client, action: str, name: str, said: str, as_json: bool) -> None:
    found = None if action == "remove" else client.budget(name)
    if as_json:
        print_json({"budget": name, "changed": True} if found is None else found)
    elif action == "show" and found is not None:
        _show(found, client)
    else:
        click.echo(shown(f"{name}: {said}."))


def _watch(client: Client, names: tuple[str, ...], every: timedelta, times: int | None, as_json: bool) -> None:
    def print_once() -> None:
        _print([each for each in client.budgets() if not names or _name(each) in names], client, as_json)

    print_again(print_once, every, times)


def _print(found: Iterable[BudgetStatus | DamagedRow], client: Client, as_json: bool) -> None:
    rows = list(found)
    if as_json:
        for each in rows:
            print_json(each)
    elif rows:
        now = client.engine.server_time()
        print_table(_HEADERS, [_row(each, now) for each in rows], folded={"STATE"})
    else:
        hint = "create one with flowfabric-worker budgets create NAME --limit tokens=1000."
        click.echo(f"No budgets found: {hint}", err=True)


def _show(budget: BudgetStatus, client: Client) -> None:
    definition = budget.definition
    facts: list[tuple[str, str]] = [("budget", one_line(budget.budget_id))]
    for each in definition.dimensions:
        limits = [f"{kind} {limit}" for kind, limit in (("hard", each.hard_limit), ("soft", each.soft_limit)) if limit]
        taken = f"{budget.usage[each.name]} used, {budget.reserved.get(each.name, 0)} reserved"
        facts.append((one_line(each.name), f"{taken}, {', '.join(limits) or 'no limit'}"))
    facts += [
        ("on hard limit", definition.on_hard_limit.value),
        ("breaches", f"{budget.breach_count} of hard limits, {budget.soft_breach_count} of soft ones"),
        ("reset", _reset(budget, client.engine.server_time())),
        ("state", _state(budget)),
    ]
    print_facts(facts)


def _name(row: BudgetStatus | DamagedRow) -> str:
    return row.row_id if isinstance(row, DamagedRow) else row.budget_id


def _row(row: BudgetStatus | DamagedRow, now: int) -> tuple[object, ...]:
    if isinstance(row, DamagedRow):
        return row.row_id, "", "", "", f"damaged: {row.corruption}"
    limits = {each.name: each.hard_limit for each in row.definition.dimensions}
    used = ", ".join(
        f"{name} {count}" + ("" if limits.get(name) is None else f" of {limits[name]}")
        for name, count in row.usage.items()
    )
    reserved = ", ".join(f"{name} {count}" for name, count in row.reserved.items())
    return row.budget_id, used or "-", reserved or "-", _reset(row, now), _state(row)


def _reset(budget: BudgetStatus, now: int) -> str:
    return "-" if budget.next_reset_at_ms is None else f"in {span(max(0, budget.next_reset_at_ms - now))}"


def _state(budget: BudgetStatus) -> str:
    for each in budget.definition.dimensions:
        taken = budget.usage[each.name] + budget.reserved.get(each.name, 0)
        if each.hard_limit is not None and taken >= each.hard_limit:
            return f"full of {each.name}"
    return "open"
