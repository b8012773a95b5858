"""Apply a command such as `cancel` or `replay` to executions whose ids are arguments, or come from stdin."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import click

from flowfabric_worker.cli.exit_codes import ExitCode, code_of, exit_code_of
from flowfabric_worker.cli.output import one_line, print_json
from flowfabric_worker.engine.errors import NotFoundError, StateError, ValidationError
from flowfabric_worker.engine.ids import ExecutionId
from flowfabric_worker.engine.plain_ids import with_plain_ids

_STDIN: Final = "-"

F = TypeVar("F", bound=Callable[..., None])


def ids_argument(function: F) -> F:
    return click.argument("execution_ids", metavar="ID [ID]...", nargs=-1, required=True)(function)


def for_each(texts: Sequence[str], act: Callable[[ExecutionId], None], done: str, as_json: bool) -> None:
    """Apply an action to each execution, and print a line about each; a failure does not stop the others.

    Args:
        texts: the ids; "-" stands for those on stdin.
        act: the action.
        done: what to say of an execution after the action, such as "is cancelled".
        as_json: True to print a JSON document per execution.

    Raises:
        click.UsageError: a text is not an id; nothing was done.
        click.exceptions.Exit: the action failed for an execution.
    """
    # Parse all ids before acting on the first, so that a malformed id changes nothing.
    identities = dict.fromkeys(map(_parsed, _with_stdin(texts)))
    failures: list[Exception] = []
    for identity in identities:
        try:
            act(identity)
        except (NotFoundError, StateError, ValidationError) as error:
            failures.append(error)
            _say_failure(identity, error, as_json)
        else:
            _say_done(identity, done, as_json)
    if failures:
        only = len(identities) == 1
        raise click.exceptions.Exit(exit_code_of(failures[0]) if only else ExitCode.FAILED)


def _say_done(identity: ExecutionId, done: str, as_json: bool) -> None:
    if as_json:
        print_json({"execution_id": identity, "ok": True})
    else:
        click.echo(f"{identity.plain} {done}.")


def _say_failure(identity: ExecutionId, error: Exception, as_json: bool) -> None:
    message = with_plain_ids(str(error))
    if as_json:
        print_json({"execution_id": identity, "ok": False, "error": message, "code": code_of(error)})
    else:
        said = message if identity.plain in message else f"{identity.plain}: {message}"
        click.echo(f"Error: {one_line(said)}", err=True)


def _with_stdin(texts: Iterable[str]) -> Iterator[str]:
    """Yield the ids, with those on stdin in the place of "-"."""
    for text in texts:
        if text == _STDIN:
            lines = (line.decode("utf-8", "replace").strip() for line in sys.stdin.buffer)
            yield from (_id_in(line) for line in lines if line)
        else:
            yield text


def _id_in(line: str) -> str:
    """Return the id in a line: the whole line, or the field `execution_id` of a JSON document."""
    if not line.startswith("{") or line.startswith("{fp:"):
        return line
    try:
        return str(json.loads(line)["execution_id"])
    except (ValueError, KeyError, TypeError):
        raise click.UsageError(f"A line on stdin has no execution_id: {line[:80]!r}") from None


def _parsed(text: str) -> ExecutionId:
    try:
        return ExecutionId.parse(text)
    except ValidationError as error:
        raise click.UsageError(str(error)) from None
