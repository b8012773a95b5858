"""Classes with fields: attrs, dataclasses and TypedDict.

cattrs writes the code for attrs and dataclasses. It is configured here and nowhere else, and asks back for every
field, so that the same checks hold inside and outside of classes.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cached_property
from typing import Any, NotRequired, Required, TypeVar

from cattrs import Converter
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from flowfabric_worker.converting.annotations import field_hints, label_of
from flowfabric_worker.converting.kinds import FAULTS, Conversion, Convert, Mismatch, brief, by_key, unexpected

Finder = Callable[[Any], Conversion]
"""Gives the conversion of an annotation."""


class CattrsConverter(Converter):
    """cattrs, with our conversion for the type of every field."""

    def __init__(self, find: Finder) -> None:
        super().__init__(detailed_validation=True, prefer_attrib_converters=False, forbid_extra_keys=False)
        self._find = find

    def get_unstructure_hook(self, type: Any, cache_result: bool = True) -> Convert:  # noqa: A002, ARG002 - cattrs' names
        return self._find(type).encode

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Callable[[Any, Any], Any]:  # noqa: A002, ARG002
        decode = self._find(type).decode
        return lambda value, _: decode(value)

    def unstructure(self, obj: Any, unstructure_as: Any = Any) -> Any:
        return self._find(unstructure_as).encode(obj)

    def structure(self, obj: Any, cl: Any) -> Any:
        return self._find(cl).decode(obj)


class RecordClass:
    """The conversion of a class with fields: attrs or dataclass.

    cattrs writes its code at first use, so that classes may hold each other and themselves. A subclass is
    refused, because it would come back as the class that the annotation names, without its own fields and
    methods. Fields that a reader does not know are ignored: the writer may be newer.
    """

    def __init__(self, annotation: Any, kind: Any, find: Finder, converter: Converter) -> None:
        self._annotation = annotation
        self._kind = kind
        self._label = label_of(annotation)
        self._hints = field_hints(annotation, kind)
        self._find = find
        self._converter = converter

    def conversion(self) -> Conversion:
        """This class as a conversion."""
        return Conversion(
            label=self._label, encode=self._encode, decode=self._decode, wire=frozenset({dict}), kind=self._kind
        )

    @cached_property
    def _encode_fields(self) -> Convert:
        return make_dict_unstructure_fn(self._annotation, self._converter)

    @cached_property
    def _decode_fields(self) -> Callable[[Any, Any], Any]:
        return make_dict_structure_fn(self._annotation, self._converter)

    def _check(self, value: Any) -> None:
        if value.__class__ is not self._kind:
            hint = "; annotate the subclass, or a union with it" if isinstance(value, self._kind) else ""
            raise Mismatch(f"{unexpected(self._label, value)}{hint}")

    def _encode(self, value: Any) -> Any:
        self._check(value)
        try:
            return self._encode_fields(value)
        except Mismatch as mismatch:
            raise self._located(value, mismatch) from None

    def _decode(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise unexpected(f"an object for {self._label}", plain)
        try:
            return self._decode_fields(plain, self._annotation)
        except ClassValidationError as group:
            raise _first_mismatch(group, self._label) from None

    def _located(self, value: Any, mismatch: Mismatch) -> Mismatch:
        """The mismatch with the field that it comes from; cattrs does not tell when it encodes."""
        for name, hint in self._hints.items():
            # A type variable of a base class stands for a type that only cattrs finds.
            if not isinstance(hint, TypeVar) and not getattr(hint, "__parameters__", ()):
                try:
                    self._find(hint).encode(getattr(value, name))
                except Mismatch as found:
                    return found.under(f".{name}")
                except FAULTS:
                    continue
        return mismatch


class TypedDictClass:
    """The conversion of a TypedDict: a dict with a type for each key, some of which may be missing.

    cattrs does not see which those are where annotations are strings, so this is done here.
    """

    def __init__(self, annotation: Any, kind: Any, find: Finder) -> None:
        self._label = label_of(annotation)
        self._hints = field_hints(annotation, kind)
        self._required = frozenset(
            name
            for name, hint in self._hints.items()
            if typing.get_origin(hint) is Required
            or (typing.get_origin(hint) is not NotRequired and name in kind.__required_keys__)
        )
        self._find = find

    def conversion(self) -> Conversion:
        """This TypedDict as a conversion."""
        return Conversion(
            label=self._label, encode=self._encode, decode=self._decode, wire=frozenset({dict}), kind=dict
        )

    @cached_property
    def _fields(self) -> dict[str, Conversion]:
        # Not before the first use, so that a TypedDict may hold itself.
        return {name: self._find(hint) for name, hint in self._hints.items()}

    def _encode(self, value: Any) -> dict[str, Any]:
        self._check(value)
        for name in value:
            if name not in self._fields:
                raise Mismatch(f"{self._label} has no key {name!r:.40}")
        return by_key(value, lambda name, item: (name, self._fields[name].encode(item)))

    def _decode(self, plain: Any) -> dict[str, Any]:
        self._check(plain)
        known = {name: item for name, item in plain.items() if name in self._fields}
        return by_key(known, lambda name, item: (name, self._fields[name].decode(item)))

    def _check(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise unexpected(self._label, value)
        for name in sorted(self._required - value.keys()):
            raise Mismatch(f"the key {name!r} of {self._label} is missing")


def _first_mismatch(group: ClassValidationError, label: str) -> Mismatch:
    """The first thing that is wrong with an object, where it is wrong."""
    of_fields, others = group.group_exceptions()
    if not of_fields:
        return Mismatch(f"{label} refuses its fields: {brief(others[0])}")
    error, note = of_fields[0]
    if isinstance(error, KeyError):
        return Mismatch(f"the field {note.name!r} of {label} is missing")
    return (error if isinstance(error, Mismatch) else Mismatch(brief(error))).under(f".{note.name}")
