"""From an annotation to its conversion, and the conversions that need others: unions and classes with fields.

cattrs writes the code for classes with fields (attrs, dataclasses, TypedDict). It is configured here and
nowhere else, and asks back for every field, so that the same checks hold inside and outside of classes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    Never,
    NewType,
    NoReturn,
    NotRequired,
    Required,
    TypeVar,
    Union,
)

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, typeddicts

from flowfabric_worker.conversions import (
    COLLECTIONS,
    FAULTS,
    MAPPINGS,
    SCALARS,
    TEXTS,
    Conversion,
    Convert,
    Mismatch,
    anything,
    brief,
    collection,
    enumeration,
    fixed_tuple,
    literal,
    mapping,
    text,
    unchanged,
    unexpected,
    unsupported,
    untouched,
)

_UNTYPED: Final = (Any, object, Never, NoReturn, TypeVar)
_WRAPPERS: Final = (Annotated, typing.Final, NotRequired, Required)


class Conversions:
    """The conversions for one codec, each made when it is first asked for and kept.

    Args:
        native: classes beyond the plain ones that the codec writes by itself. With `object` among them every
            value passes as it is.
    """

    def __init__(self, native: Collection[type] = ()) -> None:
        self._native = frozenset(native)
        self._known: dict[Any, Conversion] = {}
        self._any = untouched() if object in self._native else anything(SCALARS | self._native)
        # The keys of dicts are text in every codec.
        self._of_keys = Conversions() if self._native else self
        self._cattrs = _Cattrs(self)

    def of(self, annotation: Any) -> Conversion:
        """The conversion of an annotation; for one that cannot travel, a conversion that says so in use."""
        if object in self._native:
            return self._any
        annotation = _strip(annotation)
        conversion = self._known.get(annotation)
        if conversion is None:
            try:
                conversion = self._make(annotation)
            except (NameError, RecursionError) as error:
                conversion = unsupported(_label(annotation), f"{_label(annotation)} does not resolve: {error}")
            self._known[annotation] = conversion
        return conversion

    def _make(self, annotation: Any) -> Conversion:
        origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin in _UNTYPED:
            return self._any
        if origin in (Union, UnionType):
            return self._union(arguments)
        if origin is Literal:
            return literal(
                _label(annotation),
                {(type(value), value): self.of(type(value)).encode(value) for value in arguments},
            )
        if isinstance(origin, type):
            return self._of_class(annotation, origin, arguments)
        return unsupported(_label(annotation))

    def _of_class(self, annotation: Any, kind: type[Any], arguments: tuple[Any, ...]) -> Conversion:
        label = _label(annotation)
        if kind in SCALARS or kind in self._native:
            return unchanged(label, kind)
        if kind in TEXTS:
            return text(label, kind, *TEXTS[kind])
        if issubclass(kind, PurePath):
            return text(label, kind, str, kind)
        if issubclass(kind, Enum):
            return enumeration(label, kind)
        if issubclass(kind, tuple):
            return self._tuple(label, kind, arguments)
        if kind in COLLECTIONS:
            return collection(label, self.of(*arguments or (Any,)), *COLLECTIONS[kind])
        if kind in MAPPINGS:
            key, value = arguments or (str, Any)
            return mapping(label, self._of_keys.of(str if key is Any else key), self.of(value))
        if _is_typed_dict(kind):
            return _TypedDict(annotation, kind, self, self._cattrs).conversion()
        if attrs.has(kind) or dataclasses.is_dataclass(kind):
            return _Record(annotation, kind, self, self._cattrs).conversion()
        return unsupported(label)

    def _tuple(self, label: str, kind: Any, arguments: tuple[Any, ...]) -> Conversion:
        if hasattr(kind, "_fields"):
            hints = typing.get_type_hints(kind, include_extras=True)
            return fixed_tuple(label, kind, [self.of(hints.get(name, Any)) for name in kind._fields], kind._make)
        if kind is not tuple:
            return unsupported(label)
        if label == "tuple" or arguments[1:] == (...,):
            return collection(label, self.of(arguments[0] if arguments else Any), (tuple,), tuple)
        return fixed_tuple(label, tuple, [self.of(argument) for argument in arguments], tuple)

    def _union(self, members: tuple[Any, ...]) -> Conversion:
        conversions = [self.of(member) for member in members]
        if self._any in conversions:
            return self._any
        labels = [conversion.label for conversion in conversions]
        if len({*labels}) < len(labels):
            labels = [inspect.formatannotation(member) for member in members]
        return _Union(dict(zip(labels, conversions, strict=True))).conversion()


class _Cattrs(Converter):
    """cattrs, with our conversion for the type of every field."""

    def __init__(self, conversions: Conversions) -> None:
        super().__init__(detailed_validation=True, prefer_attrib_converters=False, forbid_extra_keys=False)
        self._conversions = conversions

    def get_unstructure_hook(self, type: Any, cache_result: bool = True) -> Convert:  # noqa: A002, ARG002 - cattrs' names
        return self._conversions.of(type).encode

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Callable[[Any, Any], Any]:  # noqa: A002, ARG002
        decode = self._conversions.of(type).decode
        return lambda value, _: decode(value)

    def unstructure(self, obj: Any, unstructure_as: Any = Any) -> Any:
        return self._conversions.of(unstructure_as).encode(obj)

    def structure(self, obj: Any, cl: Any) -> Any:
        return self._conversions.of(cl).decode(obj)


def _item(values: Any, name: str) -> Any:
    return values[name]


class _Record:
    """The conversion of a class with fields: attrs or dataclass.

    cattrs writes its code at first use, so that classes may hold each other and themselves. A subclass is
    refused, because it would come back as the class that the annotation names, without its own fields and
    methods. Fields that a reader does not know are ignored: the writer may be newer.
    """

    make_encoder: Callable[..., Convert] = staticmethod(make_dict_unstructure_fn)
    make_decoder: Callable[..., Callable[[Any, Any], Any]] = staticmethod(make_dict_structure_fn)
    get_field: Callable[[Any, str], Any] = staticmethod(getattr)

    def __init__(self, annotation: Any, kind: Any, conversions: Conversions, converter: Converter) -> None:
        self._annotation = annotation
        self._kind = kind
        self._label = _label(annotation)
        self._hints = _resolve_fields(kind)
        self._conversions = conversions
        self._converter = converter

    def conversion(self) -> Conversion:
        """This class as a conversion."""
        return Conversion(
            label=self._label, encode=self.encode, decode=self.decode, wire=frozenset({dict}), kind=self._kind
        )

    @cached_property
    def _encode_fields(self) -> Convert:
        return self.make_encoder(self._annotation, self._converter)

    @cached_property
    def _decode_fields(self) -> Callable[[Any, Any], Any]:
        return self.make_decoder(self._annotation, self._converter)

    def check(self, value: Any) -> None:
        """Raises `Mismatch` unless the value is of the very class."""
        if value.__class__ is not self._kind:
            hint = "; annotate the subclass, or a union with it" if isinstance(value, self._kind) else ""
            raise Mismatch(f"{unexpected(self._label, value)}{hint}")

    def encode(self, value: Any) -> Any:
        """The fields as a dict."""
        self.check(value)
        try:
            return self._encode_fields(value)
        except Mismatch as mismatch:
            raise self._located(value, mismatch) from None

    def decode(self, plain: Any) -> Any:
        """The object again, made by its own `__init__`."""
        if not isinstance(plain, dict):
            raise unexpected(f"an object for {self._label}", plain)
        try:
            return self._decode_fields(plain, self._annotation)
        except ClassValidationError as group:
            raise _first_mismatch(group, self._label) from None

    def _located(self, value: Any, mismatch: Mismatch) -> Mismatch:
        """The mismatch with the field that it comes from; cattrs does not tell when it encodes."""
        for name, hint in self._hints.items():
            # What a type variable stands for differs with each use of the class: skip such fields.
            if not isinstance(hint, TypeVar) and not getattr(hint, "__parameters__", ()):
                try:
                    self._conversions.of(hint).encode(self.get_field(value, name))
                except Mismatch as found:
                    return found.under(f".{name}")
                except FAULTS:
                    continue
        return mismatch


class _TypedDict(_Record):
    """The conversion of a TypedDict: like a class with fields, but its values are dicts."""

    make_encoder = staticmethod(typeddicts.make_dict_unstructure_fn)
    make_decoder = staticmethod(typeddicts.make_dict_structure_fn)
    get_field = staticmethod(_item)

    def check(self, value: Any) -> None:
        """Raises `Mismatch` unless the value is a dict with the keys that it must have, and no others."""
        if not isinstance(value, dict):
            raise unexpected(self._label, value)
        for name in self._kind.__required_keys__ - value.keys():
            raise Mismatch(f"the key {name!r} of {self._label} is missing")
        for name in value.keys() - self._kind.__annotations__.keys():
            raise Mismatch(f"{self._label} has no key {name!r:.40}")


class _Union:
    """The conversion of a union.

    A member whose JSON type no other member shares travels as it is, and so do plain values. All others
    travel under the name of their member, `{"Card": {...}}`: a value always comes back as what it was.
    """

    def __init__(self, members: dict[str, Conversion]) -> None:
        count = Counter(kind for member in members.values() for kind in member.wire)
        bare = [m for m in members.values() if m.unchanged or all(count[kind] == 1 for kind in m.wire)]
        if len(bare) < len(members):
            bare = [member for member in bare if dict not in member.wire]
        self._label = " | ".join(member.label for member in members.values())
        self._members = list(members.values())
        self._bare = bare
        self._tagged = {tag: member for tag, member in members.items() if member not in bare}
        self._tags = {id(member): tag for tag, member in self._tagged.items()}
        self._plain = frozenset[type]().union(*(member.plain for member in bare))

    def conversion(self) -> Conversion:
        """This union as a conversion."""
        return Conversion(
            label=self._label,
            encode=self.encode,
            decode=self.decode,
            wire=frozenset({dict} if self._tagged else ()).union(*(member.wire for member in self._bare)),
            plain=self._plain,
        )

    def encode(self, value: Any) -> Any:
        """The value by the member of its very class, or else by the first that takes it."""
        kind = value.__class__
        if kind in self._plain:
            return value
        members = [member for member in self._members if member.kind is kind] or self._members
        return self._first(members, lambda member: self._encode_as(member, value), value)

    def _encode_as(self, member: Conversion, value: Any) -> Any:
        tag = self._tags.get(id(member))
        plain = member.encode(value)
        return plain if tag is None else {tag: plain}

    def decode(self, plain: Any) -> Any:
        """The value again, by its tag or else by its JSON type."""
        kind = plain.__class__
        if kind in self._plain:
            return plain
        if self._tagged and kind is dict and len(plain) == 1:
            ((tag, inner),) = plain.items()
            if tag in self._tagged:
                return self._tagged[tag].decode(inner)
        members = [member for member in self._bare if kind in member.wire] or self._bare
        return self._first(members, lambda member: member.decode(plain), plain)

    def _first(self, members: Sequence[Conversion], convert: Callable[[Conversion], Any], value: Any) -> Any:
        if len(members) == 1:
            return convert(members[0])
        for member in members:
            try:
                return convert(member)
            except Mismatch:
                continue
        raise unexpected(self._label, value)


def _first_mismatch(group: ClassValidationError, label: str) -> Mismatch:
    """The first thing that is wrong with an object, where it is wrong."""
    of_fields, others = group.group_exceptions()
    if not of_fields:
        return Mismatch(f"{label} refuses its fields: {brief(others[0])}")
    error, note = of_fields[0]
    if isinstance(error, KeyError):
        return Mismatch(f"the field {note.name!r} of {label} is missing")
    return (error if isinstance(error, Mismatch) else Mismatch(brief(error))).under(f".{note.name}")


def _resolve_fields(kind: type) -> dict[str, Any]:
    """The types of a class's fields; forward references are resolved in the class too, for cattrs."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if attrs.has(kind):
        attrs.resolve_types(kind)
        return {field.name: field.type or Any for field in attrs.fields(kind) if field.init}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            field.type = hints[field.name]
        return {field.name: field.type for field in dataclasses.fields(kind) if field.init}
    return hints


def _is_typed_dict(kind: type) -> bool:
    return issubclass(kind, dict) and hasattr(kind, "__required_keys__")


def _strip(annotation: Any) -> Any:
    """The annotation without what only names or describes it."""
    while True:
        if annotation is None:
            return type(None)
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar):
            annotation = annotation.__bound__ or Any
        elif typing.get_origin(annotation) in _WRAPPERS:
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):  # a `type` statement
            annotation = annotation.__value__
        else:
            return annotation


def _label(annotation: Any) -> str:
    """The annotation without the modules of the classes that it names."""
    return re.sub(r"[\w<>.]+\.(?=\w)", "", inspect.formatannotation(annotation)).replace("NoneType", "None")
