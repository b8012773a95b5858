"""The command `secrets`: rotate the secret that signs waitpoint tokens."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Final

import click

from flowfabric_worker.cli.exit_codes import code_of, exit_code_of
from flowfabric_worker.cli.options import duration, json_option, with_client
from flowfabric_worker.cli.output import print_json, span
from flowfabric_worker.cli.tables import print_table
from flowfabric_worker.client import Client
from flowfabric_worker.engine.errors import EngineError
from flowfabric_worker.engine.limits import MAX_SECRET_BYTES
from flowfabric_worker.engine.types.waitpoint_secrets import (
    PartitionRotation,
    RotateWaitpointHmacSecretAllArgs,
    SecretRotated,
)
from flowfabric_worker.engine.waitpoint_secrets import FIRST_SECRET_VARIABLE, secret_of_digits

_STDIN: Final = "-"


@click.command()
@click.argument("action", type=click.Choice(["rotate"]))
@click.argument("kid", metavar="KID")
@click.argument("source", metavar="[-]", type=click.Choice([_STDIN]), required=False)
@click.option(
    "--grace",
    type=duration,
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="How long tokens of the secret before stay valid.",
)
@json_option("Print one JSON document per partition.")
@with_client
def secrets(client: Client, *, action: str, kid: str, source: str | None, grace: timedelta, as_json: bool) -> None:
    """Sign waitpoint tokens with another secret from now on.

    KID names the new secret, such as k2. The secret is read from $FLOWFABRIC_WAITPOINT_SECRET, or from stdin with
    "-", as hexadecimal digits. It is never printed, and never an argument, because other users can see arguments.

    \b
      openssl rand -hex 32 > secret
      flowfabric-worker secrets rotate k2 - < secret

    If a partition fails, repeat the command: the others stay as they are.
    """
    del action  # There is one.
    secret = _secret(source)
    rotation = RotateWaitpointHmacSecretAllArgs(new_kid=kid, new_secret=secret, grace=grace)
    partitions = client.engine.rotate_waitpoint_hmac_secret_all(rotation).partitions
    if as_json:
        for each in partitions:
            print_json(_document(each))
    else:
        print_table(("PARTITION", "RESULT"), [(each.partition, _said(each, grace)) for each in partitions])
    failures = [each.result for each in partitions if isinstance(each.result, EngineError)]
    if failures:
        raise click.exceptions.Exit(exit_code_of(failures[0]))


def _secret(source: str | None) -> bytes:
    """Return the secret that stdin or the environment holds."""
    if source == _STDIN:
        text, where = sys.stdin.read(2 * MAX_SECRET_BYTES + 100).strip(), "The secret on stdin"
    else:
        text, where = os.environ.get(FIRST_SECRET_VARIABLE, ""), f"${FIRST_SECRET_VARIABLE}"
        if not text:
            raise click.UsageError(f'Set {where} to the new secret, or give "-" and write the secret to stdin.')
    return secret_of_digits(text, where)


def _document(row: PartitionRotation) -> dict[str, object]:
    match row.result:
        case EngineError() as error:
            return {"partition": row.partition, "ok": False, "error": str(error), "code": code_of(error)}
        case SecretRotated() as rotated:
            return {"partition": row.partition, "ok": True, "rotated": True, "previous_kid": rotated.previous_kid}
    return {"partition": row.partition, "ok": True, "rotated": False}


def _said(row: PartitionRotation, grace: timedelta) -> str:
    match row.result:
        case EngineError() as error:
            return f"failed: {error}"
        case SecretRotated(new_kid=kid, previous_kid=previous):
            kept = f"; tokens of {previous} stay valid for {span(grace.total_seconds() * 1000)}" if previous else ""
            return f"signs with {kid} now{kept}"
    return "signed with it already"
