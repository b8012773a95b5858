"""The conversions of pydantic models, and of classes that were registered with `codec.register`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs

from flowfabric_worker._codecs.equality import same
from flowfabric_worker._codecs.kinds import (
    ANYTHING,
    FAULTS,
    Conversion,
    Mismatch,
    brief,
    not_exact,
)


@attrs.frozen
class RegisteredClass:
    """The functions that were registered for a class.

    Attributes:
        to: returns the plain form of an instance.
        back: returns an instance from its plain form.
    """

    to: Callable[[Any], Any]
    back: Callable[[Any], Any]

    def conversion(self, label: str, kind: type[Any], plain_values: Conversion) -> Conversion:
        """Return the conversion of the class; `plain_values` checks what `to` returns."""

        def encode(value: Any) -> Any:
            if type(value) is not kind:
                raise not_exact(label, value, kind)
            plain = plain_values.encode(self.to(value))
            back = self.back(plain)
            if type(back) is not kind or (_can_be_equal(kind) and back != value):
                raise Mismatch(
                    f"a registered {label} would not come back equal: check the functions of codec.register()"
                )
            return plain

        def decode(plain: Any) -> Any:
            value = self.back(plain)
            if type(value) is not kind:
                raise Mismatch(f"the registered function that decodes a {label} returned a {type(value).__name__}")
            return value

        return Conversion(label=label, encode=encode, decode=decode, wire=ANYTHING, kind=kind)


def _can_be_equal(kind: Any) -> bool:
    return kind.__eq__ is not object.__eq__


REGISTERED: Final[dict[type, RegisteredClass]] = {}


def is_pydantic_model(kind: type) -> bool:
    """Return True if a class is a model of pydantic 2, without importing pydantic."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate")


def pydantic_model(label: str, kind: Any) -> Conversion:
    """Return the conversion of a pydantic model by its JSON form; a value that would not come back equal is refused."""
    is_root = bool(getattr(kind, "__pydantic_root_model__", False))

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise not_exact(label, value, kind)
        try:
            plain = value.model_dump(mode="json", by_alias=True, round_trip=True, warnings=False)
        except ValueError as error:
            raise Mismatch(f"{label} cannot be written: {brief(error)}") from None
        if not _comes_back(value, plain, kind):
            raise Mismatch(f"this {label} would not come back equal from its own JSON form")
        return plain

    def decode(plain: Any) -> Any:
        try:
            return kind.model_validate(plain)
        except ValueError as error:
            raise Mismatch(f"{label} refuses its fields: {brief(error)}") from None

    def knows(plain: Any) -> bool:
        aliases = {field.validation_alias or field.alias for field in kind.model_fields.values()}
        return not isinstance(plain, dict) or plain.keys() <= {*kind.model_fields, *map(str, aliases)}

    wire = ANYTHING if is_root else frozenset({dict})
    return Conversion(label=label, encode=encode, decode=decode, wire=wire, kind=kind, knows=knows)


def _comes_back(value: Any, plain: Any, kind: Any) -> bool:
    """Return True if a model is equal to what its plain form is validated to."""
    try:
        back = kind.model_validate(plain)
        return bool(back == value) and same(value.__dict__, back.__dict__)
    except FAULTS:
        return False
