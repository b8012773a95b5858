"""The exit codes of commands, and errors that are printed as one sentence."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, TypeVar

import click

from flowfabric_worker.cli.output import one_line, print_json
from flowfabric_worker.codec import DecodingError, EncodingError
from flowfabric_worker.engine.errors import (
    ConflictError,
    EngineError,
    EngineTimeoutError,
    TransportError,
    UnavailableError,
    ValidationError,
    without_tokens,
)
from flowfabric_worker.engine.plain_ids import with_plain_ids
from flowfabric_worker.engine.suggestions import did_you_mean
from flowfabric_worker.outcomes import ResultError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class ExitCode(IntEnum):
    """The exit codes of commands, for scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    APP = 5
    TIMEOUT = 6
    RESTART_REQUIRED = 7
    INTERRUPTED = 130


_MEANINGS: Final = {
    ExitCode.OK: "the command succeeded",
    ExitCode.FAILED: "the execution failed, does not exist, or is in the wrong state",
    ExitCode.USAGE: "an option or an argument is wrong",
    ExitCode.UNREACHABLE: "the store cannot be reached",
    ExitCode.REFUSED: "the store refuses the password, user, version or settings",
    ExitCode.APP: "the application cannot be loaded",
    ExitCode.TIMEOUT: "the result did not come within --timeout",
    ExitCode.RESTART_REQUIRED: "the worker needs a restart: stuck threads, or its memory limit",
    ExitCode.INTERRUPTED: "the command was interrupted with Ctrl-C",
}

# The digits of a secret, or of a token's digest; ids of executions have no such row of digits.
_LONG_DIGITS: Final = re.compile(r"[0-9a-fA-F]{32,}")

_DEBUG: Final = f"{__name__}.debug"
_JSON: Final = f"{__name__}.json"

_JSON_HELP: Final = """With --json, commands print only JSON on stdout: one document, or one per line for a
list. An error that ends a command is then one document on stderr, with the fields "error", "code" and
"exit_code"."""


def exit_codes_help() -> str:
    """Return the help text about exit codes and errors."""
    # The mark \b keeps click from joining the lines of the table.
    table = "\n".join(["\b", "Exit codes:", *(f"{code:>5}  {meaning}" for code, meaning in _MEANINGS.items())])
    return f"{table}\n\n{_JSON_HELP}"


class CommandError(Exception):
    """End a command with a sentence on stderr and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def existing(found: T | None, execution_id: str) -> T:
    """Return what was found of an execution.

    Raises:
        CommandError: nothing was found, because the execution does not exist.
    """
    if found is None:
        raise CommandError(
            f"The execution {execution_id} does not exist: the id or the namespace is wrong, or its retention is over.",
            ExitCode.FAILED,
        )
    return found


def exit_code_of(error: Exception) -> ExitCode:
    """Return the exit code for an error."""
    match error:
        case CommandError():
            return error.code
        case EngineError(code="corruption"):
            return ExitCode.FAILED
        case click.UsageError() | ValidationError() | EncodingError():
            return ExitCode.USAGE
        case TransportError(retryable=True):
            return ExitCode.UNREACHABLE
        case TransportError() | UnavailableError() | ConflictError() | EngineError(code="store_full"):
            return ExitCode.REFUSED
        case EngineTimeoutError():
            return ExitCode.TIMEOUT
    return ExitCode.FAILED


def code_of(error: Exception) -> str:
    """Return the code by which programs recognize an error."""
    return error.code if isinstance(error, EngineError) else exit_code_of(error).name.lower()


def debug_option(function: F) -> F:
    """Add --debug, which shows the tracebacks of errors."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_DEBUG] = value

    return click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )(function)


class Commands(click.Group):
    """The root of the command line, which turns every expected error into one sentence and an exit code.

    A command is imported when it is asked for, so that a worker process does not load the commands for operators.

    Args:
        homes: the module in this package and the name of each command, such as `list:list_`, in the order of --help.
        options: what `click.Group` takes.
    """

    def __init__(self, *, homes: Mapping[str, str], **options: Any) -> None:
        super().__init__(**options)
        self._homes = homes

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click passes it
        return [*self._homes]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self._homes and cmd_name not in self.commands:
            module, _, name = self._homes[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(f"{__package__}.{module}"), name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Look for --json before parsing, so that errors of parsing are printed as JSON too.
        ctx.meta[_JSON] = _asks_for_json(args)
        with _secrets_hidden():
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        # Refuse an unknown command here, because not every version of click suggests a similar one.
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"There is no command {name!r}.{did_you_mean(name, self._homes)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _secrets_hidden():
                return super().invoke(ctx)
        except (EngineError, ResultError, EncodingError, DecodingError, CommandError) as error:
            if ctx.meta.get(_DEBUG):
                click.echo(without_tokens("".join(traceback.format_exception(error))), err=True)
            _tell(error, str(error), ctx.meta[_JSON])
            raise click.exceptions.Exit(exit_code_of(error)) from None
        except click.UsageError as error:
            if not ctx.meta[_JSON]:
                raise
            _tell(error, error.format_message(), as_json=True)
            raise click.exceptions.Exit(exit_code_of(error)) from None
        except KeyboardInterrupt:
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None


@contextlib.contextmanager
def _secrets_hidden() -> Iterator[None]:
    """Take tokens and secrets out of what is said about a wrong command line, where they may be in any place."""
    try:
        yield
    except click.UsageError as error:
        message = error.format_message()
        hidden = _LONG_DIGITS.sub("...", without_tokens(message))
        if hidden == message:
            raise
        raise click.UsageError(hidden, error.ctx) from None


def _asks_for_json(args: Iterable[str]) -> bool:
    return "--json" in itertools.takewhile(lambda argument: argument != "--", args)


def _tell(error: Exception, message: str, as_json: bool) -> None:
    """Print the error that ended the command on stderr."""
    message = without_tokens(with_plain_ids(message))
    if as_json:
        print_json({"error": message, "code": code_of(error), "exit_code": exit_code_of(error)}, err=True)
    else:
        click.echo(f"Error: {one_line(message)}", err=True)
