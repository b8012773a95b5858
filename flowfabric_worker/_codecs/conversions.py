"""Finds the conversion of an annotation."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections import Counter, defaultdict
from collections.abc import Collection
from enum import Enum
from pathlib import PurePath
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, Never, NoReturn, Union

import attrs

from flowfabric_worker._codecs.annotations import UNRESOLVED, field_hints, is_typed_dict, label_of, strip
from flowfabric_worker._codecs.kinds import (
    COLLECTIONS,
    SCALARS,
    Conversion,
    Mismatch,
    anything,
    collection,
    enumeration,
    fixed_tuple,
    literal,
    unchanged,
    unsupported,
    untouched,
    variants,
)
from flowfabric_worker._codecs.mappings import MAPPINGS, default_mapping, mapping
from flowfabric_worker._codecs.models import REGISTERED, is_pydantic_model, pydantic_model
from flowfabric_worker._codecs.texts import TEXTS, text
from flowfabric_worker._codecs.unions import UnionOfMembers

if TYPE_CHECKING:
    from flowfabric_worker._codecs.fields import CattrsConverter

_UNTYPED: Final = (Any, object, Never, NoReturn)


class Conversions:
    """Create and cache the conversions for one codec.

    Args:
        native: the classes that the codec writes by itself, in addition to the plain ones. If `object` is among them,
            no value is converted.
    """

    def __init__(self, native: Collection[type] = ()) -> None:
        self._native = frozenset(native)
        self._known: dict[Any, Conversion] = {}
        self._cattrs: CattrsConverter | None = None
        self._any = untouched() if object in self._native else anything(SCALARS | self._native)
        # Every codec writes the keys of dicts as text, so native classes do not apply to them.
        self._of_keys = Conversions() if self._native else self

    def of(self, annotation: Any) -> Conversion:
        """Return the conversion of an annotation; one that cannot be encoded gets a conversion that raises in use."""
        if object in self._native:
            return self._any
        annotation = strip(annotation)
        if not _is_hashable(annotation):
            return self._make(annotation)
        # Two unions are equal whatever their order, but the order decides which member reads a bare value.
        key = annotation, repr(annotation)
        conversion = self._known.get(key)
        if conversion is None:
            conversion = self._known[key] = self._make(annotation)
        return conversion

    def _make(self, annotation: Any) -> Conversion:
        try:
            return self._of_form(annotation)
        except Mismatch as mismatch:
            return unsupported(label_of(annotation), str(mismatch))
        except UNRESOLVED as error:
            label = label_of(annotation)
            return unsupported(label, f"{label} does not resolve: {error}", unresolved=isinstance(error, NameError))

    def _of_form(self, annotation: Any) -> Conversion:
        origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
        if origin in _UNTYPED:
            return self._any
        if origin in (Union, UnionType):
            return self._union(arguments)
        if origin is Literal:
            return self._literal(annotation, arguments)
        if isinstance(origin, type):
            return self._of_class(annotation, origin, arguments)
        return unsupported(label_of(annotation))

    def _literal(self, annotation: Any, values: tuple[Any, ...]) -> Conversion:
        by_class: dict[type | None, list[Any]] = {}
        for value in values:
            by_class.setdefault(None if type(value) in SCALARS else type(value), []).append(value)
        if len(by_class) > 1:
            # An encoded enum member may equal a scalar of the Literal; a union tells them apart.
            return self._union(tuple(Literal[tuple(alike)] for alike in by_class.values()))
        encoded = {(type(value), value): self.of(type(value)).encode(value) for value in values}
        return literal(label_of(annotation), encoded)

    def _of_class(self, annotation: Any, kind: type[Any], arguments: tuple[Any, ...]) -> Conversion:
        label = label_of(annotation)
        if kind in REGISTERED:
            return REGISTERED[kind].conversion(label, kind, self._any)
        if kind in SCALARS or kind in self._native:
            return unchanged(label, kind)
        if kind in TEXTS:
            return text(label, kind, *TEXTS[kind])
        if issubclass(kind, PurePath):
            return text(label, kind, str, kind)
        if issubclass(kind, Enum):
            return enumeration(label, kind)
        if issubclass(kind, tuple):
            return self._tuple(annotation, kind, arguments)
        if kind in COLLECTIONS:
            item = self.of(*arguments or (Any,))
            return variants(label, {each: collection(label, item, each) for each in COLLECTIONS[kind]})
        if kind in MAPPINGS:
            return self._mapping(label, MAPPINGS[kind], arguments)
        if getattr(kind, "__parameters__", ()) and not arguments and _has_fields(kind):
            return unsupported(label, f"{label} is generic: say of what, such as {label}[int]")
        if is_pydantic_model(kind):
            return pydantic_model(label, kind)
        if is_typed_dict(kind) or attrs.has(kind) or dataclasses.is_dataclass(kind):
            return self._class_with_fields(annotation, kind)
        return unsupported(label)

    def _class_with_fields(self, annotation: Any, kind: type[Any]) -> Conversion:
        # Import it here, so that only applications with such classes load cattrs.
        from flowfabric_worker._codecs.fields import CattrsConverter, RecordClass, TypedDictClass

        if is_typed_dict(kind):
            return TypedDictClass(annotation, kind, self.of).conversion()
        if self._cattrs is None:
            self._cattrs = CattrsConverter(self.of)
        return RecordClass(annotation, kind, self.of, self._cattrs).conversion()

    def _mapping(self, label: str, kind: type[Any], arguments: tuple[Any, ...]) -> Conversion:
        if kind is Counter:
            arguments = *(arguments or (str,)), int
        key, value = arguments or (str, Any)
        keys, values = self._of_keys.of(str if key is Any else key), self.of(value)
        if kind is defaultdict:
            return default_mapping(label, mapping(label, dict, keys, values))
        return mapping(label, kind, keys, values)

    def _tuple(self, annotation: Any, kind: Any, arguments: tuple[Any, ...]) -> Conversion:
        label = label_of(annotation)
        if hasattr(kind, "_fields"):
            hints = field_hints(annotation, kind)
            return fixed_tuple(label, kind, [self.of(hints.get(name, Any)) for name in kind._fields], kind._make)
        if kind is not tuple:
            return unsupported(label)
        if annotation is tuple or arguments[1:] == (...,):
            return collection(label, self.of(arguments[0] if arguments else Any), tuple)
        return fixed_tuple(label, tuple, [self.of(argument) for argument in arguments], tuple)

    def _union(self, members: tuple[Any, ...]) -> Conversion:
        conversions = [self.of(member) for member in members]
        if self._any in conversions:
            return self._any
        labels = [conversion.label for conversion in conversions]
        if len({*labels}) < len(labels):
            labels = [inspect.formatannotation(member) for member in members]
        return UnionOfMembers(dict(zip(labels, conversions, strict=True))).conversion()


def _has_fields(kind: type[Any]) -> bool:
    return is_typed_dict(kind) or attrs.has(kind) or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")


def _is_hashable(annotation: Any) -> bool:
    """Return False for annotations such as `list[Annotated[int, {}]]`."""
    try:
        hash(annotation)
    except TypeError:
        return False
    return True
