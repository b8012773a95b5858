"""The conversions of scalars, enums, literals and collections."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, Flag
from itertools import repeat
from types import NoneType
from typing import Any, Final

import attrs

Convert = Callable[[Any], Any]

SCALARS: Final[frozenset[type]] = frozenset({NoneType, bool, int, float, str})
STR: Final[frozenset[type]] = frozenset({str})
ANYTHING: Final[frozenset[type]] = SCALARS | {list, dict}
_NUMBERS: Final[dict[type, frozenset[type]]] = {int: frozenset({int, bool}), float: frozenset({float, int, bool})}

# The errors of users' classes (validators, __init__) and of codecs that mean that a value is not valid.
FAULTS: Final = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Mismatch(ValueError):  # noqa: N818 - its text becomes part of an error of the codec, users never see it
    """A value does not fit its annotation; `path` is the place of the value, such as `[2].price`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.path = ""

    def under(self, step: str) -> Mismatch:
        """Return the mismatch after putting a step before its path."""
        self.path = step + self.path
        return self


def not_exact(label: str, value: object, kind: type) -> Mismatch:
    """Return the mismatch of a value that is no `label`; a hint tells if it is an instance of a subclass of `kind`."""
    mismatch = unexpected(label, value)
    if isinstance(value, kind):
        return Mismatch(f"{mismatch}, which would come back as {label_of_class(kind)}; annotate its own class")
    return mismatch


def unexpected(label: str, value: object) -> Mismatch:
    """Return the mismatch of a value that is no `label`; it names the class of the value, but never the value."""
    return Mismatch(f"expected {label}, got {label_of_class(type(value))}")


def label_of_class(kind: type) -> str:
    """Return the name of a class as it is written in an annotation."""
    return "None" if kind is NoneType else kind.__name__


@attrs.frozen(kw_only=True, eq=False)
class Conversion:
    """How the values of one annotation are encoded and decoded.

    Attributes:
        label: the annotation as its author would write it.
        encode: returns the plain form of a value, or raises `Mismatch`.
        decode: returns the typed form of a plain value, or raises `Mismatch`.
        wire: the classes that an encoded value can have.
        plain: the classes whose instances need no conversion in either direction.
        kind: the class of the typed values, if there is only one.
        unchanged: True if a value is encoded as itself.
        knows: returns True if decoding would ignore nothing in a plain object; None if it never ignores anything.
        parts: returns the conversions of the contents of values, which may contain this one again.
        refusal: why no value can be encoded; empty if values can be.
        unresolved: True if the reason is an undefined name, which may be defined later.
        tags: the names under which the members of a union are encoded.
    """

    label: str
    encode: Convert
    decode: Convert
    wire: frozenset[type] = ANYTHING
    plain: frozenset[type] = frozenset()
    kind: type | None = None
    unchanged: bool = False
    knows: Callable[[Any], bool] | None = None
    parts: Callable[[], Iterable[Conversion]] = tuple
    refusal: str = ""
    unresolved: bool = False
    tags: frozenset[str] = frozenset()


def untouched() -> Conversion:
    """Return the conversion for codecs that write every object by themselves; it changes nothing."""
    return Conversion(label="object", encode=lambda value: value, decode=lambda value: value)


def unsupported(label: str, reason: str = "", *, unresolved: bool = False) -> Conversion:
    """Return a conversion that raises in use, for an annotation that cannot be encoded."""
    why = reason or f"values annotated {label} cannot be encoded; use another type, or codec.register()"

    def refuse(_: Any) -> Any:
        raise Mismatch(why)

    return Conversion(label=label, encode=refuse, decode=refuse, refusal=why, unresolved=unresolved)


def refusal_in(conversion: Conversion) -> tuple[str, bool]:
    """Return why no value of a conversion can be encoded, or "", and whether the reason is an unresolved name."""
    seen: set[int] = set()
    waiting = [conversion]
    while waiting:
        each_one = waiting.pop()
        if id(each_one) in seen:
            continue
        seen.add(id(each_one))
        if each_one.refusal:
            return each_one.refusal, each_one.unresolved
        waiting += each_one.parts()
    return "", False


def unchanged(label: str, kind: type) -> Conversion:
    """Return the conversion of a class whose instances are plain; those of its subclasses are refused."""
    # An int is valid for `float`, as in Python, and comes back as an int.
    wire = _NUMBERS.get(kind, frozenset({kind}))

    def check(value: Any) -> Any:
        if type(value) not in wire:
            raise not_exact(label, value, kind)
        return value

    return Conversion(label=label, encode=check, decode=check, wire=wire, plain=wire, kind=kind, unchanged=True)


def anything(leaves: frozenset[type]) -> Conversion:
    """Return the conversion of values without an annotation: plain ones of these leaves pass, others are refused."""

    def check_item(key: Any, item: Any) -> tuple[str, Any]:
        if type(key) is not str:
            raise Mismatch(f"a dict without an annotation needs keys of type str, not {type(key).__name__}")
        return key, check(item)

    def check(value: Any) -> Any:
        kind = type(value)
        if kind is list:
            if not leaves.issuperset(map(type, value)):
                each(repeat(check), value)
        elif kind is dict:
            if not (STR.issuperset(map(type, value)) and leaves.issuperset(map(type, value.values()))):
                by_key(value, check_item)
        elif kind not in leaves:
            raise Mismatch(f"a {type(value).__name__} is encoded only if an annotation names its type")
        return value

    return Conversion(label="Any", encode=check, decode=lambda value: value, wire=ANYTHING | leaves, plain=leaves)


def each(converts: Iterable[Convert], values: Iterable[Any]) -> list[Any]:
    """Convert values one after the other; a mismatch tells the index."""
    converted: list[Any] = []
    try:
        for convert, value in zip(converts, values, strict=False):
            converted.append(convert(value))
    except Mismatch as mismatch:
        raise mismatch.under(f"[{len(converted)}]") from None
    return converted


def by_key(items: Mapping[Any, Any], convert: Callable[[Any, Any], tuple[Any, Any]]) -> dict[Any, Any]:
    """Convert the items of a dict; a mismatch tells the key."""
    converted = {}
    for key, value in items.items():
        try:
            new_key, new_value = convert(key, value)
        except Mismatch as mismatch:
            raise mismatch.under(f"[{key!r:.40}]") from None
        converted[new_key] = new_value
    return converted


def brief(error: BaseException) -> str:
    """Return the text of an error in at most 100 characters, because it may quote a stored value."""
    words = str(error) or type(error).__name__
    return words if len(words) <= 100 else words[:99] + "…"


def enumeration(label: str, kind: type[Enum]) -> Conversion:
    """Return the conversion of an enum: by value where all values are scalars that find their members, else by name."""
    by_value = issubclass(kind, Flag) or all(_is_found_by_value(kind, member) for member in kind)
    read: Convert = kind if by_value else kind.__getitem__

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise unexpected(label, value)
        return value.value if by_value else value.name

    def decode(plain: Any) -> Any:
        try:
            return read(plain)
        except (KeyError, TypeError, ValueError):
            raise Mismatch(f"expected a {'value' if by_value else 'name'} of {label}, got {plain!r:.40}") from None

    wire = frozenset(type(member.value) for member in kind) if by_value else frozenset({str})
    return Conversion(label=label, encode=encode, decode=decode, wire=wire, kind=kind)


def _is_found_by_value(kind: type[Enum], member: Enum) -> bool:
    try:
        return type(member.value) in SCALARS and kind(member.value) is member
    except (TypeError, ValueError):
        return False


def literal(label: str, encoded: Mapping[tuple[type, Any], Any]) -> Conversion:
    """Return the conversion of a Literal.

    Args:
        label: the annotation.
        encoded: the plain form of each (class, value), so that 1 and True are distinct.
    """
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


# Annotations of collections, and the classes that their values may have; the first one is encoded without its name.
COLLECTIONS: Final[dict[type, tuple[type[Any], ...]]] = {
    list: (list,),
    set: (set,),
    frozenset: (frozenset,),
    abc.MutableSequence: (list,),
    abc.Sequence: (list, tuple),
    abc.Collection: (list, tuple, set, frozenset),
    abc.Iterable: (list, tuple, set, frozenset),
    abc.MutableSet: (set,),
    abc.Set: (set, frozenset),
}


def collection(label: str, item: Conversion, kind: type[Any]) -> Conversion:
    """Return the conversion of a list, set or tuple whose items have one annotation; all are encoded as lists."""
    plain, passes = item.plain, item.plain.issuperset
    is_set = issubclass(kind, (set, frozenset))

    def encode(value: Any) -> list[Any]:
        if type(value) is not kind:
            raise not_exact(label, value, kind)
        items: list[Any] = list(value) if plain and passes(map(type, value)) else each(repeat(item.encode), value)
        if is_set:
            check_findable(value, item, items)
            # Sorting makes equal sets equal bytes in every process: their order depends on the seed of the hashes.
            items.sort(key=repr)
        return items

    def decode(value: Any) -> Any:
        if type(value) is not list:
            raise unexpected(f"a list for {label}", value)
        items = value if plain and passes(map(type, value)) else each(repeat(item.decode), value)
        return items if kind is list else kind(items)

    return Conversion(
        label=label, encode=encode, decode=decode, wire=frozenset({list}), kind=kind, parts=lambda: (item,)
    )


def check_findable(keys: Iterable[Any], conversion: Conversion, encoded: Iterable[Any]) -> None:
    """Refuse keys that would not be found after decoding, such as NaN.

    Raises:
        Mismatch: a key does not equal what it is decoded as.
    """
    for key, plain in zip(keys, encoded, strict=True):
        if type(key) is not str and conversion.decode(plain) != key:
            raise Mismatch(f"a {type(key).__name__} that does not equal what comes back cannot be a key or be in a set")


def variants(label: str, conversions: Mapping[type, Conversion]) -> Conversion:
    """Return the conversion of an abstract collection: all classes but the first are encoded under their names."""
    first = next(iter(conversions.values()))
    if len(conversions) == 1:
        return first
    by_tag = {kind.__name__: conversion for kind, conversion in conversions.items() if conversion is not first}

    def encode(value: Any) -> Any:
        conversion = conversions.get(type(value))
        if conversion is None:
            raise unexpected(label, value)
        plain = conversion.encode(value)
        return plain if conversion is first else {type(value).__name__: plain}

    def decode(plain: Any) -> Any:
        if type(plain) is dict and len(plain) == 1:
            ((tag, inner),) = plain.items()
            if tag in by_tag:
                return by_tag[tag].decode(inner)
        return first.decode(plain)

    return Conversion(label=label, encode=encode, decode=decode, wire=first.wire | {dict}, parts=conversions.values)


def fixed_tuple(
    label: str, kind: type, items: Sequence[Conversion], make: Callable[[Iterable[Any]], Any]
) -> Conversion:
    """Return the conversion of a tuple or named tuple with an annotation for each place; it is encoded as a list."""

    encoders = [item.encode for item in items]
    decoders = [item.decode for item in items]

    def check(value: Any, accepted: type[Any]) -> None:
        if type(value) is not accepted:
            raise not_exact(label if accepted is kind else f"a list for {label}", value, accepted)
        if len(value) != len(items):
            raise Mismatch(f"expected {label} with {len(items)} items, got {len(value)}")

    def encode(value: Any) -> list[Any]:
        check(value, kind)
        return each(encoders, value)

    def decode(value: Any) -> Any:
        check(value, list)
        return make(each(decoders, value))

    return Conversion(label=label, encode=encode, decode=decode, wire=frozenset({list}), kind=kind, parts=lambda: items)
