"""The command `tail`: print the values that an execution emits, while it runs and after."""

from __future__ import annotations

import errno
import select
import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from flowfabric_worker.cli.exit_codes import existing
from flowfabric_worker.cli.options import id_argument, json_option, with_client
from flowfabric_worker.cli.output import one_line, plain, print_json, shown
from flowfabric_worker.client import Client
from flowfabric_worker.codec import DecodingError
from flowfabric_worker.engine.errors import EngineError, EngineTimeoutError, TransportError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.stream import AttemptBegan, BudgetLimitPassed, RunStream, StreamItem, StreamValue, ValuesDropped

# Seconds after which a tail that waits looks whether its output is still read.
_LOOK_EVERY: Final = 2.0


@click.command()
@id_argument
@click.option("--from", "after", metavar="CURSOR", help="Continue behind this cursor.")
@json_option("Print one JSON document per line, each with its cursor.")
@with_client
def tail(client: Client, *, execution_id: str, after: str | None, as_json: bool) -> None:
    """Print the values that an execution emits, until it has ended.

    Texts are printed as they are, other values as JSON. Where another attempt begins, live values were dropped, or a
    limit of a budget was passed, a line on stderr says so; with --json it is a document. Ctrl-C says how to continue.
    """
    identity = ExecutionId.parse(execution_id)
    stream = client.stream(identity, after, timeout=_LOOK_EVERY)
    # A store that cannot be reached, or an unknown execution, ends the command before it waits.
    existing(client.engine.read_execution_state(identity), identity.plain)
    try:
        for item in _items(stream, as_json):
            _print(item, as_json)
    except (KeyboardInterrupt, EngineError):
        if not as_json and stream.cursor is not None:
            click.echo(f"Continue with: flowfabric-worker tail {identity.plain} --from {stream.cursor}", err=True)
        raise
    if not as_json:
        click.echo(f"{identity.plain} is {client.engine.read_execution_state(identity)}.", err=True)


def _items(stream: RunStream[Any], as_json: bool) -> Iterator[StreamItem[Any]]:
    """Yield the items of a stream, also over outages of the store, as long as the output is read."""
    is_away = False
    while True:
        try:
            item = next(stream, None)
        except EngineTimeoutError:
            _check_output()
        except TransportError as error:
            if not error.retryable:
                raise
            if not is_away and not as_json:
                click.echo(f"The store does not answer ({one_line(str(error))}); waiting for it.", err=True)
            is_away = True
            _check_output()
        except DecodingError as error:
            _print_undecoded(stream.cursor, error, as_json)
        else:
            if item is None:
                return
            is_away = False
            yield item


def _check_output() -> None:
    """Raise what writing would raise if the output is not read any more.

    Raises:
        BrokenPipeError: the output is a pipe without a reader.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    poll = select.poll()
    poll.register(output, 0)
    if any(event & select.POLLERR for _, event in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, "Nothing reads the output any more.")


def _print(item: StreamItem[Any], as_json: bool) -> None:
    match item:
        case StreamValue(value=value):
            if as_json:
                print_json({**plain(item), "emitted_at": item.emitted_at.isoformat()})
            elif isinstance(value, str | bytes):
                click.echo(shown(plain(value)))
            else:
                print_json(value)
        case AttemptBegan():
            _print_mark("attempt", f"Attempt {item.attempt} begins.", item.attempt, item.cursor, as_json)
        case ValuesDropped():
            _print_mark("dropped", "Live values were dropped here.", item.attempt, item.cursor, as_json)
        case BudgetLimitPassed():
            text = f"The budget {item.budget!r} is above its limit of {item.dimension}: {item.used} of {item.limit}."
            _print_mark("budget", one_line(text), item.attempt, item.cursor, as_json)


def _print_mark(mark: str, text: str, attempt: int, cursor: str, as_json: bool) -> None:
    if as_json:
        print_json({"mark": mark, "attempt": attempt, "cursor": cursor})
    else:
        click.echo(f"-- {text}", err=True)


def _print_undecoded(cursor: str | None, error: DecodingError, as_json: bool) -> None:
    if as_json:
        print_json({"error": str(error), "cursor": cursor})
    else:
        click.echo(f"-- A value cannot be decoded: {one_line(str(error))}", err=True)
