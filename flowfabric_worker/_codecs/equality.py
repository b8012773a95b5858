"""Compares a decoded value with the encoded one, by value and class, including everything that they contain."""

from __future__ import annotations

import functools
from datetime import datetime, time
from typing import Any

import attrs


def same(sent: Any, back: Any) -> bool:
    """Return True if two values, and everything that they contain, are equal in value and class."""
    if sent is back:
        return True
    kind = type(sent)
    if kind is not type(back):
        return False
    if issubclass(kind, (list, tuple)):
        return len(sent) == len(back) and all(map(same, sent, back))
    if issubclass(kind, dict):
        return bool(sent.keys() == back.keys()) and all(same(item, back[key]) for key, item in sent.items())
    if issubclass(kind, (datetime, time)):
        # Zones with one fixed offset are interchangeable, but a named zone has more than its present offset.
        named = getattr(sent.tzinfo, "key", None) == getattr(back.tzinfo, "key", None)
        return bool(sent == back) and sent.fold == back.fold and sent.utcoffset() == back.utcoffset() and named
    if issubclass(kind, float):
        return bool(sent == back) or (sent != sent and back != back)
    fields = state_of(sent)
    if fields:
        return same(fields, state_of(back))
    return bool(sent == back)


def state_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an instance, without cached properties; {} for objects without attributes."""
    kind = type(value)
    names = [name for base in kind.__mro__ for name in _slots(base)]
    if attrs.has(kind):
        names += [field.name for field in attrs.fields(kind)]
    state = {name: getattr(value, name) for name in names if hasattr(value, name)}
    state.update(getattr(value, "__dict__", ()))
    return {
        name: held
        for name, held in state.items()
        if not isinstance(getattr(kind, name, None), functools.cached_property)
    }


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if not name.startswith("__"))
