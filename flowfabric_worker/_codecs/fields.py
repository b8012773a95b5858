"""The conversions of classes with fields: attrs, dataclasses and TypedDict.

cattrs generates the code for attrs and dataclasses. It is configured only here, and asks for our conversion of every
field, so that the same checks apply inside and outside of classes.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from functools import cached_property
from typing import Any, NotRequired, Required, TypeVar

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from flowfabric_worker._codecs.annotations import field_hints, label_of
from flowfabric_worker._codecs.equality import same, state_of
from flowfabric_worker._codecs.kinds import (
    FAULTS,
    Conversion,
    Convert,
    Mismatch,
    brief,
    by_key,
    not_exact,
    unexpected,
)

Finder = Callable[[Any], Conversion]
"""Returns the conversion of an annotation."""


class CattrsConverter(Converter):
    """Convert every field by our conversion of its type."""

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
    """Convert the instances of an attrs class or dataclass.

    cattrs generates the code at first use, so that classes may contain each other and themselves. An instance of a
    subclass is refused, because it would come back as the class in the annotation, without its own fields and
    methods. Unknown fields are ignored when decoding, because the writer may be newer.

    If the `__init__` of a class may do more than store its arguments, a value is also decoded when it is encoded, and
    refused if it would come back different.
    """

    def __init__(self, annotation: Any, kind: Any, find: Finder, converter: Converter) -> None:
        self._annotation = annotation
        self._kind = kind
        self._label = label_of(annotation)
        self._hints = field_hints(annotation, kind)
        self._late_hints = field_hints(annotation, kind, init=False)
        self._stores_alone = stores_alone(kind)
        self._find = find
        self._converter = converter

    def conversion(self) -> Conversion:
        """Return the conversion of this class."""
        return Conversion(
            label=self._label,
            encode=self._encode,
            decode=self._decode,
            wire=frozenset({dict}),
            kind=self._kind,
            knows=self._knows,
            parts=self._parts,
        )

    @cached_property
    def _encode_fields(self) -> Convert:
        return make_dict_unstructure_fn(self._annotation, self._converter)

    @cached_property
    def _decode_fields(self) -> Callable[[Any, Any], Any]:
        return make_dict_structure_fn(self._annotation, self._converter)

    @cached_property
    def _late(self) -> dict[str, Conversion]:
        """The fields that `__init__` does not take."""
        return {name: self._find(hint) for name, hint in self._late_hints.items()}

    def _parts(self) -> list[Conversion]:
        hints = (*self._hints.values(), *self._late_hints.values())
        # A type variable of a base class stands for a type that only cattrs finds.
        return [self._find(hint) for hint in hints if isinstance(hint, type) or not getattr(hint, "__parameters__", ())]

    def _knows(self, plain: Any) -> bool:
        return isinstance(plain, dict) and plain.keys() <= {*self._hints, *self._late_hints}

    def _check(self, value: Any) -> None:
        if value.__class__ is not self._kind:
            hint = "; annotate the subclass, or a union with it" if isinstance(value, self._kind) else ""
            raise Mismatch(f"{unexpected(self._label, value)}{hint}")

    def _encode(self, value: Any) -> Any:
        self._check(value)
        try:
            plain = self._encode_fields(value)
        except Mismatch as mismatch:
            raise self._located(value, mismatch) from None
        if self._stores_alone:
            return plain
        late = {name: getattr(value, name) for name in self._late if hasattr(value, name)}
        plain.update(by_key(late, lambda name, item: (name, self._late[name].encode(item))))
        self._check_return(value, plain)
        return plain

    def _check_return(self, value: Any, plain: Any) -> None:
        """Refuse a value that would come back different."""
        back = self._decode(plain)
        sent, made = state_of(value), state_of(back)
        for name in sorted(sent.keys() | made.keys()):
            if name not in sent or name not in made or not same(sent[name], made[name]):
                raise Mismatch(
                    f"{self._label} would come back with another {name!r}, because its __init__ does not store its "
                    "arguments unchanged; use codec.register()"
                )

    def _decode(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise unexpected(f"an object for {self._label}", plain)
        try:
            value = self._decode_fields(plain, self._annotation)
        except ClassValidationError as group:
            raise _first_mismatch(group, self._label) from None
        if self._late_hints:
            late = {name: plain[name] for name in self._late if name in plain}
            for name, item in by_key(late, lambda name, item: (name, self._late[name].decode(item))).items():
                object.__setattr__(value, name, item)
        return value

    def _located(self, value: Any, mismatch: Mismatch) -> Mismatch:
        """Return the mismatch with the name of its field, which cattrs does not report when it encodes."""
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
    """Convert a TypedDict, a dict with a type for each key, some of which may be missing.

    cattrs does not find the optional keys if annotations are strings, so this class does not use it.
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
        """Return the conversion of this TypedDict."""
        return Conversion(
            label=self._label,
            encode=self._encode,
            decode=self._decode,
            wire=frozenset({dict}),
            kind=dict,
            knows=lambda plain: isinstance(plain, dict) and plain.keys() <= self._fields.keys(),
            parts=lambda: self._fields.values(),
        )

    @cached_property
    def _fields(self) -> dict[str, Conversion]:
        # The conversions are found at first use, so that a TypedDict may contain itself.
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
        if type(value) is not dict:
            raise not_exact(self._label, value, dict)
        for name in sorted(self._required - value.keys()):
            raise Mismatch(f"the key {name!r} of {self._label} is missing")


def stores_alone(kind: Any) -> bool:
    """Return True if the `__init__` of a class only stores its arguments, which are all of its fields.

    Raises:
        Mismatch: `__init__` needs an argument that instances do not store, so an instance cannot be decoded.
    """
    for name in getattr(kind, "__dataclass_fields__", ()):
        field = kind.__dataclass_fields__[name]
        if field._field_type is dataclasses._FIELD_INITVAR:  # type: ignore[attr-defined]  # fields() leaves them out
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise Mismatch(
                    f"{kind.__name__} needs the init-only {name!r}, which its instances do not store; use "
                    "codec.register()"
                )
            return False
    hooks = ("__post_init__", "__attrs_post_init__", "__attrs_pre_init__")
    written = getattr(kind.__init__, "__code__", None)
    generated = written is not None and written.co_filename.startswith(("<string>", "<attrs generated"))
    if any(hasattr(kind, hook) for hook in hooks) or not generated or kind.__new__ is not object.__new__:
        return False
    if attrs.has(kind):
        return all(field.init and field.converter is None for field in attrs.fields(kind))
    return all(field.init for field in dataclasses.fields(kind))


def _first_mismatch(group: ClassValidationError, label: str) -> Mismatch:
    """Return the first mismatch in an object, with its place."""
    of_fields, others = group.group_exceptions()
    if not of_fields:
        return Mismatch(f"{label} refuses its fields: {brief(others[0])}")
    error, note = of_fields[0]
    if isinstance(error, KeyError):
        return Mismatch(f"the field {note.name!r} of {label} is missing")
    return (error if isinstance(error, Mismatch) else Mismatch(brief(error))).under(f".{note.name}")
