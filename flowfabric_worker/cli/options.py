"""The options and argument types that commands share."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, TypeVar

import click

from flowfabric_worker.cli.exit_codes import debug_option
from flowfabric_worker.client import Client
from flowfabric_worker.codec import find_codec
from flowfabric_worker.config import DEFAULT_URL, URL_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])

# Seconds for which a failed call is retried: short, because a person is waiting.
_RETRY_FOR: Final = 1.0
# The most rows that an option may ask for.
MOST_ROWS: Final = 1_000_000_000

_JSON: Final = find_codec("json")
# Characters of an argument that an error repeats.
_MOST_REPEATED: Final = 80

_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d|)")
_SIZE: Final = re.compile(r"([0-9]{1,15})(|KB|MB|GB)")
_SIZE_UNITS: Final = ("", "KB", "MB", "GB")
_UNITS: Final = {
    "": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}


def _brief(text: str) -> str:
    """Return the beginning of an argument, for an error that repeats it."""
    return f"{text!r:.{_MOST_REPEATED}}"


def duration(text: str) -> timedelta:
    """Read a duration: seconds, or a number with a unit, such as 500ms, 30s, 5m, 2h or 1d."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{_brief(text)} is not a duration: write seconds, or a number with ms, s, m, h or d.")
    try:
        return float(match[1]) * _UNITS[match[2]]
    except OverflowError:
        raise click.BadParameter(f"The duration {_brief(text)} is too long.") from None


def size(text: str) -> int:
    """Read a size: bytes, or a number with a unit, such as 512MB or 2GB; 1 KB is 1024 bytes."""
    match = _SIZE.fullmatch(text.upper())
    if match is None or not int(match[1]):
        raise click.BadParameter(f"{_brief(text)} is not a size: write bytes, or a number with KB, MB or GB.")
    return int(match[1]) * int(1024 ** _SIZE_UNITS.index(match[2]))


def json_value(text: str) -> Any:
    """Read a JSON value."""
    try:
        return _JSON.decode(text.encode())
    except ValueError:
        quoted = shlex.quote(json.dumps(text, ensure_ascii=False)) if len(text) <= _MOST_REPEATED else "'\"...\"'"
        raise click.BadParameter(f"{_brief(text)} is not JSON: in a shell, write a text as {quoted}.") from None


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    value = json_value(text)
    if not isinstance(value, dict):
        raise click.BadParameter(f"""{_brief(text)} is not a JSON object: write one such as '{{"to": "a@b.c"}}'.""")
    return value


def tag(text: str) -> tuple[str, str]:
    """Read a tag, such as color=red."""
    return _pair(text, "tag")


def header(text: str) -> tuple[str, str]:
    """Read a header, such as traceparent=00-1a."""
    return _pair(text, "header")


def _pair(text: str, what: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{_brief(text)} is not a {what}: write NAME=VALUE.")
    return name, value


def id_argument(function: F) -> F:
    """Add the argument ID; the command receives `execution_id`."""
    return click.argument("execution_id", metavar="ID")(function)


def url_option(function: F) -> F:
    """Add --url."""
    text = f"The store; defaults to ${URL_VARIABLE}, then to {DEFAULT_URL}."
    return click.option("--url", metavar="URL", help=text)(function)


def tag_option(text: str) -> Callable[[F], F]:
    """Add --tag, which may be repeated; the command receives `tags`, a tuple of pairs."""
    return click.option("--tag", "tags", type=tag, multiple=True, metavar="NAME=VALUE", help=text)


def json_option(text: str = "Print one JSON document.") -> Callable[[F], F]:
    """Add --json; the command receives `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def limit_option(rows: int) -> Callable[[F], F]:
    """Add --limit of a listing whose table has so many rows without it."""
    return click.option(
        "--limit",
        type=click.IntRange(1, MOST_ROWS),
        metavar="N",
        help=f"List at most N; defaults to {rows}, or to all with --json.",
    )


def live_options(function: F) -> F:
    """Add --every and --times, for the action `live`; the command receives `every` and `times`."""
    every = click.option(
        "--every", type=duration, default="1s", show_default=True, metavar="DURATION", help="Let live look so often."
    )
    times = click.option(
        "--times", type=click.IntRange(1), metavar="COUNT", help="Stop live after it has looked this often."
    )
    return every(times(function))


timeout_option = click.option(
    "--timeout", type=duration, metavar="DURATION", help="Stop waiting after this, such as 30s; the execution runs on."
)


def with_client(function: Callable[..., None]) -> Callable[..., None]:
    """Add --url, --namespace and --debug; the command receives a `Client`, which is closed when the command ends."""

    @url_option
    @click.option("--namespace", default="default", show_default=True, help="The tenant in the store.")
    @debug_option
    @functools.wraps(function)
    def command(url: str | None, namespace: str, **parameters: Any) -> None:
        with Client(url, namespace=namespace, retry_for=_RETRY_FOR) as client:
            function(client, **parameters)

    return command
