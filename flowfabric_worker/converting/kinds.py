"""How values become plain and come back: scalars, texts, enums, literals, collections, mappings."""

from __future__ import annotations

import base64
import json
import re
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from itertools import repeat
from types import NoneType
from typing import Any, Final
from uuid import UUID

import attrs

Convert = Callable[[Any], Any]

SCALARS: Final[frozenset[type]] = frozenset({NoneType, bool, int, float, str})
_STR: Final[frozenset[type]] = frozenset({str})
ANYTHING: Final[frozenset[type]] = SCALARS | {list, dict}

# What may go wrong in the code of users' classes (validators, __init__) and of codecs: the value is at fault.
FAULTS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Mismatch(ValueError):  # noqa: N818 - its text becomes part of an error of the codec, users never see it
    """A value does not fit its annotation; `path` leads to the spot inside the whole: `[2].price`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""

    def under(self, step: str) -> Mismatch:
        """The same mismatch, seen from one level further out."""
        self.path = step + self.path
        return self


def unexpected(label: str, value: object) -> Mismatch:
    """The mismatch of a value that is no `label`. It names the value's class and never quotes the value."""
    return Mismatch(f"expected {label}, got {label_of_class(type(value))}")


def label_of_class(kind: type) -> str:
    """The name of a class as it is written in an annotation."""
    return "None" if kind is NoneType else kind.__name__


@attrs.frozen(kw_only=True, eq=False)
class Conversion:
    """How the values of one annotation travel.

    Attributes:
        label: the annotation as its author would write it.
        encode: makes a value plain, or raises `Mismatch`.
        decode: makes a plain value typed again, or raises `Mismatch`.
        wire: the classes that an encoded value can have.
        plain: the classes whose instances may pass in both directions without a call.
        kind: the class of the typed values, where there is just one.
        unchanged: whether a value is encoded as itself.
    """

    label: str
    encode: Convert
    decode: Convert
    wire: frozenset[type] = ANYTHING
    plain: frozenset[type] = frozenset()
    kind: type | None = None
    unchanged: bool = False


def untouched() -> Conversion:
    """For codecs that write every object by themselves."""
    return Conversion(label="object", encode=lambda value: value, decode=lambda value: value)


def unsupported(label: str, reason: str = "") -> Conversion:
    """For an annotation that has no way: using it says so."""

    def refuse(_: Any) -> Any:
        raise Mismatch(reason or f"values annotated {label} cannot travel; use a type that can, or a codec of your own")

    return Conversion(label=label, encode=refuse, decode=refuse)


def unchanged(label: str, kind: type) -> Conversion:
    """For a class whose instances are plain; those of its subclasses come back as the class itself."""

    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return value

    convert = _to_float if kind is float else check
    wire = frozenset({kind})
    return Conversion(label=label, encode=convert, decode=convert, wire=wire, plain=wire, kind=kind, unchanged=True)


def _to_float(value: Any) -> float:
    if isinstance(value, float):
        return value
    if not isinstance(value, int):
        raise unexpected("float", value)
    if float(value) != value:
        raise Mismatch("expected float, got an int that no float can hold exactly")
    return float(value)


def anything(leaves: frozenset[type]) -> Conversion:
    """For values without an annotation: plain ones of these leaves pass, all others are refused."""
    bases = tuple(leaves)

    def check_item(key: Any, item: Any) -> tuple[str, Any]:
        if not isinstance(key, str):
            raise Mismatch(f"a dict without an annotation needs keys of type str, not {type(key).__name__}")
        return key, check(item)

    def check(value: Any) -> Any:
        if isinstance(value, list):
            if not leaves.issuperset(map(type, value)):
                each(repeat(check), value)
        elif isinstance(value, dict):
            if not (_STR.issuperset(map(type, value)) and leaves.issuperset(map(type, value.values()))):
                by_key(value, check_item)
        elif not isinstance(value, bases):
            raise Mismatch(f"a {type(value).__name__} travels only where an annotation says so")
        return value

    return Conversion(label="Any", encode=check, decode=lambda value: value, wire=ANYTHING | leaves, plain=leaves)


def each(converts: Iterable[Convert], values: Iterable[Any]) -> list[Any]:
    """Converts values one after the other; a mismatch tells the index."""
    converted: list[Any] = []
    try:
        for convert, value in zip(converts, values, strict=False):
            converted.append(convert(value))
    except Mismatch as mismatch:
        raise mismatch.under(f"[{len(converted)}]") from None
    return converted


def by_key(items: Mapping[Any, Any], convert: Callable[[Any, Any], tuple[Any, Any]]) -> dict[Any, Any]:
    """Converts the items of a dict; a mismatch tells the key."""
    converted = {}
    for key, value in items.items():
        try:
            new_key, new_value = convert(key, value)
        except Mismatch as mismatch:
            raise mismatch.under(f"[{key!r:.40}]") from None
        converted[new_key] = new_value
    return converted


def brief(error: BaseException) -> str:
    """What an error says in at most 100 characters: it may quote what was stored."""
    words = str(error) or type(error).__name__
    return words if len(words) <= 100 else words[:99] + "…"


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


def _time(value: time) -> str:
    if value.tzinfo is not None and value.utcoffset() is None:
        raise Mismatch("a time of day in a zone whose offset depends on the date cannot travel; use a datetime")
    return value.isoformat()


# Classes that travel as text: how it is written, and how it is read.
TEXTS: Final[dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]]] = {
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (_time, time.fromisoformat),
    timedelta: (_seconds, _timedelta),
    UUID: (str, UUID),
    Decimal: (str, Decimal),
    bytes: (
        lambda value: base64.b64encode(value).decode(),
        lambda text: base64.b64decode(text, validate=True),
    ),
}


def text(label: str, kind: type, write: Callable[[Any], str], read: Callable[[str], Any]) -> Conversion:
    """For a class whose instances travel as text."""
    # Every datetime is a date for Python, but its time of day would be lost.
    excluded = datetime if kind is date else ()

    def encode(value: Any) -> str:
        if not isinstance(value, kind) or isinstance(value, excluded):
            raise unexpected(label, value)
        return write(value)

    def decode(plain: Any) -> Any:
        if not isinstance(plain, str):
            raise unexpected(f"the text of a {label}", plain)
        try:
            return read(plain)
        except (ValueError, ArithmeticError) as error:
            raise Mismatch(f"not the text of a {label}: {brief(error)}") from None

    return Conversion(label=label, encode=encode, decode=decode, wire=frozenset({str}), kind=kind)


def enumeration(label: str, kind: type[Enum]) -> Conversion:
    """For an enum: by value where all values are scalars, otherwise by name."""
    by_value = issubclass(kind, Flag) or SCALARS.issuperset(type(member.value) for member in kind)
    read: Convert = kind if by_value else kind.__getitem__

    def encode(value: Any) -> Any:
        if not isinstance(value, kind):
            raise unexpected(label, value)
        return value.value if by_value else value.name

    def decode(plain: Any) -> Any:
        try:
            return read(plain)
        except (KeyError, TypeError, ValueError):
            raise Mismatch(f"expected a {'value' if by_value else 'name'} of {label}, got {plain!r:.40}") from None

    wire = frozenset(type(member.value) for member in kind) if by_value else frozenset({str})
    return Conversion(label=label, encode=encode, decode=decode, wire=wire, kind=kind)


def literal(label: str, encoded: Mapping[tuple[type, Any], Any]) -> Conversion:
    """For a Literal; `encoded` maps each (class, value) to its plain form, so that 1 and True stay apart."""
    decoded = {(type(plain), plain): value for (_, value), plain in encoded.items()}

    def look_up(table: Mapping[tuple[type, Any], Any]) -> Convert:
        def convert(value: Any) -> Any:
            try:
                return table[type(value), value]
            except (KeyError, TypeError):
                raise Mismatch(f"expected {label}, got something else of type {type(value).__name__}") from None

        return convert

    return Conversion(
        label=label,
        encode=look_up(encoded),
        decode=look_up(decoded),
        wire=frozenset(kind for kind, _ in decoded),
        unchanged=encoded.keys() == decoded.keys(),
    )


# Annotations of collections: what is accepted, and what comes back.
COLLECTIONS: Final[dict[type, tuple[tuple[type[Any], ...], Callable[[Iterable[Any]], Collection[Any]]]]] = {
    list: ((list,), list),
    set: ((set,), set),
    frozenset: ((frozenset,), frozenset),
    abc.MutableSequence: ((list,), list),
    abc.Sequence: ((list, tuple), list),
    abc.Collection: ((list, tuple), list),
    abc.Iterable: ((list, tuple), list),
    abc.MutableSet: ((set,), set),
    abc.Set: ((set, frozenset), set),
}


def collection(
    label: str, item: Conversion, accepted: tuple[type[Any], ...], make: Callable[[Iterable[Any]], Collection[Any]]
) -> Conversion:
    """For items of one annotation in a list, set or tuple; all travel as lists."""
    plain, passes = item.plain, item.plain.issuperset
    # The same set must be the same bytes in every process: its own order hangs on the seed of the hashes.
    ordered = set in accepted or frozenset in accepted

    def encode(value: Any) -> list[Any]:
        if not isinstance(value, accepted):
            raise unexpected(label, value)
        items: list[Any] = list(value) if plain and passes(map(type, value)) else each(repeat(item.encode), value)
        return sorted(items, key=repr) if ordered else items

    def decode(value: Any) -> Any:
        if not isinstance(value, list):
            raise unexpected(f"a list for {label}", value)
        items = value if plain and passes(map(type, value)) else each(repeat(item.decode), value)
        return items if make is list else make(items)

    kind = accepted[0] if len(accepted) == 1 else None
    return Conversion(label=label, encode=encode, decode=decode, wire=frozenset({list}), kind=kind)


def fixed_tuple(
    label: str, kind: type, items: Sequence[Conversion], make: Callable[[Iterable[Any]], Any]
) -> Conversion:
    """For a tuple or named tuple with an annotation for each place; it travels as a list."""

    encoders = [item.encode for item in items]
    decoders = [item.decode for item in items]

    def check(value: Any, accepted: type[Any]) -> None:
        if not isinstance(value, accepted):
            raise unexpected(label if accepted is kind else f"a list for {label}", value)
        if len(value) != len(items):
            raise Mismatch(f"expected {label} with {len(items)} items, got {len(value)}")

    def encode(value: Any) -> list[Any]:
        check(value, kind)
        return each(encoders, value)

    def decode(value: Any) -> Any:
        check(value, list)
        return make(each(decoders, value))

    return Conversion(label=label, encode=encode, decode=decode, wire=frozenset({list}), kind=kind)


MAPPINGS: Final = frozenset({dict, abc.Mapping, abc.MutableMapping})


def mapping(label: str, key: Conversion, value: Conversion) -> Conversion:
    """For a dict; keys that are no text by nature (`5`) travel as the JSON of their plain form (`"5"`)."""
    is_text = key.wire == _STR
    plain_keys = key.plain if is_text else frozenset[type]()

    def encode_item(name: Any, item: Any) -> tuple[str, Any]:
        plain = key.encode(name)
        return plain if is_text else json.dumps(plain), value.encode(item)

    def decode_item(name: str, item: Any) -> tuple[Any, Any]:
        return key.decode(name if is_text else _read_key(name)), value.decode(item)

    def convert(items: Any, convert_item: Callable[[Any, Any], tuple[Any, Any]]) -> dict[Any, Any]:
        if not isinstance(items, dict):
            raise unexpected(label, items)
        if plain_keys.issuperset(map(type, items)) and value.plain.issuperset(map(type, items.values())):
            return items
        return by_key(items, convert_item)

    return Conversion(
        label=label,
        encode=lambda items: convert(items, encode_item),
        decode=lambda items: convert(items, decode_item),
        wire=frozenset({dict}),
        kind=dict,
    )


def _read_key(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise Mismatch("this key is not JSON") from None
