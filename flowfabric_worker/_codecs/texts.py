"""The conversions of values that are encoded as text: moments, durations, ids, decimals, paths, bytes."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from flowfabric_worker._codecs.kinds import Conversion, Mismatch, brief, not_exact, unexpected
from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import ExecutionId

_SECONDS: Final = re.compile(r"(-?)([0-9]{1,15})(?:\.([0-9]{1,6}))?")


def _seconds(value: timedelta) -> str:
    microseconds = value // timedelta(microseconds=1)
    whole, rest = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{rest:06}".rstrip("0").rstrip(".")


def _timedelta(text: str) -> timedelta:
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise ValueError("it must be seconds, such as 90 or 1.5")
    sign, whole, rest = match.groups("")
    value = timedelta(seconds=int(whole), microseconds=int(rest.ljust(6, "0")))
    return -value if sign else value


_SUFFIXES: Final = re.compile(r"([^\[]*)(?:\[([^\[\]=]+)\])?(\[fold=1\])?")


def _write_moment(value: datetime | time) -> str:
    """Return the ISO text of a datetime or time, followed by the name of its zone: `...+01:00[Europe/Berlin]`."""
    zone = value.tzinfo
    if zone is None or (type(zone) is timezone and zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)):
        name = ""
    elif type(zone) is ZoneInfo and zone.key is not None:
        name = f"[{zone.key}]"
    else:
        raise Mismatch(
            f"the zone {type(zone).__name__} of a {type(value).__name__} would not come back; take zoneinfo.ZoneInfo "
            "or a datetime.timezone without a name"
        )
    return f"{value.isoformat()}{name}{'[fold=1]' if value.fold else ''}"


def _reader(kind: type[Any]) -> Callable[[str], Any]:
    """Return a function that reads the texts of `_write_moment`; a named zone takes precedence over the offset."""

    def read(text: str) -> Any:
        match = _SUFFIXES.fullmatch(text)
        if match is None:
            raise ValueError("it must be ISO 8601, perhaps with a [zone]")
        iso, zone, fold = match.groups()
        value = kind.fromisoformat(iso)
        if zone is None:
            return value.replace(fold=1) if fold else value
        return value.replace(tzinfo=ZoneInfo(zone), fold=1 if fold else 0)

    return read


# The functions that write and read the text of each class.
TEXTS: Final[dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]]] = {
    datetime: (_write_moment, _reader(datetime)),
    date: (date.isoformat, date.fromisoformat),
    time: (_write_moment, _reader(time)),
    timedelta: (_seconds, _timedelta),
    UUID: (str, UUID),
    ExecutionId: (str, ExecutionId.parse),
    Decimal: (str, Decimal),
    bytes: (
        lambda value: base64.b64encode(value).decode(),
        lambda text: base64.b64decode(text, validate=True),
    ),
}


def text(label: str, kind: type, write: Callable[[Any], str], read: Callable[[str], Any]) -> Conversion:
    """Return the conversion of a class that is encoded as text; instances of its subclasses are refused."""
    # Path(...) creates a PosixPath.
    made = type(kind()) if issubclass(kind, PurePath) else kind

    def encode(value: Any) -> str:
        if type(value) is not made:
            raise not_exact(label, value, kind)
        return write(value)

    def decode(plain: Any) -> Any:
        if not isinstance(plain, str):
            raise unexpected(f"the text of a {label}", plain)
        try:
            return read(plain)
        except (ValueError, ArithmeticError, LookupError, OSError, ValidationError) as error:
            raise Mismatch(f"not the text of a {label}: {brief(error)}") from None

    return Conversion(label=label, encode=encode, decode=decode, wire=frozenset({str}), kind=kind)
