"""The output of commands: texts for people, and JSON for programs, without control characters."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

import attrs
import click

from flowfabric_worker.engine.ids import ExecutionId

_MOST_IN_PLANE: Final = 0xFFFF


def shown(text: str) -> str:
    """Escape the characters of a text that would control a terminal; the result stays valid inside JSON."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in "\n\t" or ord(each) > _MOST_IN_PLANE else f"\\u{ord(each):04x}"
        for each in text
    )


def one_line(text: str) -> str:
    """Escape line ends as well, so that a text cannot look like a line of this program."""
    return shown(text).replace("\n", "\\n")


def plain(value: Any) -> Any:
    """Convert records, ids, durations and bytes to JSON values; durations become seconds."""
    if isinstance(value, ExecutionId):
        return value.plain
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attrs.has(type(value)):
        return {field.name: plain(getattr(value, field.name)) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, Set):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def print_json(value: Any, *, err: bool = False) -> None:
    """Print one JSON document on one line, on stdout or stderr."""
    click.echo(shown(json.dumps(plain(value), ensure_ascii=False)), err=err)


def moment(milliseconds: int | None) -> str:
    """Format a time of the store's clock, in ms, in this machine's time zone; return "" for None."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().isoformat(" ", "milliseconds")


def span(milliseconds: float) -> str:
    """Format a duration, in ms, in its largest unit, such as 12s, 3m, 5h or 2d."""
    seconds = max(0, int(milliseconds / 1000))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def print_again(print_once: Callable[[], None], every: timedelta, times: int | None) -> None:
    """Print something again and again: so many times, or until the user stops it."""
    printed = 0
    while True:
        print_once()
        printed += 1
        if times is not None and printed >= times:
            return
        time.sleep(every.total_seconds())
