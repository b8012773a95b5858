"""Validators that the records of several areas share.

Each raises a `ValidationError` that names the record and its field. None puts bytes into a message, so they are safe
for payloads; secrets must not be checked by `name`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

import attrs

from flowfabric_worker.engine.errors import ValidationError
from flowfabric_worker.engine.ids import check_capabilities, check_name, is_plain_name
from flowfabric_worker.engine.moments import milliseconds

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def name(record: Any, field: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is a name: UTF-8 of 1 to 256 bytes, no control character."""
    # The name of the field is only needed for an error.
    if not is_plain_name(value):
        check_name(value, _spoken(record, field))


def optional_name(record: Any, field: attrs.Attribute[Any], value: object) -> None:
    """Check that a field is None or a name."""
    if value is not None:
        name(record, field, value)


def names(record: Any, field: attrs.Attribute[Any], values: Iterable[object]) -> None:
    """Check that every element of a field, or every key of a mapping, is a name."""
    for value in values:
        check_name(value, f"An element of {_spoken(record, field)}")


def duration(least: int = 0) -> Validator:
    """Return a check that a field is a `timedelta` from `least` ms to 100 years."""

    def check(record: Any, field: attrs.Attribute[Any], value: Any) -> None:
        milliseconds(value, _spoken(record, field), least=least)

    return check


def payload(limit: int) -> Validator:
    """Return a check that a field is bytes, at most `limit` of them."""

    def check(record: Any, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, bytes):
            raise ValidationError(
                "invalid_input", f"{_spoken(record, field)} must be bytes, not {type(value).__name__}."
            )
        if len(value) > limit:
            raise ValidationError(
                "payload_too_large",
                f"{_spoken(record, field)} has {len(value)} bytes, more than the {limit} that are allowed.",
            )

    return check


def integer(least: int, most: int | None = None) -> Validator:
    """Return a check that a field is an int of at least `least`, at most `most` if given, and not a bool."""

    def check(record: Any, field: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValidationError("invalid_input", f"{_spoken(record, field)} must be an int of at least {least}.")
        if most is not None and value > most:
            raise ValidationError("invalid_input", f"{_spoken(record, field)} must be at most {most}.")

    return check


def one_of(*words: str) -> Validator:
    """Return a check that an option is one of some words."""

    def check(_: Any, field: attrs.Attribute[Any], value: object) -> None:
        if value not in words:
            wanted = " or ".join(map(repr, words))
            raise ValidationError("invalid_input", f"{field.name} must be {wanted}, not {value!r:.100}.")

    return check


def true_or_false(_: Any, field: attrs.Attribute[Any], value: object) -> None:
    """Check that an option is a bool."""
    if not isinstance(value, bool):
        raise ValidationError("invalid_input", f"{field.name} must be True or False, not {value!r:.100}.")


def at_most(limit: int) -> Validator:
    """Return a check that a field has at most `limit` elements."""

    def check(record: Any, field: attrs.Attribute[Any], value: Any) -> None:
        if len(value) > limit:
            raise ValidationError(
                "invalid_input",
                f"{_spoken(record, field)} has {len(value)} elements; at most {limit} are allowed.",
            )

    return check


def word(kind: type[E], value: object, what: str) -> E:
    """Return the member of an enumeration that `value` is or names.

    Raises:
        ValidationError: it is none; the message names `what` and the words that there are.
    """
    if value.__class__ is kind:
        return value
    try:
        return kind(value)  # type: ignore[arg-type]  # what is no text is none of its words
    except ValueError:
        raise ValidationError("invalid_input", f"{what} must be one of {', '.join(kind)}, not {value!a:.40}.") from None


def as_tuple(values: Iterable[Any]) -> tuple[Any, ...]:
    """Convert a field to a tuple. A lone str or bytes is refused, because its elements are never meant."""
    if isinstance(values, str | bytes):
        raise ValidationError("invalid_input", f"Pass a collection, not a single {type(values).__name__}.")
    return tuple(values)


def as_frozenset(values: Iterable[Any]) -> frozenset[Any]:
    """Convert a field to a frozenset. A lone str or bytes is refused, because its elements are never meant."""
    return frozenset(as_tuple(values))


def as_capabilities(values: Iterable[Any]) -> frozenset[str]:
    """Convert a field to a set of valid capabilities."""
    return frozenset(check_capabilities(values))


def as_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a mapping, so that later changes of it do not change the record; refuse anything else."""
    if not isinstance(values, Mapping):
        raise ValidationError("invalid_input", f"Pass a mapping, not {type(values).__name__}.")
    return dict(values)


def as_words(values: Iterable[str]) -> frozenset[str]:
    """Convert a field to a set of words. A lone str or bytes is refused, because its letters are never meant."""
    words = frozenset(as_tuple(values))
    if not all(isinstance(word, str) for word in words):
        raise ValidationError("invalid_input", "Pass a collection of words.")
    return words


def check_iterable(values: Iterable[T], what: str) -> Iterable[T]:
    """Return `values` if they can be iterated.

    Raises:
        ValidationError: `invalid_input`; the message names `what`.
    """
    if not isinstance(values, Iterable):
        raise ValidationError("invalid_input", f"Pass {what}, not {type(values).__name__}.")
    return values


def check_record(value: T, kind: type[T]) -> T:
    """Return `value` if it is a record of this kind.

    Raises:
        ValidationError: `invalid_input`; the message does not show the value.
    """
    if not isinstance(value, kind):
        raise ValidationError("invalid_input", f"Pass {kind.__name__}, not {type(value).__name__}.")
    return value


def _spoken(record: Any, field: attrs.Attribute[Any]) -> str:
    return f"{type(record).__name__}.{field.name}"
