"""The command `signal`: send a signal to the waitpoint of a token; and what a delivery did, in words."""

from __future__ import annotations

import sys
from typing import Final

import click

from flowfabric_worker.cli.exit_codes import CommandError, ExitCode
from flowfabric_worker.cli.options import json_option, json_value, with_client
from flowfabric_worker.cli.output import print_json, shown
from flowfabric_worker.client import Client
from flowfabric_worker.engine.limits import MAX_SIGNAL_PAYLOAD_BYTES
from flowfabric_worker.engine.types.suspension import DeliverSignalResult, SignalDuplicate, SignalEffect
from flowfabric_worker.engine.waitpoint_tokens import from_bearer
from flowfabric_worker.signals import execution_named_by

_STDIN: Final = "-"

_SAID: Final = {
    SignalEffect.RESUME_CONDITION_SATISFIED: "The signal resumes {id}.",
    SignalEffect.APPENDED_TO_WAITPOINT: "The signal counts; {id} waits for more.",
    SignalEffect.BUFFERED_FOR_PENDING_WAITPOINT: "The signal is kept until {id} waits for it.",
}


@click.command("signal")
@click.argument("token", metavar="TOKEN")
@click.argument("name", metavar="NAME")
@click.argument("payload", metavar="[PAYLOAD|-]", required=False)
@click.option("--by", default="unknown", show_default=True, metavar="WHO", help="Who sends the signal.")
@click.option("--key", help="Idempotency key: a second signal with it is the same signal.")
@json_option()
@with_client
def signal(
    client: Client, *, token: str, name: str, payload: str | None, by: str, key: str | None, as_json: bool
) -> None:
    """Send a signal to an execution that waits for it.

    TOKEN is what the handler handed out, NAME what it waits for. PAYLOAD is a JSON value; "-" reads it from stdin.
    A signal that matches nothing is kept, and the exit code is 1.

    \b
      flowfabric-worker signal "$TOKEN" paid '{"amount": 7}'
    """
    text = _from_stdin() if payload == _STDIN else payload
    value = None if text is None else json_value(text)
    tell_delivery(token, client.signal(token, name, value, by=by, key=key), as_json)


def _from_stdin() -> str:
    text = sys.stdin.read(MAX_SIGNAL_PAYLOAD_BYTES + 1)
    if len(text) > MAX_SIGNAL_PAYLOAD_BYTES:
        raise click.UsageError(
            f"The payload on stdin is over {MAX_SIGNAL_PAYLOAD_BYTES} bytes: pass its address instead."
        )
    return text


def tell_delivery(token: str, delivered: DeliverSignalResult, as_json: bool) -> None:
    """Print what a delivery did.

    Raises:
        CommandError: the signal matched nothing.
    """
    execution_id = execution_named_by(token) or from_bearer(token).execution_id
    if isinstance(delivered, SignalDuplicate):
        if as_json:
            print_json({"execution_id": execution_id, "signal_id": delivered.existing_signal_id, "effect": "duplicate"})
        else:
            click.echo(f"The signal came before; nothing changes for {execution_id.plain}.")
        return
    if as_json:
        print_json(
            {
                "execution_id": execution_id,
                "signal_id": delivered.signal_id,
                "effect": delivered.effect,
                "awaited_names": delivered.awaited_names,
            }
        )
    elif delivered.effect is not SignalEffect.NO_OP:
        click.echo(shown(_SAID[delivered.effect].format(id=execution_id.plain)))
    if delivered.effect is SignalEffect.NO_OP:
        awaited = " or ".join(map(repr, delivered.awaited_names)) or "no signal"
        raise CommandError(
            f"The signal matches nothing: {execution_id.plain} waits for {awaited} there.", ExitCode.FAILED
        )
