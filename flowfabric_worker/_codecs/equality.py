"""Whether what came back is what was sent: by value and by class, all the way down."""

from __future__ import annotations

import functools
from datetime import datetime, time
from typing import Any

import attrs


def same(sent: Any, back: Any) -> bool:
    """Return whether two values are equal in value and class, and so is everything that they hold."""
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
        # Two objects for one fixed offset are as good as one, but a named zone knows more than its offset.
        named = getattr(sent.tzinfo, "key", None) == getattr(back.tzinfo, "key", None)
        return bool(sent == back) and sent.fold == back.fold and sent.utcoffset() == back.utcoffset() and named
    if issubclass(kind, float):
        return bool(sent == back) or (sent != sent and back != back)
    fields = state_of(sent)
    if fields:
        return same(fields, state_of(back))
    return bool(sent == back)


def state_of(value: Any) -> dict[str, Any]:
    """Return what an instance holds by name, but what it remembers of its properties; {} of other objects."""
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
